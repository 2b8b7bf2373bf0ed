"""Tests of the prompt templates, the exemplar draw and the leak check."""

import io
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.errors import UserError
from cot_flax.text.answers import answers_match, extract_answer
from cot_flax.text.calculator import strip_marks
from cot_flax.text.prompts import (
    FORMATS,
    Exemplar,
    ExemplarPool,
    FixedExemplars,
    build_input,
    build_target,
    check_no_leak,
    ends,
    is_cot,
    is_few_shot,
    normalize_question,
)
from cot_flax.text.templates import TEMPLATES
from cot_flax.text.wording import ENGLISH, LANGUAGES, Wording

CHINESE = LANGUAGES["zh"].wording
HENS = Exemplar("How many eggs do 3 hens lay?", "Each lays 2.\n3 * 2 = 6 eggs.\n", "6")
CARS = Exemplar("How many wheels have 5 cars?", "Each has 4.\n5 * 4 = 20 wheels.\n", "20")
QUESTION = "How many legs have 7 dogs?"

# The strings of Fu et al. 2023, spelt out.
PAPER_INPUTS = {
    "zero_shot_answer": "Q: How many legs have 7 dogs? A:",
    "zero_shot_cot": "Q: How many legs have 7 dogs?\nLet's think step by step",
    "few_shot_answer": (
        "Q: How many eggs do 3 hens lay?\nA: The answer is 6\n\n"
        "Q: How many wheels have 5 cars?\nA: The answer is 20\n\n"
        "Q: How many legs have 7 dogs?\nA:"
    ),
    "few_shot_cot": (
        "Q: How many eggs do 3 hens lay?\nLet's think step by step\n"
        "Each lays 2.\n3 * 2 = 6 eggs.\nThe answer is 6\n\n"
        "Q: How many wheels have 5 cars?\nLet's think step by step\n"
        "Each has 4.\n5 * 4 = 20 wheels.\nThe answer is 20\n\n"
        "Q: How many legs have 7 dogs?\nLet's think step by step"
    ),
}


def exemplars_of(format: str) -> tuple[Exemplar, ...]:
    return (HENS, CARS) if is_few_shot(format) else ()


def make_pool(size: int) -> ExemplarPool:
    return ExemplarPool(Exemplar(f"What is {i} + 1?", f"{i} + 1", str(i + 1)) for i in range(size))


@pytest.mark.parametrize("format", FORMATS)
def test_fu2023_template_is_the_papers_string(format):
    built = build_input(QUESTION, format, exemplars_of(format), template=TEMPLATES["fu2023"])
    assert built == PAPER_INPUTS[format]


@pytest.mark.parametrize("format", FORMATS)
def test_default_template_differs_only_between_exemplars(format):
    built = build_input(QUESTION, format, exemplars_of(format))
    assert built == PAPER_INPUTS[format].replace("\n\n", " ### ")


def test_exemplar_order_is_prompt_order():
    built = build_input(QUESTION, "few_shot_answer", (CARS, HENS))
    assert built.index("cars") < built.index("hens") < built.index("dogs")


def test_formats():
    assert [is_cot(name) for name in FORMATS] == [True, True, False, False]
    assert [is_few_shot(name) for name in FORMATS] == [False, True, False, True]


@pytest.mark.parametrize(
    ("rationale", "answer", "expected"),
    [
        ("5 + 3 = 8.", "8", "5 + 3 = 8.\nThe answer is 8"),
        (" 5 + 3 = 8.\n\n", "8", "5 + 3 = 8.\nThe answer is 8"),
        ("5 + 3 = 8.\nThe answer is 8\n\n", "8", "5 + 3 = 8.\nThe answer is 8"),
        ("So the answer is $1,000.", "1000", "So the answer is $1,000."),
        ("The answer is 18", "8", "The answer is 18\nThe answer is 8"),
        ("The answer is 8. Really.", "8", "The answer is 8. Really.\nThe answer is 8"),
        ("", "8", "The answer is 8"),
    ],
)
def test_cot_target(rationale, answer, expected):
    assert build_target(rationale, answer, "zero_shot_cot") == expected
    assert build_target(rationale, answer, "few_shot_cot") == expected


@pytest.mark.parametrize(
    ("rationale", "expected"),
    [
        ("3+5=8个。", "3+5=8个。\n答案是8"),
        ("3+5=8个。\n答案是8。", "3+5=8个。\n答案是8。"),
        ("3+5=8个。\n答案是 ８。", "3+5=8个。\n答案是 ８。"),
        ("3+5=8个。\nThe answer is 8", "3+5=8个。\nThe answer is 8\n答案是8"),
        ("3+5=8个。\n答案是8个。", "3+5=8个。\n答案是8个。\n答案是8"),
    ],
)
def test_target_in_chinese(rationale, expected):
    assert build_target(rationale, "8", "zero_shot_cot", wording=CHINESE) == expected


@pytest.mark.parametrize(
    ("given", "closed"),
    [
        ("答案是", "答案是8"),
        ("la respuesta es", "la respuesta es 8"),
        ("Ответ: ", "Ответ: 8"),
        ("答えは{answer}です。", "答えは8です。"),
    ],
)
def test_a_closing_sentence_of_ones_own(given, closed):
    words = Wording("想一想", given)
    assert build_target("3+5", "8", "few_shot_cot", wording=words) == f"3+5\n{closed}"
    assert build_target("", "8", "few_shot_answer", wording=words) == closed
    assert build_input("多少?", "zero_shot_cot", wording=words) == "Q: 多少?\n想一想"
    shown = build_input("多少?", "few_shot_answer", [HENS], TEMPLATES["fu2023"], words)
    assert shown.split("\n")[1] == f"A: {words.close('6')}"


@pytest.mark.parametrize("words", [{"cue": " "}, {"closing": "{answer}"}, {"markers": ("::",)}])
def test_a_wording_without_words_is_refused(words):
    with pytest.raises(UserError, match="expected words, such as"):
        Wording(**words)


def test_answer_target_has_no_rationale():
    for format in ("zero_shot_answer", "few_shot_answer"):
        assert build_target("5 + 3 = 8.", "8", format) == "The answer is 8"


@pytest.mark.parametrize(
    "call",
    [
        lambda: is_cot("cot"),
        lambda: is_few_shot("in_context"),
        lambda: build_input(QUESTION, "cot"),
        lambda: build_target("", "8", "cot"),
        lambda: build_input(QUESTION, "few_shot_cot"),
        lambda: build_input(QUESTION, "zero_shot_cot", (HENS,)),
    ],
)
def test_what_is_refused(call):
    with pytest.raises(UserError):
        call()


ANSWERS = st.one_of(
    st.integers().filter(lambda n: abs(n) < 10**100).map(lambda n: ("number", str(n))),
    st.decimals(-(10**6), 10**6, places=3).map(lambda n: ("number", str(n))),
    st.integers(1000, 10**9).map(lambda n: ("number", f"{n:,}")),
    st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ").map(lambda letter: ("choice", letter)),
    st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ").map(lambda letter: ("choice", f"({letter})")),
    st.sampled_from(["yes", "no", "Yes", "No"]).map(lambda word: ("yes_no", word)),
    st.from_regex(r"[a-z]+( [a-z]+)*", fullmatch=True).map(lambda words: ("text", words)),
)


@given(rationale=st.text(), answer=ANSWERS, format=st.sampled_from(FORMATS))
def test_target_gives_its_answer_back(rationale, answer, format):
    kind, gold = answer
    target = build_target(rationale, gold, format)
    for mode in ("strict", "flexible"):
        assert answers_match(extract_answer(target, kind=kind, mode=mode), gold, kind=kind)


QUESTIONS = st.lists(st.text(max_size=20), min_size=1, max_size=30)


@given(questions=QUESTIONS, key=st.text(), data=st.data())
def test_draw_never_has_the_item_nor_a_question_twice(questions, key, data):
    pool = ExemplarPool(Exemplar(q, "r", str(i)) for i, q in enumerate(questions))
    question = data.draw(st.sampled_from(questions))
    different = {normalize_question(q) for q in questions} - {normalize_question(question)}
    drawn = [normalize_question(e.question) for e in pool.draw(question, len(different), key)]
    assert Counter(drawn) == Counter(different)  # a draw of all that remain is exactly these
    with pytest.raises(UserError):
        pool.draw(question, len(different) + 1, key)


@given(questions=QUESTIONS, key=st.text(), data=st.data())
def test_draw_does_not_depend_on_pool_order(questions, key, data):
    items = [Exemplar(q, "r", str(i % 3)) for i, q in enumerate(questions)]
    shuffled = data.draw(st.permutations(items))
    n = len(ExemplarPool(items)) - 1
    drawn = ExemplarPool(items).draw(questions[0], n, key)
    assert ExemplarPool(shuffled).draw(questions[0], n, key) == drawn


def test_draw_is_the_same_in_another_process():
    code = """
from cot_flax.text.prompts import Exemplar, ExemplarPool
pool = ExemplarPool(Exemplar(f"What is {i} + 1?", f"{i} + 1", str(i + 1)) for i in range(50))
print([e.answer for e in pool.draw("What is 3 + 1?", 4, "0/train/3")])
"""
    here = [e.answer for e in make_pool(50).draw("What is 3 + 1?", 4, "0/train/3")]
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


def test_draw_depends_on_the_key_and_is_uniform():
    pool = make_pool(10)
    counts = Counter(
        (place, e.answer)
        for key in range(2000)
        for place, e in enumerate(pool.draw("other", 2, str(key)))
    )
    # 2,000 draws of 10 exemplars in 2 places: 200 each, standard deviation 13.4.
    assert len(counts) == 20
    assert all(140 < count < 260 for count in counts.values())


def test_draw_does_not_walk_the_pool():
    pool = make_pool(1000)

    class NoWalk(list):
        def __iter__(self):
            raise AssertionError("a draw must not read the whole pool")

    pool._exemplars = NoWalk(pool._exemplars)
    assert len(pool.draw("What is 3 + 1?", 4, "0")) == 4


@pytest.mark.parametrize(
    "same",
    [
        ("Tom has 5 apples. How many?", "tom has 5 apples , how many"),
        ("Don't go!", "dont go"),
        ("It costs $1,000.", "It costs $1000"),
        ("ice-cream (cold)", "ice cream cold"),
        ("“Why?”", '"why"'),
        ("a\n\nb", "a b"),
        ("５ ﬁsh", "5 fish"),
    ],
)
def test_same_question(same):
    assert normalize_question(same[0]) == normalize_question(same[1])


@pytest.mark.parametrize(
    "different",
    [
        ("What is 3 + 1?", "What is 3 - 1?"),
        ("What is 5?", "What is -5?"),
        ("It costs 3.5", "It costs 35"),
        ("Sort 1,2,3", "Sort 12,3"),
        ("Complete: [ [ {", "Complete: { { ["),
        ("((-5 + 9) * 7)", "(-5 + (9 * 7))"),
        ("Tom has 5", "Tim has 5"),
    ],
)
def test_different_question(different):
    assert normalize_question(different[0]) != normalize_question(different[1])


def test_leak():
    pool = ExemplarPool([HENS, CARS])
    check_no_leak(pool, [QUESTION])
    with pytest.raises(UserError, match=r"1 held-out.*how many eggs do 3 hens lay"):
        check_no_leak(pool, [QUESTION, "how many eggs do 3 hens lay"])
    with pytest.raises(UserError, match="2 held-out"):
        check_no_leak(pool, [CARS.question, HENS.question])


def train_sentencepiece() -> sentencepiece.SentencePieceProcessor:
    """Trains a small model as T5's was: a newline is white space, a few sentences hold `###`."""
    sentences = [text.replace("\n", " ") for text in PAPER_INPUTS.values()] + ["a ### b ### c"] * 3
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(params=["trained here", "t5"])
def tokenizer(request):
    if request.param == "trained here":
        return train_sentencepiece()
    path = request.getfixturevalue("shared_data") / "t5_vocab" / "spiece.model"
    if not path.is_file():
        pytest.skip(f"no T5 vocabulary at {path}")
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def split_by_separator(tokenizer, template: str) -> list[str]:
    """What a student could tell apart: the decoded ids of a few-shot prompt between separators."""
    ids = tokenizer.encode(
        build_input(QUESTION, "few_shot_cot", (HENS, CARS), template=TEMPLATES[template])
    )
    separator = tokenizer.encode(TEMPLATES[template].separator.rstrip(" "))
    parts, rest = [], ids
    starts = [i for i in range(len(ids)) if separator and ids[i : i + len(separator)] == separator]
    for start in reversed(starts):
        parts.insert(0, rest[start + len(separator) :])
        rest = rest[:start]
    return [tokenizer.decode(part).strip() for part in [rest, *parts]]


def test_tokenizer_sees_the_exemplars_apart(tokenizer):
    parts = split_by_separator(tokenizer, "t5")
    shown = [
        build_input(QUESTION, "few_shot_cot", (e,)).split(" ### ")[0].replace("\n", " ")
        for e in (HENS, CARS)
    ]
    assert parts == [*shown, build_input(QUESTION, "zero_shot_cot").replace("\n", " ")]


def test_tokenizer_does_not_see_the_papers_blank_line(tokenizer):
    assert len(split_by_separator(tokenizer, "fu2023")) == 1


def test_separator_has_no_unknown_piece(tokenizer):
    ids = tokenizer.encode(TEMPLATES["t5"].separator)
    assert ids and tokenizer.unk_id() not in ids


def gsm8k(shared_data, split: str) -> list[dict]:
    path = shared_data / "gsm8k" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gsm8k_exemplars(shared_data):
    train = gsm8k(shared_data, "train")
    items = []
    for record in train:
        rationale, answer = record["answer"].split("####")
        items.append(Exemplar(record["question"], strip_marks(rationale), answer.strip()))
    pool = ExemplarPool(items)
    assert len(pool) == 7473  # no question twice
    check_no_leak(pool, [record["question"] for record in gsm8k(shared_data, "test")])
    with pytest.raises(UserError, match="7473 held-out"):
        check_no_leak(pool, [record["question"].upper() for record in train])
    first = train[0]["answer"].split("####")  # the paper's own way to show an item
    paper = re.sub("<<.*?>>", "", first[0]) + "The answer is " + first[1].strip() + "\n\n"
    assert paper in build_input(QUESTION, "few_shot_cot", items[:1], template=TEMPLATES["fu2023"])


def test_fixed_exemplars_keep_their_order_and_leave_the_question_out():
    exemplars = [Exemplar(f"{name}?", "So.", "1") for name in ("Zoe", "Anna", "Mia")]
    fixed = FixedExemplars(exemplars)
    assert len(fixed) == 3
    assert fixed.without("Who?") == tuple(exemplars)
    assert fixed.without(" ANNA ?") == (exemplars[0], exemplars[2])
    with pytest.raises(UserError, match="no fixed exemplars; expected at least one"):
        FixedExemplars([])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("format", FORMATS)
def test_the_ends_are_those_of_input_and_target(name, format):
    template = TEMPLATES[name].worded(ENGLISH)
    shown = [Exemplar("1 + 1?", "It is two.", "2")] if is_few_shot(format) else []
    behind, closing = ends("42", format, template)
    asked = build_input("How many?", format, shown, template)
    said = build_target("Six times seven.", "42", format, template)
    assert asked.endswith(f"How many?{behind}")
    assert said == ("Six times seven." if is_cot(format) else "") + closing
