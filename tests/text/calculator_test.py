"""Tests of the post-hoc calculator."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text.calculator import result_behind, rewrite, strip_marks
from cot_flax.text.equations import find_equations


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (
            "2 + 2 = 5 apples. 5 * 3 = 15 coins.\nThe answer is 15.",
            "2 + 2 = 4 apples. 4 * 3 = 12 coins.\nThe answer is 12.",
        ),
        (
            "3 x $1,200 = $3,500. $3,500 - $500 = $3,000\n#### 3,000",
            "3 x $1,200 = $3,600. $3,600 - $500 = $3,100\n#### 3,100",
        ),
        (
            "48/2 = <<48/2=25>>25, 25+48 = <<25+48=73>>73\n#### 73",
            "48/2 = <<48/2=24>>24, 24+48 = <<24+48=72>>72\n#### 72",
        ),
        ("10-5 = <<10-5=10>>10", "10-5 = <<10-5=5>>5"),
        ("Total: <<2+2=5>>5.", "Total: <<2+2=4>>4."),
        ("5 - 8 = 3\n3 + 2 = 5", "5 - 8 = -3\n-3 + 2 = -1"),
        ("8 - 5 = -$3", "8 - 5 = $3"),
        ("10 / 3 = 3", "10 / 3 = 3.3333"),
        ("10/3 = 4\n4*9 = 36", "10/3 = 3.3333\n3.3333*9 = 29.9997"),
        ("1 / 4 = 0.5", "1 / 4 = 0.25"),
        ("10/50 = 30%", "10/50 = 20%"),
        ("2.50 - 2.24 = 27 cents", "2.50 - 2.24 = 26 cents"),
        # A number that an equation states rightly is no longer the wrong result.
        ("2+2 = 5. 3+2 = 5. 5*2 = 10", "2+2 = 4. 3+2 = 5. 5*2 = 10"),
        ("2+2 = 5. The answer is 5. I have 5 dogs", "2+2 = 4. The answer is 4. I have 5 dogs"),
        # Prose outside equations and answers stays.
        ("2+2 = 5 and 5 dogs", "2+2 = 4 and 5 dogs"),
        ("The answer is 5 of 6. 2+2 = 5", "The answer is 4 of 6. 2+2 = 4"),
        ("4-4 = 1. 8/1 = 8", "4-4 = 0. 8/0 = 8"),
        ("10/3 = 3.3\n3.3*3 = 9.9", "10/3 = 3.3\n3.3*3 = 9.9"),
        ("no arithmetic", "no arithmetic"),
        # Right chains that the finder cannot read stay as they are.
        *[
            (text, text)
            for text in (
                "10^2 + 1 = 101. The answer is 101.",
                "sqrt(16) + 1 = 5. The answer is 5.",
                "√16 + 1 = 5",
                "log(100) + 1 = 3",
                "7 / 2 = 3 remainder 1. The answer is 3.",
                "9 + 5 = 2 (mod 12)",
            )
        ],
        # Of what an edit wrote nothing is changed by itself.
        ("1 + 1 = 3. 4² = 16. ½ of 6 = 3", "1 + 1 = 2. 4² = 16. ½ of 6 = 3"),
        ("2 - 1 = 2. 10² = 100", "2 - 1 = 1. 10² = 100"),
        (r"2 \times 2 = \boxed{5}. The answer is 5", r"2 \times 2 = \boxed{4}. The answer is 4"),
        ("２＋２＝５", "２＋２＝4"),
    ],
)
def test_rewrite(chain, expected):
    assert rewrite(chain) == expected
    assert rewrite(expected) == expected


@given(
    a=st.integers(0, 10**6),
    b=st.integers(1, 10**4),
    operator=st.sampled_from("+-*/"),
    stated=st.integers(-(10**6), 10**6),
)
def test_a_rewritten_equation_is_right(a, b, operator, stated):
    (equation,) = find_equations(rewrite(f"{a} {operator} {b} = {stated}"))
    assert equation.right


@given(st.lists(st.sampled_from([*"125.,()+-*/=x%$ \n", "<<", ">>", " answer is ", "cats"])))
def test_never_raises(pieces):
    assert isinstance(rewrite("".join(pieces)), str)


@pytest.mark.parametrize(
    ("chain", "result"),
    [
        ("6 boxes * 7 eggs =", " 42"),
        ("6*7=", "42"),
        ("3 + 4 = 7. 7 * 2 =", " 14"),
        ("3 * 20 = 60 * 2 =", " 120"),
        ("She pays 5 * $3 =", " $15"),
        ("$20 / 4 =", " $5"),
        ("$20 / $5 =", " 4"),  # how often
        ("€2 + €3 =", " €5"),
        ("$5.50 * 3 =", " $16.5"),
        ("1,200 + 1,300 =", " 2,500"),
        ("Of 10,000 people 3 * 500 =", " 1,500"),
        ("1200 + 1300 =", " 2500"),
        ("5 - 8 =", " -3"),
        ("10 / 3 =", " 3.3333"),
        ("0.00012 * 0.5 =", " 0.00006"),
        ("20% of 50 =", " 10"),
        ("10/50 * 100% =", " 20"),
        ("(3 + 4) * 2 =", " 14"),
        ("48/2 = <<48/2=", "24"),
        ("48/2 = <<48/2=24>>24. 24 + 48 =", None),  # its mark comes next
        ("２＋２＝", "4"),
        *[
            (text, None)
            for text in (
                "",
                "=",
                "6 * 7",
                "6 * 7 = ",  # begun
                "6 * 7 = 4",
                "x =",
                "2x + 3 =",
                "42 =",
                "3 + 4 ==",
                "3 + 4 >=",
                "4 / 0 =",
                "sqrt(16) + 1 =",
                "7500(26/25)^3 =",
                "12:30 + 2 =",
                "6 * =",
            )
        ],
    ],
)
def test_the_result_behind_an_expression(chain, result):
    assert result_behind(chain) == result
    if result is not None:
        assert find_equations(chain + result)[-1].right or chain.startswith("10/50")


def test_strip_marks():
    assert strip_marks("48/2 = <<48/2=24>>24 <<a\nb>>") == "48/2 = 24 <<a\nb>>"


def test_right_chains_stay_as_they_are(shared_data):
    """The teacher's real chains have no calculator error, so not one letter may change."""
    path = shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl"
    for line in path.read_text().splitlines():
        text = json.loads(line)["text"]
        assert rewrite(text) == text
