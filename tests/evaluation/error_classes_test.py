"""Tests of the classes of errors, on chains written by hand and on PaLM-540B's."""

import json
from fractions import Fraction

import pytest

from cot_flax.evaluation.error_classes import (
    CLASSES,
    calculated,
    classify,
    is_repetitive,
    summarize,
    tally,
)
from cot_flax.text.scoring import Score, score

EGGS = "Ann has 4 boxes of 6 eggs and eats 3. How many eggs are left?"  # 21


def row(text, gold="21", question=EGGS, kind="number", id="0", **more):
    (found,) = score([text], [gold], kind=kind, mode="flexible")
    return {
        "id": id,
        "question": question,
        "gold": gold,
        "text": text,
        "extracted": found.extracted,
        "right": found.right,
        "answer_kind": kind,
        "format": "zero_shot_cot",
        **more,
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4 * 6 = 24. 24 - 3 = 21. The answer is 21.", "right"),
        ("The answer is 21", "right"),
        ("<<4*6=24>>24 eggs, <<24-3=21>>21 left. #### 21", "right"),
        ("4 * 6 = 25. 25 - 3 = 21. The answer is 21.", "right_by_wrong_steps"),
        ("4 * 6 = 24. " + "So she has 24 eggs. " * 3, "repetition"),
        ("4 * 6 = 24, which is 24." + "3" * 30, "repetition"),
        ("She has some eggs.", "no_answer"),
        ("", "no_answer"),
        ("4 * 6 = 26. 26 - 3 = 23. The answer is 23.", "calculator_slip"),
        ("4 * 6 = 24. 24 - 3 = 20. The answer is 20.", "calculator_slip"),
        ("4 * 6 = 24. 24 - 3 = 21. The answer is 24.", "wrong_answer_read"),
        ("24 - 3 is 21. The answer is 3.", "wrong_answer_read"),
        ("4 * 6 = 24. 24 - 8 = 16. The answer is 16.", "number_from_nowhere"),
        ("4 * 9 = 36. The answer is 36.", "number_from_nowhere"),
        ("4 * 6 = 24. The answer is 24.", "step_missing"),
        ("6 - 3 = 3. 3 + 4 = 7. The answer is 7.", "step_missing"),  # 7 * 3
        ("4 + 6 = 10. 10 - 3 = 7. 7 + 6 = 13. The answer is 13.", "other"),
        ("6 / 3 = 2. 2 + 4 = 6. The answer is 6.", "other"),
        ("She has many, so the answer is 12.", "other"),
    ],
)
def test_each_rule(text, name):
    assert classify(row(text)) == name


@pytest.mark.parametrize(
    ("text", "cut_off", "name"),
    [
        ("4 * 6 = 24. 24 -", True, "cut_off"),
        ("4 * 6 = 24. 24 -", False, "step_missing"),
        ("The answer is 24. Another question: Bob has", True, "other"),
        ("4 * 6 = 24. The answer is 21. Another", True, "right"),
        ("so 24 " * 5, True, "repetition"),
    ],
)
def test_cut_off(text, cut_off, name):
    assert classify(row(text, cut_off=cut_off)) == name


def test_other_kinds_have_the_classes_that_they_can_have():
    asked = {"question": "Which is 3 + 4? (A) 7 (B) 8", "kind": "choice", "gold": "A"}
    assert classify(row("3 + 4 = 7. The answer is (A).", **asked)) == "right"
    assert classify(row("3 + 4 = 8. The answer is (A).", **asked)) == "right_by_wrong_steps"
    assert classify(row("3 + 4 = 7. The answer is (B).", **asked)) == "other"
    assert classify(row("3 + 9 = 12. The answer is (B).", **asked)) == "number_from_nowhere"
    assert classify(row("It is seven.", **asked)) == "no_answer"
    truth = {"question": "Is 3 prime?", "kind": "yes_no", "gold": "yes"}
    assert classify(row("The answer is no.", **truth)) == "other"
    assert classify(row("Hm. " * 9, **truth)) == "repetition"
    assert classify(row("page of it, and then", "page", "?", "text", cut_off=True)) == "cut_off"


@pytest.mark.parametrize(
    ("question", "step"),
    [
        ("Tom reads 4 pages a day. How many in two weeks?", "2 * 7 = 14. 4 * 14 = 56"),
        ("A $50 coat is 20% off.", "50 * 0.8 = 40"),
        ("A $50 coat is 20% off.", "100 - 20 = 80"),
        ("He ate three quarters of 8 cakes.", "3 / 4 * 8 = 6"),
        ("Ann sold 48 clips, then half as many.", "48 + 24 = 72"),
        ("A dozen eggs at 30 cents.", "12 * 0.3 = 3.6"),
    ],
)
def test_numbers_that_a_question_implies_come_from_somewhere(question, step):
    assert classify(row(f"{step}. The answer is 9999.", "5555", question)) == "other"
    found = classify(row(f"{step} and 17 + 1 = 18. The answer is 9999.", "5555", question))
    assert found == "number_from_nowhere"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 + 5 + 5 + 5 + 5 + 5 = 30", False),
        ("1 " * 8, True),
        ("no no no", True),
        ("no no", False),
        ("Then 5 + 3 = 8. Then 8 + 3 = 11. Then 11 + 3 = 14.", False),
        ("|---|---|---|\n----------------------------------------", False),
        ("所以是三。所以是三。所以是三。", True),
        ("10 / 3 = 3." + "3" * 40, True),
        ("", False),
    ],
)
def test_repetition(text, expected):
    assert is_repetitive(text) == expected


def test_the_score_after_the_calculator():
    assert calculated(row("4 * 6 = 26. 26 - 3 = 23. The answer is 23.")) == Score(True, "21")
    assert calculated(row("4 * 6 = 25. 25 - 4 = 21. The answer is 21.")) == Score(False, "20")
    kept = row("4 * 6 = 24. The answer is 24.") | {"extracted": "as it was"}
    assert calculated(kept) == Score(False, "as it was")


def test_counts_shares_and_examples():
    rows = [
        row("4 * 6 = 24. 24 - 3 = 21. The answer is 21.", id="a"),
        row("4 * 6 = 26. 26 - 3 = 23. The answer is 23.", id="b"),
        row("4 * 6 = 25. 25 - 3 = 22. The answer is 22.", id="b"),
        row("4 * 6 = 25. 25 - 4 = 21. The answer is 21.", id="c"),
    ]
    found = tally(rows, examples=2)
    assert list(found) == list(CLASSES) and sum(one.count for one in found.values()) == 4
    assert found["calculator_slip"] == (2, 0.5, [rows[1]])
    assert found["right_by_wrong_steps"].share == 0.25 and found["other"] == (0, 0.0, [])
    summary = summarize(rows)
    assert summary["accuracy_with_calculator"] == 0.75  # the right one by wrong steps is lost
    assert summary["error_classes"] == {name: found[name].count for name in CLASSES}


def palm(shared_data):
    """PaLM-540B's chains on SVAMP's training questions: see `answers_test`."""
    folder = shared_data / "teacher" / "palm540b_svamp"
    chains = [
        chain
        for i in range(2)
        for chain in json.loads((folder / "llm" / f"train_CoT_{i}.json").read_text())
    ]
    lines = (folder / "svamp_train.json").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    return [
        row(chain.partition("\n\n")[0], item["label"], item["input"], id=str(i))
        for i, (item, chain) in enumerate(zip(items, chains, strict=True))
    ]


def test_the_classes_of_palms_chains(shared_data):
    found = {name: one.count for name, one in tally(palm(shared_data)).items() if one.count}
    assert found == {
        "right": 584,
        "right_by_wrong_steps": 12,
        "repetition": 6,
        "no_answer": 1,
        "wrong_answer_read": 13,
        "number_from_nowhere": 1,
        "step_missing": 51,
        "other": 132,
    }


def test_missing_steps_are_found_where_svamps_equation_has_one_more(shared_data):
    """SVAMP's labels are equations: the answer before the last operation lacks one step."""

    def value(words):
        if (word := next(words)) != "(":
            return Fraction(word), None
        (a, _), sign, (b, _), _ = value(words), next(words), value(words), next(words)
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}
        return results[sign], (a, b)

    missing = []
    for one in palm(shared_data):
        before = value(iter(one["gold"].split()))[1]
        nested = one["gold"].count("(") > 1
        answer = None if one["right"] or one["extracted"] is None else Fraction(one["extracted"])
        if nested and answer in before and str(float(answer)) not in one["gold"].split():
            missing.append(classify(one))
    assert (len(missing), missing.count("step_missing")) == (17, 16)


def test_human_solutions_are_right_by_right_steps(shared_data):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    solved = [json.loads(line) for line in lines]
    rows = [row(one["answer"], one["answer"], one["question"]) for one in solved]
    summary = summarize(rows)
    counts = {name: count for name, count in summary["error_classes"].items() if count}
    assert counts == {"right": 1317, "right_by_wrong_steps": 2}
