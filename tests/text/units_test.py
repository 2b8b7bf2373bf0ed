"""Tests of quantities brought to one unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text.answers import answers_match, extract_answer, gold_answer
from cot_flax.text.units import in_unit


@pytest.mark.parametrize(
    ("unit", "text", "answer"),
    [
        ("minutes", "2 hours", "120"),
        ("minutes", "1 hour and 30 minutes", "90"),
        ("minutes", "2h 15min", "135"),
        ("minutes", "two and a half hours", "150"),
        ("minutes", "an hour and a half", "90"),
        ("minutes", "half an hour", "30"),
        ("minutes", "1 1/2 hours", "90"),
        ("minutes", "**2 hours**", "120"),
        ("minutes", "-2 hours", "-120"),
        ("minutes", "90", "90"),
        ("minutes", "5 km", "5"),
        ("hours", "60 + 30 = 90 minutes", "1.5"),
        ("hours", "20 minutes", "1/3"),
        ("hours", "3 days", "72"),
        ("seconds", "2 hrs", "7200"),
        ("days", "2 weeks", "14"),
        ("dollars", "500 cents", "5"),
        ("dollars", "5 dollars and 25 cents", "5.25"),
        ("dollars", "$5 million", "5000000"),
        ("dollars", "5 euros", "5"),  # not exchanged
        ("cents", "$1,234.50", "123450"),
        ("cents", "5 million dollars", "500000000"),
        ("pounds", "50 p", "0.5"),
        ("euros", "€2.50", "2.5"),
    ],
)
def test_a_card_names_the_unit(unit, text, answer):
    kind = f"number in {unit}"
    assert extract_answer(f"The answer is {text}.", kind=kind, mode="strict") == answer
    assert extract_answer(text.strip("*"), kind=kind, mode="flexible") == answer


def test_the_last_quantity_of_a_text_counts():
    kind = "number in minutes"
    text = "He has 3 apples and needs 2 hours"
    assert extract_answer(text, kind=kind, mode="flexible") == "120"
    assert gold_answer("1 hour 5 minutes", kind=kind) == "65"
    assert answers_match("90", "1.5 hours", kind=kind)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_and_seconds_add_up(hours, minutes, seconds):
    text = f"{hours} hours, {minutes} minutes and {seconds} seconds"
    assert in_unit(text, "seconds") == f"{3600 * hours + 60 * minutes + seconds} seconds"
