"""Tests of scores, their summary and the interval."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.errors import UserError
from cot_flax.text.scoring import Score, score, summarize, wilson_interval


# Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3: Wilson without correction.
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_values(right, total, low, high):
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 10**6), share=st.floats(0, 1), z=st.floats(0.5, 4))
def test_wilson_ends_are_z_deviations_away(total, share, z):
    right = round(share * total)
    for end in wilson_interval(right, total, z):
        assert 0 <= end <= 1
        distance = abs(right / total - end)
        assert distance == pytest.approx(z * math.sqrt(end * (1 - end) / total), abs=1e-6)


@pytest.mark.parametrize(("right", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(right, total):
    with pytest.raises(UserError):
        wilson_interval(right, total)


def test_score_and_summary():
    predictions = ["The answer is 18.", "The answer is 5", "no idea", "I have 3"]
    golds = ["18.00", "#### 6", "7", "3"]
    strict = score(predictions, golds, kind="number", mode="strict")
    assert strict == [Score(True, "18"), Score(False, "5"), Score(False, None), Score(False, None)]
    flexible = score(predictions, golds, kind="number", mode="flexible")
    assert flexible[3] == Score(right=True, extracted="3")
    summary = summarize(strict)
    assert summary == {
        "accuracy": 0.25,
        "accuracy_low": pytest.approx(0.0456, abs=5e-5),
        "accuracy_high": pytest.approx(0.6994, abs=5e-5),
        "parse_failure_rate": 0.5,
        "count": 4,
    }


def test_a_long_gold_of_kind_text_is_right_as_a_whole():
    gold = "apple banana cherry date elder fig"
    texts = [f"{gold.title()}.", f"{gold} grape", f"Sorted: {gold}", f"The answer is {gold}"]
    flexible = score(texts, [gold] * 4, kind="text", mode="flexible")
    assert flexible == [
        Score(True, gold),
        Score(False, None),
        Score(False, None),
        Score(True, gold),
    ]
    strict = score(texts[:1], [gold], kind="text", mode="strict")
    assert strict == [Score(False, None)]


def test_score_uses_the_papers_comparison():
    assert score(["1,000"], ["5,000"], kind="number", mode="fu2023") == [Score(True, "0")]


def test_summary_takes_any_pairs():
    assert summarize((right, "x") for right in (True, False))["accuracy"] == 0.5


def test_what_is_refused():
    with pytest.raises(UserError, match="2 predictions for 1 gold"):
        score(["5", "6"], ["5"], kind="number", mode="strict")
    with pytest.raises(UserError, match="gold answer"):
        score(["5"], ["many"], kind="number", mode="strict")
    with pytest.raises(UserError):
        summarize([])


@given(st.integers(1, 2000), st.data())
def test_the_interval_holds_the_share_itself(total, data):
    right = data.draw(st.integers(0, total))
    low, high = wilson_interval(right, total)
    assert low <= right / total <= high


def test_each_answer_may_have_its_own_kind():
    texts, golds = ["[ANSWER] B", "[ANSWER] Yes.", "[ANSWER] 1080"], ["(B)", "yes", "1,080"]
    scores = score(texts, golds, kind=["choice", "yes_no", "number"], mode="strict")
    assert [found.right for found in scores] == [True] * 3
    assert not score(texts, golds, kind="text", mode="strict")[-1].right
