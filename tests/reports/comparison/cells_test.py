"""Tests of a report's numbers against arithmetic by hand."""

from math import sqrt

import pytest

from cot_flax.reports.comparison import cells
from cot_flax.reports.comparison.cells import Cell


def summary(right, count, unparsed=0):
    return {
        "accuracy": right / count,
        "accuracy_low": 0.0,
        "accuracy_high": 1.0,
        "parse_failure_rate": unparsed / count,
        "count": count,
    }


def test_pool_adds_right_predictions():
    pooled = cells.pool([summary(3, 10, 1), summary(9, 20, 4)], "note")
    assert pooled.value == pytest.approx(12 / 30)
    assert (pooled.count, pooled.note) == (30, "note")
    assert pooled.no_answer == pytest.approx(5 / 30)
    # An end e of Wilson's interval is 1.96 of its own standard deviations from the share.
    for end in (pooled.low, pooled.high):
        assert abs(end - 0.4) == pytest.approx(1.96 * sqrt(end * (1 - end) / 30))
    assert pooled.low < 0.4 < pooled.high


def test_pool_rounds_back_to_whole_predictions():
    third = summary(1, 3) | {"accuracy": 0.3333}
    assert cells.pool([third, third]).value == 2 / 6


def test_pool_counts_the_questions_and_not_their_samples():
    pooled = cells.pool([summary(24, 80) | {"questions": 10}, summary(72, 160) | {"questions": 20}])
    assert (pooled.value, pooled.count) == (96 / 240, 240)
    once = cells.pool([summary(3, 10), summary(9, 20)])
    assert (pooled.low, pooled.high) == pytest.approx((once.low, once.high))


def test_pool_of_nothing_is_no_accuracy():
    assert cells.pool([]) is None


def test_mean_joins_the_intervals():
    mean = cells.mean([Cell(0.9, 0.8, 0.95, 60), Cell(0.5, 0.4, 0.6, 40)])
    assert mean.value == pytest.approx(0.7)
    assert mean.low == pytest.approx(0.7 - sqrt(0.1**2 + 0.1**2) / 2)
    assert mean.high == pytest.approx(0.7 + sqrt(0.05**2 + 0.1**2) / 2)
    assert mean.count == 100


def test_difference_takes_the_far_ends():
    change = cells.difference(Cell(0.5, 0.4, 0.7), Cell(0.9, 0.8, 0.95))
    assert change.value == pytest.approx(-0.4)
    assert change.low == pytest.approx(-0.4 - sqrt(0.1**2 + 0.05**2))
    assert change.high == pytest.approx(-0.4 + sqrt(0.2**2 + 0.1**2))


# Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10: 56/70 - 48/80.
def test_difference_published_value():
    from cot_flax.text.scoring import wilson_interval

    left, right = (Cell(n / of, *wilson_interval(n, of)) for n, of in ((56, 70), (48, 80)))
    assert cells.difference(left, right)[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_how_numbers_are_written():
    cell = Cell(0.6325, 0.5838, 0.6779)
    assert cells.percent(cell.value) == "63.2"
    assert cells.interval(cell) == "58.4–67.8"
    assert (cells.signed(0.031), cells.signed(-0.125)) == ("+3.1", "−12.5")
    assert cells.signed_interval(Cell(-0.1, -0.2, 0.01)) == "−20.0 to +1.0"
