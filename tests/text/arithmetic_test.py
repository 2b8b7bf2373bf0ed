"""Tests of the expression parser, against Python's own arithmetic on fractions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text.arithmetic import LONGEST_EXPRESSION, evaluate, tokenize


def value(text: str) -> Fraction | None:
    return evaluate(tokenize(text, 0, len(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("10 - 4 - 3", 3),
        ("48/4/2", 6),
        ("2 x 3 X 4 × 5 · 6", 720),
        ("7 ÷ 2", Fraction(7, 2)),
        ("$1,200 - $200.50", Fraction("999.5")),
        ("5 - -3", 8),
        ("-3 + 5", 2),
        ("5 -3", 2),
        ("(5 + 1) -3", 3),
        ("5−3–1", 1),
        ("2(3 + 4)(5)", 70),
        ("50 * 20%", 10),
        ("100% - 20%", 80),
        ("(100% - 20%) * 50", 40),
        (".5 + .25", Fraction(3, 4)),
        ("((((1 + 1))))", 2),
        ("25/1/5", 5),
        ("2^3^2", 512),
        ("2 ** 3", 8),
        ("2(3)^2", 18),
        ("(-2)^2 + 1", 5),
        ("10^-2 * 100", 1),
        ("5 - 2^2", 1),
        ("(1/2)^3", Fraction(1, 8)),
    ],
)
def test_value(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5 +",
        "* 5",
        "(5 + 3",
        "5 + 3)",
        "5 3",
        "-2^2",
        "2^(1/2)",
        "2^1000000",
        "(10^60)^2",
        "0^-1 + 1",
        "5 / 0",
        "5 / (3 - 3)",
        "25 / 1/3",
        "5 + y",
        "9" * 99 + " * " + "9" * 99,
        "(" * 10**5,
        "1" + " + 1" * LONGEST_EXPRESSION,
    ],
)
def test_what_is_not_read(text):
    assert value(text) is None


def test_sign_and_number_are_one_token():
    token = tokenize("is -$1,000 + 2", 0, 14)[1]
    assert (token.text, token.start, token.end, token.value) == ("-$1,000", 3, 10, -1000)


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
    max_leaves=6,  # 43 tokens at most
)


@given(EXPRESSIONS, st.sampled_from("+-*/"), EXPRESSIONS)
def test_same_as_python(left, operator, right):
    text = f"{left} {operator} {right}"
    exact = "".join(f"Fraction({part})" if part.isdigit() else part for part in split_digits(text))
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    assert value(text) == expected


def split_digits(text: str) -> list[str]:
    return text.replace("(", "( ").replace(")", " )").split(" ")
