"""Tests of reading and writing numbers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text.numerals import LIMIT, bounded, find_numbers, format_number, read_literal


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("18", "18"),
        ("1,000 and 1,234,567.5", "1000 1234567.5"),
        ("1,2,3 1,2345", "1 2 3 1 2345"),
        ("3.14.15 v.5", "3.14 15 5"),
        ("0.5 .5 18.", "0.5 0.5 18"),
        ("3/4 and 1⁄3", "0.75 1/3"),
        ("2 1/2 cups", "2.5"),
        ("10 20/5", "10 4"),
        ("1e3 and 2.5e-1", "1000 0.25"),
        ("3e4x", "3 4"),
        ("-3, −3 (-3) =-3", "-3 -3 -3 -3"),
        ("$-5, -$5, - $5, $5", "-5 -5 5 5"),
        ("-2 1/2", "-2.5"),
        ("21-15 = 6", "21 15 6"),
        ("21 -15", "21 15"),
        ("$21 -$15", "21 15"),
        ("50% -20%", "50 20"),
        ("10 * -3", "10 -3"),
        ("item-3, COVID-19, pages 5-10", "3 19 5 10"),
        ("no numbers", ""),
    ],
)
def test_find_numbers(text, numbers):
    assert [format_number(value) for value in find_numbers(text)] == numbers.split()


@pytest.mark.parametrize("text", ["5/0", "9" * 101, "1e100", "1e-101", "1e999999999", "9" * 10**6])
def test_what_is_beyond_the_limit_is_no_number(text):
    assert find_numbers(text) == [None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(18), "18"),
        (Fraction(-3, 4), "-0.75"),
        (Fraction(1, 20), "0.05"),
        (Fraction(1, 3), "1/3"),
        (Fraction(-7, 3), "-7/3"),
        (Fraction(1, 2**21), "1/2097152"),  # 21 decimals would be needed
        (Fraction(0), "0"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


@given(st.fractions())
def test_what_is_written_is_read_again(value):
    if bounded(value) is not None:
        assert find_numbers(format_number(value)) == [value]


def test_limit():
    assert bounded(Fraction(LIMIT - 1)) == LIMIT - 1
    assert bounded(Fraction(LIMIT)) is None
    assert bounded(Fraction(1, LIMIT)) is None
    assert read_literal("1e99") == 10**99
