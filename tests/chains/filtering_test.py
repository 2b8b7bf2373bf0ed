import json
from collections import Counter
from dataclasses import asdict, replace

import pytest

from cot_flax.chains.codex import read_codex_dump
from cot_flax.chains.filtering import RULES, Filters, rejection
from cot_flax.chains.samples import Logprobs, Sample
from cot_flax.errors import UserError
from cot_flax.text import formulas

RIGHT = Sample(
    id="q",
    dataset="gsm8k",
    split="train",
    question="Tom buys 1,000 nails and then 200 more. How many has he?",
    gold_answer="1,200",
    format="few_shot_cot",
    prompt_hash="",
    teacher={"model": "m", "params": {}},
    sample=0,
    text="1000 + 200 = 1200.\nThe answer is 1200",
    logprobs=None,
    finish_reason="stop",
)


def reason(*, gold="1,200", **changed):
    own = {name: changed.pop(name) for name in list(changed) if name in asdict(RIGHT)}
    return rejection(replace(RIGHT, gold_answer=gold, **own), Filters(**changed))


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({}, None),
        ({"finish_reason": "content_filter"}, None),  # judged by its answer alone
        ({"text": "He has many."}, "no_answer"),
        ({"text": ""}, "empty"),
        ({"text": " \n"}, "empty"),
        ({"text": "The answer is 1201"}, "wrong_answer"),
        ({"text": "The answer is -1200"}, "wrong_answer"),
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "malformed"}, "malformed"),
        # The first broken rule gives the reason.
        ({"finish_reason": "length", "text": "He"}, "truncated"),
        ({"finish_reason": "length", "text": ""}, "empty"),
        ({"finish_reason": "malformed", "text": "The answer is 1"}, "malformed"),
        # Without a gold answer there need only be one.
        ({"gold": "", "text": "The answer is 7"}, None),
        ({"gold": "", "text": "Who knows?"}, "no_answer"),
    ],
)
def test_the_default_rules(sample, expected):
    assert reason(**sample) == expected


def test_a_formula_without_a_verdict_is_not_called_wrong(monkeypatch):
    monkeypatch.setattr(formulas, "CPU_SECONDS", 0.3)
    formulas._verdict.cache_clear()
    endless = "The answer is $9^{9^{9^9}}$."
    assert reason(gold="x", text=endless, answer_kind="math") == "undecided_answer"
    assert reason(gold="x", text="The answer is $2x/2$.", answer_kind="math") is None
    assert reason(gold="x", text="The answer is $2x$.", answer_kind="math") == "wrong_answer"


@pytest.mark.parametrize(
    ("kind", "gold", "right", "wrong"),
    [
        ("choice", "B", "The answer is (B).", "The answer is (C)."),
        ("choice A-C", "B", "The answer is (B).", "The answer is (C)."),
        ("number in minutes", "90", "The answer is 1.5 hours.", "The answer is 1.5."),
        ("yes_no", "yes", "So the answer is yes.", "So the answer is no."),
        ("text", "blue", "The answer is blue", "The answer is red"),
    ],
)
def test_answers_of_every_kind(kind, gold, right, wrong):
    assert reason(gold=gold, text=right, answer_kind=kind) is None
    assert reason(gold=gold, text=wrong, answer_kind=kind) == "wrong_answer"


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"gold": "72", "text": "48 + 24 = 72.\nThe answer is 72"}, None),
        ({"gold": "72", "text": "48 + 24 = 71.\nThe answer is 71"}, "fu2023_wrong_answer"),
        ({"gold": "72", "text": "The answer is -72"}, None),  # signs are not seen
        ({"gold": "1,000", "text": "The answer is 5,000"}, None),  # both end in 000
        ({"gold": "1,200", "text": "The answer is 1200"}, "fu2023_wrong_answer"),
        ({"gold": "72", "text": "The answer is 72, not 71"}, "fu2023_wrong_answer"),  # the last
        ({"gold": "72", "text": "72", "finish_reason": "length"}, None),  # not looked at
        ({"gold": "72", "text": "72", "finish_reason": "malformed"}, "malformed"),
        ({"gold": "", "text": "The answer is 72"}, "unlabelled"),
    ],
)
def test_fu2023(sample, expected):
    assert reason(**sample, rules="fu2023") == expected


ZERO_SHOT = "48 + 24 is 72 clips.\nTherefore, the answer is"


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        # The zero-shot teacher: the first candidate behind the second prompt.
        ({"gold": "72", "text": f"{ZERO_SHOT} 72."}, None),
        ({"gold": "72", "text": f"{ZERO_SHOT} 72, that is 48 and 24."}, None),
        ({"gold": "72", "text": f"{ZERO_SHOT} 48 + 24 = 72."}, "ho2022_wrong_answer"),
        ({"gold": "72", "text": f"{ZERO_SHOT} 72.00"}, "ho2022_wrong_answer"),  # strings
        ({"gold": "72.0", "text": f"{ZERO_SHOT} 72"}, None),  # floats where the gold has a point
        ({"gold": "1,072", "text": f"{ZERO_SHOT} $1,072."}, None),
        ({"gold": "72", "text": f"{ZERO_SHOT} many."}, "ho2022_wrong_answer"),
        # What was said before the prompt does not count.
        ({"gold": "72", "text": f"Therefore, the answer is 5. No: {ZERO_SHOT} 72"}, None),
        # The few-shot teacher: the first one behind its own wording, else the last of all.
        ({"gold": "72", "text": "48 + 24 = 72. The answer is 72. Or 73?"}, None),
        ({"gold": "72", "text": "48 + 24 = 72"}, None),
        ({"gold": "24", "text": "24 + 48 = 72"}, "ho2022_wrong_answer"),
        ({"gold": "", "text": "24 + 48 = 72"}, "unlabelled"),
        (
            {"gold": "B", "text": "A or C? Therefore, the answer is B.", "answer_kind": "choice"},
            None,
        ),
        (
            {"gold": "No", "text": "Yes. Therefore, the answer is no.", "answer_kind": "yes_no"},
            None,
        ),
        (
            {
                "gold": "yn",
                "text": 'So "y n". Therefore, the answer is "y n".',
                "answer_kind": "text",
            },
            None,
        ),
    ],
)
def test_ho2022(sample, expected):
    assert reason(**sample, rules="ho2022") == expected


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"gold": "paris", "text": "It lies in France. So it is paris."}, None),
        ({"gold": "paris", "text": "It is paris, in France. I know!"}, "kim2023_f1_answer_first"),
        ({"gold": "paris", "text": "It is paris"}, "kim2023_f1_answer_first"),  # one sentence
        ({"gold": "5", "text": "There are 15 of them. So 5."}, "kim2023_f1_answer_first"),
        ({"gold": "paris", "text": "It lies in France. So it is Paris."}, "kim2023_f2_no_answer"),
        ({"gold": "paris", "text": "It lies in France. So paris"}, "kim2023_f3_unfinished"),
        ({"gold": "paris", "text": "It lies in France. So paris? \n"}, None),
        ({"gold": "paris", "text": "It lies in France. So paris,"}, None),
        ({"gold": "paris", "text": "France. So paris.", "finish_reason": "length"}, None),
        ({"gold": "paris", "text": ""}, "empty"),
        ({"gold": "", "text": "France. So paris."}, "unlabelled"),
    ],
)
def test_kim2023(sample, expected):
    assert reason(**sample, rules="kim2023", answer_kind="text") == expected


def test_no_rules_reject_only_what_is_no_chain():
    assert reason(text="Who knows?", finish_reason="length", rules="none") is None
    assert reason(text="", rules="none") == "empty"


@pytest.mark.parametrize("rules", ["default", "fu2023", "ho2022", "kim2023", "none"])
def test_a_question_with_its_answer_alone_has_no_chain_to_judge(rules):
    direct = {"text": "", "gold": "42", "format": "zero_shot_answer"}
    assert reason(**direct, rules=rules) is None
    assert reason(**direct | {"gold": ""}, rules=rules) == "empty"
    assert reason(**direct | {"format": "zero_shot_cot"}, rules=rules) == "empty"
    assert reason(**direct, rules=rules, require_logprobs=True) == "no_logprobs"
    unreadable = "unreadable_gold_answer" if rules == "default" else None
    assert reason(**direct | {"gold": "many"}, rules=rules) == unreadable
    assert reason(finish_reason="malformed", rules="none") == "malformed"


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_chains_on_held_out_questions_are_dropped_whatever_the_rules(rules, split):
    sample = replace(RIGHT, split=split)
    assert rejection(sample, Filters(rules=rules)) == "held_out"
    assert rejection(sample, Filters(rules="none", held_out_splits=())) is None
    assert rejection(sample, Filters(rules="none", held_out_splits=["dev"])) is None


def test_a_run_with_kl_needs_log_probabilities():
    logprobs = Logprobs(("1200",), (-0.1,), ({"1200": -0.1},))
    assert reason(text="1200", logprobs=logprobs, require_logprobs=True) is None
    assert reason(text="1200", logprobs=None, require_logprobs=True) == "no_logprobs"
    assert reason(text="1200", logprobs=None) is None
    assert reason(text="1", logprobs=None, require_logprobs=True) == "wrong_answer"  # goes first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000 + 200 = 1200.\nThe answer is 1200", None),
        ("1000 + 200 = 1100.\nThe answer is 1200", "inconsistent_step"),
        ("1000 + 200 = 1200, 3 / 2 = 2.\nThe answer is 1200", "inconsistent_step"),
        ("3 / 2 = <<3/2=2>>2.\nThe answer is 1200", "inconsistent_step"),
        ("10 / 3 = 3.33.\nThe answer is 1200", None),  # rounded
        ("He has 1200.\nThe answer is 1200", None),
    ],
)
def test_consistent_steps(text, expected):
    assert reason(text=text, consistent=True) == expected
    assert reason(text=text) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rules", "fu2022"),
        ("answer_kind", "integer"),
        ("similarity", 0.0),
        ("similarity", 1.5),
        ("per_question", 0),
        ("per_question", 1.5),
        ("balance", 0),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(UserError, match=f"{name} = {value!r}; expected "):
        Filters(**{name: value})


def test_held_out_splits_are_several():
    with pytest.raises(UserError, match=r"held_out_splits = 'test'; expected names of splits"):
        Filters(held_out_splits="test")


def test_settings_are_json():
    filters = Filters(rules="kim2023", similarity=None, per_question=4)
    assert Filters(**json.loads(json.dumps(asdict(filters)))) == filters


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # By reading them: the 51 that end do so in "\nThe answer is" and the gold answer, without
        # a full stop; the gold 72 or 10 never stands before the first full stop but in the two
        # chains that put none behind their sentences.
        ("default", {None: 51, "malformed": 1}),
        ("fu2023", {None: 51, "malformed": 1}),
        ("ho2022", {None: 51, "malformed": 1}),
        ("none", {None: 51, "malformed": 1}),
        (
            "kim2023",
            {"kim2023_f3_unfinished": 49, "kim2023_f1_answer_first": 2, "malformed": 1},
        ),
    ],
)
def test_the_real_chains(shared_data, rules, expected):
    samples = read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl")
    filters = Filters(rules=rules, require_logprobs=True, consistent=True)
    assert Counter(rejection(sample, filters) for sample in samples) == expected


def test_reasons_have_one_meaning():
    names = {rule for rules in RULES.values() for rule in rules}
    assert len({name for name, _ in names}) == len(names)
