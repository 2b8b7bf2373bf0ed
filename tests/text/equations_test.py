"""Tests of finding and judging equations in chains of thought."""

import json
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text import equations
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
        # Powers
        ("10^2 + 1 = 101", ("10 ^ 2 + 1", "101", True)),
        ("10² + 1 = 101", ("10 ** 2 + 1", "101", True)),
        ("2 ** 3 = 9", ("2 ** 3", "9", False)),
        ("1.1^2 = 1.2", ("1.1 ^ 2", "1.2", True)),
        ("5 cm^2 + 3 cm^2 = 8 cm^2", ("5 + 3", "8", True)),
        ("5 m² + 3 m² = 8 m²", ("5 + 3", "8", True)),
        # Signs
        ("3 ∗ 4 ⋅ 2 = 24", ("3 ∗ 4 ⋅ 2", "24", True)),
        ("６ ÷ ２ ＝ ３", ("6 ÷ 2", "3", True)),
        # Units glued on, and other scripts
        ("3苹果+5苹果=8苹果", ("3 + 5", "8", True)),
        ("6支一共要付2元×6=12元。", ("2 × 6", "12", True)),
        ("4箱一共有12×4=48盒。", ("12 × 4", "48", True)),
        ("40×2÷5=17名，", ("40 × 2 ÷ 5", "17", False)),
        ("12盒每盒5元共12×5=60元", ("12 × 5", "60", True)),
        ("100×（1－0.2）＝80元", ("100 × ( 1 - 0.2 )", "80", True)),
        ("3개 + 5개 = 8개", ("3 + 5", "8", True)),
        ("3 м + 5 м = 8 м", ("3 + 5", "8", True)),
        ("5km+3km=8km", ("5 + 3", "8", True)),
        ("60km/h * 2 = 120km", ("60 * 2", "120", True)),
        ("$4+$5=$9", ("4 + 5", "9", True)),
        ("4€+5€=9€", ("4 + 5", "9", True)),
        ("￥4 + ￥5 = ￥9", ("4 + 5", "9", True)),
        ("有3个红的，4个白的，3+4=7个", ("3 + 4", "7", True)),
        ("（１，０００＋１）×２＝２，００２", ("( 1,000 + 1 ) × 2", "2,002", True)),
        ("½ of 10 = 5", ("1 / 2 of 10", "5", True)),
        ("3 ÷ ½ = 6", ("3 ÷ ( 1 / 2 )", "6", True)),
        ("1 - ¾ = ¼", ("1 - 3 / 4", "1/4", True)),
        ("**3 + 4 = 7**", ("3 + 4", "7", True)),
        ("**12** + 3 = **15**", ("12 + 3", "15", True)),
        # LaTeX
        (r"\[ 3 \times 4 = 12 \]", ("3 * 4", "12", True)),
        (r"$3 \cdot 4 = 13$", ("3 * 4", "13", False)),
        (r"12 \div 4 = \boxed{3}", ("12 / 4", "3", True)),
        (r"\frac{12}{4} = 3", ("12 / 4", "3", True)),
        (r"\dfrac{3 + 5}{2} = 4", ("( 3 + 5 ) / 2", "4", True)),
        (r"12 \div \frac{1}{2} = 24", ("12 / ( 1 / 2 )", "24", True)),
        (r"1 + \frac12 = \frac{3}{2}", ("1 + 1 / 2", "3/2", True)),
        (r"10^{2} + 1 = 101", ("10 ^ 2 + 1", "101", True)),
        (r"1{,}000 + 1 = 1{,}001", ("1,000 + 1", "1,001", True)),
        (r"3 \text{ apples} \times \$2 = \$6", ("3 * 2", "6", True)),
        (r"50\% \times 8 = 4", ("50 % * 8", "4", True)),
        # What looks like a function is none.
        ("12 square inches / 2 = 6 square inches", ("12 / 2", "6", True)),
        ("during the second half 4 * 85 = 340", ("4 * 85", "340", True)),
        ("5 floors * 5 minutes per floor = 25", ("5 * 5", "25", True)),
        ("441/21 = 21 (Remainder)", ("441 / 21", "21", True)),
        ("10 - 7 = 3 left over", ("10 - 7", "3", True)),
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
        # What is beside a function, a power of a letter, or a suffix
        "sqrt(16) + 1 = 5",
        "√16 + 1 = 5",
        r"\sqrt{16} + 1 = 5",
        "log(100) + 1 = 3",
        "log base 10 of 100 + 1 = 3",
        "f(3) + 4 = 10",
        "the square root of 16 + 1 = 5",
        "the square of the 4 + 1 = 17",
        "5 squared + 1 = 26",
        "half of 10 + 5 = 10",
        "twice 5 + 2 = 12",
        "17 mod 5 + 1 = 3",
        "5! + 1 = 121",
        "3x^2 + 4 = 16",
        "y2 + 3 = 9",
        "a_1 + 3 = 4",
        "5 ± 2 + 1 = 8",
        # Remainders, residues and mixed numbers
        "7 / 2 = 3 remainder 1",
        "7 / 2 = 3 with a remainder of 1",
        "7 / 2 = 3 with 1 left over",
        "7 / 2 = 3 R1",
        "9 + 5 = 2 (mod 12)",
        r"9 + 5 = 2 \pmod{12}",
        r"2\frac{1}{2} * 4 = 10",
        "2½ * 4 = 10",
        "18/5 = 33⁄5",
        # Powers that are none, too large or rounded
        "-2^2 + 1 = 5",
        "2^10^10 = 5",
        "9^64^2 = 5",
        "4^(1/2) + 1 = 3",
        "20%^2 + 1 = 5",
        "7500(26/25)^3 = 8436",
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


@pytest.mark.parametrize(
    "text",
    ["10元的3倍+5=35", "10의 3배 + 5 = 35", "7 ÷ 2 = 3……1", "6÷4=1余2", "2元6角+3元=5元6角"],
)
def test_calculating_words_of_other_scripts_are_left_alone(text):
    assert found(text) == []


def test_chains_of_equations_in_order():
    text = "5+3 = <<5+3=8>>8 and 8*2 = 17 and 24/2 = 12"
    first = ("5 + 3", "8", True)
    assert found(text) == [first, first, ("8 * 2", "17", False), ("24 / 2", "12", True)]


def test_a_step_is_found_where_it_stands():
    text = r"So \(\frac{1}{2} \times 6 = 3\) and ４＋１＝５."
    first, second = find_equations(text)
    assert text[first.results[0].start : first.results[0].end] == "3"
    assert second.written(text) == "４＋１＝５"
    assert [token.whole for token in first.operands] == [True, False, True, False, True]


@given(
    st.lists(
        st.sampled_from(
            [*"12.,()+-*/=x%$ \n^²½{}\\√３＋", "<<", ">>", "of", "cats", r"\frac", "sqrt", "mod"]
        )
    )
)
def test_never_raises(pieces):
    for equation in find_equations("".join(pieces)):
        assert equation.right in (True, False)


@pytest.mark.parametrize("text", ["2 + 3 is 5", r"2 + 3 \implies 5", "2 + 3 = 5", "２＋３＝５"])
def test_what_has_no_sign_of_equality_needs_no_tokens(text, monkeypatch):
    found = find_equations(text)
    monkeypatch.setattr(equations, "_EQUALS", ("",))
    assert find_equations(text) == found


def test_long_texts_take_no_time():
    start = time.perf_counter()
    pieces = ("(", "1(", "1+", "1=", "<<", "1 of ", "cat ", "9", "1^", "1**", "½", "1²", "{", "}")
    for piece in (*pieces, r"\frac{1}{2}", r"\frac{", r"\boxed", "1{,}"):
        find_equations(piece * 5_000 + "1 = 1")
    assert time.perf_counter() - start < 10  # about 1 s; a quadratic rule takes far more


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
