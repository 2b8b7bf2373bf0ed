"""Tests of finding and judging equations in chains of thought."""

import json
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text.calculator import strip_marks
from cot_flax.text.equations import find_equations


def found(text: str) -> list[tuple[str, str, bool]]:
    return [
        (" ".join(t.text for t in e.operands), e.results[0].text, e.right)
        for e in find_equations(text)
    ]


@pytest.mark.parametrize(
    ("text", "equation"),
    [
        ("so 48/2 = 24 clips", ("48 / 2", "24", True)),
        ("so 48/2 = 25 clips", ("48 / 2", "25", False)),
        ("3 x $1,200 = $3,600.", ("3 x 1,200", "3,600", True)),
        ("(2 + 3) * 4 = 20", ("( 2 + 3 ) * 4", "20", True)),
        ("3 halls * 6 big rooms/hall = 18 rooms", ("3 * 6", "18", True)),
        ("$5/box x 2 boxes = $10", ("5 x 2", "10", True)),
        ("20% of 50 = 10", ("20 % of 50", "10", True)),
        ("5% of 30 is (5/100)*30 = 1.5", ("( 5 / 100 ) * 30", "1.5", True)),
        ("10/50 = 20%", ("10 / 50", "20", True)),
        ("10/50*100 = 20%", ("10 / 50 * 100", "20", True)),
        ("10/50 * 100% = 20", ("10 / 50 * 100 %", "20", True)),
        ("2.50 - 2.24 = 26 cents", ("2.50 - 2.24", "26", True)),
        ("12/60 = 1/5 of it", ("12 / 60", "1/5", True)),
        ("5 - 8 = -3", ("5 - 8", "-3", True)),
        ("He has 20 apples (4 * 5 = 20).", ("4 * 5", "20", True)),
        ("3 * 20 = 30 * 2 = 60", ("30 * 2", "60", True)),
        ("a total of 5 + 3 = 8", ("5 + 3", "8", True)),
        ("5 + 3 = 8 in 2 days", ("5 + 3", "8", True)),
        ("He has 24, 25 + 48 = 73", ("25 + 48", "73", True)),
        ("He got 27 points (3 x 2) + 4 = 10", ("( 3 x 2 ) + 4", "10", True)),
        ("20/240 = 8.333...%", ("20 / 240", "8.333", True)),
        ("<<5+3=8>>", ("5 + 3", "8", True)),
    ],
)
def test_one_equation(text, equation):
    assert found(text) == [equation]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("10/3 = 3.33", True),
        ("10/3 = 3.3", True),
        ("10/3 = 3.34", False),
        ("10/3 = 3", False),  # an integer result must be exact
        ("7/2 = 4", False),
        ("1/8 = 0.13", True),
        ("1/8 = 0.12", True),
        ("2/6 = 1/3", True),
        ("2/6 = 1/4", False),
    ],
)
def test_rounding(text, right):
    assert [equation[2] for equation in found(text)] == [right]


@pytest.mark.parametrize(
    "text",
    [
        "x = 5",
        "20 = 20",
        "2x + 3 = 7",
        "y - 3 + 4 = 10",
        "3 + y = 10",
        "21/7 = 90/x",
        "2 ** 3 = 9",
        "5 / 0 = 1",
        "25 / 1/3 = 75",
        "2 + 1 1/2 = 3",
        "x = 9 because - 18/-2 = 9",
        "100/5 = 5A",
        "5/2 = 2 1/2",
        "12/60 = 1 / 5",
        "1/2 = 5/0",
        "17/3 = 5 and 2/3",
        "17/3 = 5 and (2/3)",
        "$350 000 x 5/100 = 17500",
        "14, 400 / 80 = 180",
        "6:00 + 18 = 24",
        "1/4 cup + 1 and 1/4 cup = 1.5 cups",
        "25 classmates + his 1 teacher + 1 himself = 27",
        "100 + (100*(10/100) = 110",
        "5 + 3\n= 9",
        "5 + 3 = nine",
    ],
)
def test_what_could_be_misread_is_left_alone(text):
    assert found(text) == []


def test_chains_of_equations_in_order():
    text = "5+3 = <<5+3=8>>8 and 8*2 = 17 and 24/2 = 12"
    first = ("5 + 3", "8", True)
    assert found(text) == [first, first, ("8 * 2", "17", False), ("24 / 2", "12", True)]


@given(st.lists(st.sampled_from([*"12.,()+-*/=x%$ \n", "<<", ">>", "of", "cats"])))
def test_never_raises(pieces):
    for equation in find_equations("".join(pieces)):
        assert equation.right in (True, False)


def test_long_texts_take_no_time():
    start = time.perf_counter()
    for piece in ("(", "1(", "1+", "1=", "<<", "1 of ", "cat ", "9"):
        find_equations(piece * 20_000 + "1 = 1")
    assert time.perf_counter() - start < 10  # about 1 s; a quadratic rule takes minutes


def test_gsm8k_annotations(shared_data):
    """All readable annotations are right, and the bare prose gives nearly all of them again."""
    counts = Counter()
    for line in (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines():
        text = json.loads(line)["answer"]
        marks = [e for part in text.split("<<")[1:] for e in find_equations(part.split(">>")[0])]
        prose = find_equations(strip_marks(text))
        stated = Counter(e.stated for e in prose)
        counts["marks"] += len(marks)
        counts["right marks"] += sum(e.right for e in marks)
        counts["found again"] += sum((stated & Counter(e.stated for e in marks)).values())
        counts["prose"] += len(prose)
        counts["right prose"] += sum(e.right for e in prose)
    assert counts["marks"] == counts["right marks"] > 4000
    assert counts["found again"] > 0.98 * counts["marks"]
    assert counts["right prose"] > 0.998 * counts["prose"]
