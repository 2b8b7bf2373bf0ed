"""The papers' templates, spelt out, and a user's own."""

import pytest

from cot_flax.errors import UserError
from cot_flax.text.answers import answers_match, extract_answer, marked_kind
from cot_flax.text.prompts import FORMATS, Exemplar, build_input, build_target, is_few_shot
from cot_flax.text.templates import TEMPLATES, Template, find_template, named
from cot_flax.text.wording import ENGLISH, LANGUAGES

HENS = Exemplar("How many eggs do 3 hens lay?", "Each lays 2.\n3 * 2 = 6 eggs.\n", "6")
QUESTION = "Where is he?"
COT, ANSWER, SHOWN_COT, SHOWN_ANSWER = (
    *("zero_shot_cot", "zero_shot_answer"),
    *("few_shot_cot", "few_shot_answer"),
)

# What the authors' code writes (of Magister et al. 2022: what we assume), for the question above
# and the rationale `He is at y because of z.`
INPUTS = {
    "fu2023": {COT: "Q: Where is he?\nLet's think step by step", ANSWER: "Q: Where is he? A:"},
    "ho2022": {COT: "Where is he?", ANSWER: "Where is he?"},
    "ho2022_decoder_only": {COT: "Where is he? ###", ANSWER: "Where is he? ###"},
    "kim2023": {
        COT: "Where is he?\n\nLet's think step by step.\n",
        ANSWER: "Where is he?\n[ANSWER] ",
    },
    "magister2022": {COT: "Where is he?", ANSWER: "Where is he?"},
}
TARGETS = {
    "fu2023": {COT: "He is at y because of z.\nThe answer is B", ANSWER: "The answer is B"},
    "ho2022": {COT: "He is at y because of z. --> B", ANSWER: "B"},
    "ho2022_decoder_only": {COT: "He is at y because of z. --> B END", ANSWER: "B END"},
    "kim2023": {COT: "He is at y because of z.\n[ANSWER] B", ANSWER: "B"},
    "magister2022": {
        COT: "He is at y because of z. The answer is B.",
        ANSWER: "The answer is B.",
    },
}
EXEMPLARS = {
    "ho2022": {
        SHOWN_COT: "How many eggs do 3 hens lay? Each lays 2.\n3 * 2 = 6 eggs. --> 6 ### ",
        SHOWN_ANSWER: "How many eggs do 3 hens lay? 6 ### ",
    },
    "ho2022_decoder_only": {
        SHOWN_COT: ("How many eggs do 3 hens lay? ### Each lays 2.\n3 * 2 = 6 eggs. --> 6 END\n\n"),
        SHOWN_ANSWER: "How many eggs do 3 hens lay? ### 6 END\n\n",
    },
    "kim2023": {
        SHOWN_COT: (
            "How many eggs do 3 hens lay?\n\nLet's think step by step.\n"
            "Each lays 2.\n3 * 2 = 6 eggs.\n[ANSWER] 6 ### "
        ),
        SHOWN_ANSWER: "How many eggs do 3 hens lay?\n[ANSWER] 6 ### ",
    },
}


def kind_of(template: Template, kind: str) -> str:
    return marked_kind(kind, template.worded(ENGLISH).heads, template.stop)


@pytest.mark.parametrize("name", INPUTS)
def test_the_papers_strings(name):
    for form, text in INPUTS[name].items():
        assert build_input(QUESTION, form, template=TEMPLATES[name]) == text
    for form, text in TARGETS[name].items():
        found = build_target(" He is at y because of z. ", "B", form, TEMPLATES[name])
        assert found == text


@pytest.mark.parametrize("name", EXEMPLARS)
def test_exemplars_are_inputs_with_their_targets(name):
    for form, shown in EXEMPLARS[name].items():
        asked = build_input(QUESTION, form.replace("few", "zero"), template=TEMPLATES[name])
        found = build_input(QUESTION, form, [HENS], TEMPLATES[name])
        assert found == shown + asked


def test_kim2023_ends_a_rationale_with_a_full_stop():
    for rationale, end in (("So be it", "So be it."), ("So?", "So?."), ("So.", "So."), ("", "")):
        target = build_target(rationale, "8", COT, TEMPLATES["kim2023"])
        assert target == f"{end}\n[ANSWER] 8".lstrip()


@pytest.mark.parametrize(
    "template",
    [
        *TEMPLATES.values(),
        Template(cot_target="{rationale} => {answer}", answer_target="=> {answer}", stop=" STOP"),
    ],
    ids=[*TEMPLATES, "own"],
)
@pytest.mark.parametrize(
    ("kind", "answer"),
    [("choice", "B"), ("number", "1,080"), ("yes_no", "no"), ("text", "a mug"), ("text", "END it")],
)
def test_what_a_template_writes_is_read_again(template, kind, answer):
    if template.stop.strip() in answer.split():
        pytest.skip("the stop text is no answer")
    own = kind_of(template, kind)
    for form in FORMATS:
        target = build_target("A is 5 of 9 or yes, no mug.", answer, form, template)
        found = extract_answer(target, kind=own, mode="flexible")
        assert answers_match(found, answer, kind=own)
        behind = f"{target} Q: Is it C?" if template.stop else target
        assert extract_answer(behind, kind=own, mode="flexible") == found


def test_the_stop_text_is_a_word_in_its_own_case():
    kind = kind_of(TEMPLATES["ho2022_decoder_only"], "text")
    for text, found in (("The end. --> the endEND x", "the endend x"), ("a --> b END c", "b")):
        assert extract_answer(text, kind=kind, mode="strict") == found


def test_a_chain_that_is_closed_is_not_closed_again():
    for name, closed in (
        ("ho2022", "5 + 3 = 8 --> 8"),
        ("magister2022", "5 + 3 = 8. The answer is 8"),
        ("kim2023", "5 + 3 = 8.\n[ANSWER] $8."),
    ):
        assert build_target(closed, "8", COT, TEMPLATES[name]) == closed
    other = build_target("5 + 3 = 8.\nThe answer is 8", "8", COT, TEMPLATES["ho2022"])
    assert other == "5 + 3 = 8.\nThe answer is 8 --> 8"  # nothing of the teacher's is lost


def test_words_are_those_of_the_wording_unless_the_template_has_its_own():
    german = LANGUAGES["de"].wording
    assert build_target("Also 8.", "8", COT, TEMPLATES["t5"], german) == (
        "Also 8.\nDie Antwort ist 8"
    )
    assert build_target("Also 8.", "8", COT, TEMPLATES["ho2022"], german) == "Also 8. --> 8"


def test_an_instruction_stands_first():
    for form in FORMATS:
        shown = [HENS] if is_few_shot(form) else []
        for name in ("t5", "fu2023"):
            template = TEMPLATES[name]
            plain = build_input(QUESTION, form, shown, template)
            found = build_input(QUESTION, form, shown, template, instruction="Do this.\n")
            assert found == f"Do this.{template.separator}{plain}"


def test_braces_of_a_question_or_an_answer_are_text():
    assert build_input("What is {cue}?", ANSWER) == "Q: What is {cue}? A:"
    assert build_target("{answer}!", "{closing}", COT) == "{answer}!\nThe answer is {closing}"


def test_a_template_is_found_by_name_or_fields():
    assert find_template("ho2022") is TEMPLATES["ho2022"]
    own = {"cot_target": "{rationale} => {answer}", "full_stop": True}
    assert find_template(own) == Template(**own)
    assert named(find_template("ho2022")) == "ho2022"
    assert named(find_template(own)) == Template(**own)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "ho",
            "template 'ho'; expected one of t5, fu2023, ho2022, ho2022_decoder_only, kim2023, m",
        ),
        ({"style": "x"}, "an object with only cot_input, answer_input"),
        ({"full_stop": "yes"}, "full_stop 'yes' of a template; expected true or false"),
        ({"stop": 3}, "stop 3 of a template; expected a text"),
        ({"cot_input": "Q:"}, "cot_input 'Q:' of a template; expected {question} once"),
        ({"cot_input": "{question} {question}"}, "expected {question} once"),
        ({"answer_input": "{text}"}, "answer_input '{text}' of a template"),
        ({"cot_target": "{rationale}"}, "expected {closing} and {rationale} once"),
        ({"cot_target": "{answer} {rationale}"}, "{rationale} first, then a marker"),
        ({"cot_target": "{rationale}\n{answer}"}, "{rationale} first, then a marker"),
        ({"answer_target": "{rationale}"}, "answer_target '{rationale}' of a template"),
    ],
)
def test_what_is_no_template(given, message):
    with pytest.raises(UserError) as error:
        find_template(given)
    assert message in str(error.value)
