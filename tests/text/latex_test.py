"""Tests of formulas and layout brought to plain notation."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text.latex import group, plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no markup, 5 < 6", "no markup, 5 < 6"),
        (r"\text{about } \$1{,}250 and 50\%", "about $1,250 and 50%"),
        (r"\left( 12 \times 4 \right) = 48", "( 12 × 4 ) = 48"),
        (r"12\,500 and 45^\circ", "12,500 and 45°"),
        (r"\frac{3}{4}.", "0.75."),
        (r"\frac34 and 2\dfrac12", "0.75 and 2.5"),
        (r"x = -\frac{1}{3}", "x = -1/3"),
        (r"\frac{\sqrt{16}+1}{2}", "2.5"),
        (r"\sqrt[3]{27}", "3"),
        (r"(\frac{1}{2})^2", "0.25"),
        (r"0.1 \cdot 3^2", "0.9"),  # exactly: no binary fractions
        ("2.5 x 10^3 m", "2500 m"),
        ("√16 + 1", "5"),
        ("25 m^2", "25 m^2"),
        ("2**5 and 2 ** 3", "32 and 8"),
        ("**18** 5, **2** 3", "**18** 5, **2** 3"),
        ("10^-2 and 10^(-3)", "0.01 and 0.001"),
        ("2^3^2", "512"),
        ("2^{3}^2", "0/0"),
        (r"5, \frac12 of 10", "5, 0.5 of 10"),
        (r"\frac{1}{0} and \frac{x}{2}", "0/0 and 0/0"),
        (r"5\sqrt{3} and 16\pi", "0/0 and 0/0"),
        (r"9^{9^{9^9}}", "0/0"),
        (r"2 (\frac12)", "0/0"),  # a product or a mixed number
        (r"\frac{1}{2", "0/0"),
    ],
)
def test_plain(text, words):
    assert plain(text).split() == words.split()


def test_group():
    assert group("{a{b}c} d", 0) == "a{b}c"
    assert group("{a", 0) is None


def test_threads_read_what_the_main_thread_reads():
    """math-verify's own time limit raises outside the main thread."""
    formulas = [rf"\frac{{{i}}}{{7}}" for i in range(1, 30)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(plain, formulas)) == list(map(plain, formulas))


NASTY = [
    "(" * 90 + "1" + ")" * 90,
    r"\frac{" * 30 + "1",
    r"\sqrt{" * 25 + "2" + "}" * 25,
    "2^{" * 40 + "2" + "}" * 40,
    "2^" * 90 + "2",
    r"9^{999999999}",
    r"\sqrt{" + "9" * 100 + "}",
    r"\frac12" * 25,
    "3^{999}" * 20,
    r"10000000!^2",
]


@pytest.mark.parametrize("formula", NASTY)
def test_no_formula_takes_long(formula):
    plain(r"\frac12")  # loads the parser
    start = time.perf_counter()
    plain(formula * 3)
    assert time.perf_counter() - start < 2  # about 0.05 s


@given(st.lists(st.sampled_from([r"\frac", r"\sqrt", *"{}()^[]12.,-+ =x\\"])).map("".join))
def test_plain_never_raises(text):
    assert isinstance(plain(text), str)
