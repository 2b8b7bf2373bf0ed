"""Summaries of outputs made up here."""

import pytest

from cot_flax.evaluation import statistics
from cot_flax.evaluation.summary import is_chain, summarize
from cot_flax.text.answers import marked_kind


def rows_of(*texts, gold="5", sample_of=1, kind="number", **others):
    """Rows of zero-shot CoT, of which `sample_of` in turn are samples of one question."""
    made = []
    for place, text in enumerate(texts):
        row = {
            "id": f"q{place // sample_of}",
            "sample": place % sample_of,
            "format": "zero_shot_cot",
        }
        row |= {"text": text, "gold": gold, "answer_kind": kind}
        found = text.removeprefix("The answer is ") if text.startswith("The answer is ") else None
        made.append(row | {"extracted": found, "right": found == gold} | others)
    return made


def said(*answers):
    return [f"The answer is {answer}" if answer else "no idea" for answer in answers]


def test_samples_that_agree_make_no_interval_narrower():
    """Eight samples of each of four questions, one of which has all right: the width of four."""
    found = summarize(rows_of(*said(*"5" * 8, *"6" * 24), sample_of=8))
    assert (found["accuracy"], found["count"], found["questions"]) == (1 / 4, 32, 4)
    ends = statistics.clustered_interval([1, 0, 0, 0], [1, 1, 1, 1])
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(ends)


def test_samples_that_differ_tell_as_much_as_so_many_questions():
    """Each of 100 questions has one of two samples right."""
    found = summarize(rows_of(*said(*"56" * 100), sample_of=2))
    alone = summarize(rows_of(*said(*"56" * 100)))
    for end in ("accuracy_low", "accuracy_high"):
        assert found[end] == pytest.approx(alone[end])


def test_draws_of_one_template_are_alike():
    rows = [
        row | {"cluster": f"t{i // 10}"}
        for i, row in enumerate(rows_of(*said(*"5" * 10, *"6" * 30)))
    ]
    found = summarize(rows)
    assert found["questions"] == 40
    ends = statistics.clustered_interval([10, 0, 0, 0], [10] * 4)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(ends)
    assert ends[1] - ends[0] > 0.5


def test_votes_over_samples_by_hand():
    """Of the first question 2 of 4 samples are right, 1 says 6, 1 nothing; of the second none."""
    rows = rows_of(*said("5", "5", "6", "", "7", "6", "7", ""), sample_of=4)
    found = summarize(rows)
    assert list(found["maj_at_k"]) == list(found["pass_at_k"]) == ["1", "2", "4"]
    assert found["maj_at_k"]["1"]["accuracy"] == pytest.approx(found["accuracy"])
    # Of the 6 pairs of the first: 55 is right, twice 56 half, twice 5 alone right, 6 alone wrong.
    assert found["maj_at_k"]["2"]["accuracy"] == pytest.approx((1 + 2 / 2 + 2) / 6 / 2)
    assert found["maj_at_k"]["4"]["accuracy"] == pytest.approx(1 / 2)
    assert found["pass_at_k"]["2"]["accuracy"] == pytest.approx((1 - 1 / 6) / 2)
    one = found["pass_at_k"]["4"]
    assert one["accuracy_low"] < one["accuracy"] < one["accuracy_high"]


def test_one_sample_has_no_votes():
    assert "maj_at_k" not in summarize(rows_of(*said("5", "6")))


def test_ways_of_reading_stand_side_by_side():
    """Without a marker strict finds nothing: right by flexible alone, and once wrong by it."""
    texts = ["The answer is 5", "2 + 3 = 5", "2 + 3 = 6", "no idea"]
    found = summarize(rows_of(*texts))
    assert found["strict_accuracy"] == 1 / 4
    assert found["flexible_accuracy"] == 2 / 4
    assert found["mode_disagreement_rate"] == 2 / 4


def test_a_gold_that_a_paper_cannot_read_is_never_met():
    found = summarize(rows_of("The answer is 5", gold="many"))
    assert (found["strict_accuracy"], found["flexible_accuracy"]) == (0, 0)


def test_labels_show_who_always_says_the_same():
    golds = ["Page.", "page", "queue", "queue", "queue"]
    rows = [
        {"answer_kind": "text", "gold": gold, "extracted": "queue", "right": gold == "queue"}
        | {"format": "zero_shot_answer", "text": "queue", "id": str(place)}
        for place, gold in enumerate(golds)
    ]
    rows[0]["extracted"] = None
    found = summarize(rows)
    assert found["majority"] == found["accuracy"] == 3 / 5
    assert found["labels"] == {
        "queue": {"gold": 3, "given": 4, "right": 3},
        "page": {"gold": 2, "given": 0, "right": 0},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 18", False),
        ("So, the answer is 18.", False),
        ("18", False),
        ("page", False),
        ("", False),
        ("答案是18", False),
        ("所以答案是18。", False),
        ("3+5=8个，8个苹果还剩下很多。答案是8", True),
        ("一盒鸡蛋有十个，五盒鸡蛋一共有五十个，小刚有二十元，还剩十三元", True),
        ("Tres y dos son cinco. La respuesta es 5", True),
        ("2 + 3 = 5. The answer is 5", True),
        ("The answer is 4 of 5, so one is left. The answer is 1", True),
        ("Ann has two. Bob has three. Together they have five apples and no pears at", True),
    ],
)
def test_chains_are_told_from_bare_answers(text, expected):
    assert is_chain(text) == expected


def test_outputs_of_another_format_are_counted():
    row = {"answer_kind": "number", "gold": "5", "extracted": "5", "right": True}
    texts = ["2 + 3 = 5. The answer is 5"] * 3 + ["The answer is 5"]
    for name, share in (("few_shot_answer", 3 / 4), ("zero_shot_cot", 1 / 4)):
        rows = [row | {"format": name, "text": t, "id": str(i)} for i, t in enumerate(texts)]
        assert summarize(rows)["off_format_rate"] == share


def test_a_template_of_ones_own_tells_chains_from_answers():
    kind = marked_kind("text", ["=>"], "STOP")
    assert is_chain("He is at y because of z => B STOP", kind)
    assert not is_chain("=> B STOP", kind)
    assert is_chain("He is at y because of z. --> B")
