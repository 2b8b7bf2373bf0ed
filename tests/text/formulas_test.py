r"""Tests of formulas as answers: found, brought to a normal form, compared within their time."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.text import formulas
from cot_flax.text.answers import answers_match, extract_answer, gold_answer
from cot_flax.text.formulas import Undecided, normal, same
from cot_flax.text.scoring import Score, score, summarize

ENDLESS = "9^{9^{9^9}}"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(formulas, "CPU_SECONDS", 0.3)
    formulas._verdict.cache_clear()
    yield
    formulas._verdict.cache_clear()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So $x=\frac{1}{2}$. The answer is $\boxed{\frac{1}{2}}$.", "0.5"),
        ("The answer is $(1, 2)$.", "(1,2)"),
        (r"The answer is \(\{1, 2\}\).", r"\{1,2\}"),
        (r"The final answer is \[ x = 5 \]", "x=5"),
        ("The answer is\n$$\nx = 80\n$$", "x=80"),
        ("The answer is 5 apples.", "5"),
        ("The answer is 3/4.", "0.75"),
        ("The answer is [0, 5).", "[0,5)"),
        ("The answer is 2x + 3.", "2x+3"),
        ("The answer is $1$ and $2$.", "1,2"),
        ("The answer is $x=1$ or $x=2$.", "x=1,x=2"),
        ("The answer is $18.", "18"),
        ("The answer is $18.50 per day.", "18.5"),
        (r"The answer is \text{East}.", "east"),
        ("The answer is undefined.", "undefined"),
        (r"\boxed{\text{None}}", "none"),
        ("The answer is sqrt(2)/2.", r"\sqrt{2}/2"),
        (r"The answer is $50$%.", r"50\%"),
        (r"\boxed{5\text{ cm}^2} of paper", "5"),
        ("\\boxed{\\begin{pmatrix}1\\\\\n 2\\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("The answer is $y = mx + b$ where $m=2$", "y=mx+b"),
        ("The answer is 5. I hope the answer is clear.", "5"),
        ("The answer is $5$. The answer is", "5"),
        (r"<think>\boxed{4}</think>\boxed{6}", "6"),
        ("It is $x^2$, and the other $y^2 + 1$.", "y^2+1"),  # without a marker
        ("The answer is unknown.", None),
        ("The answer cannot be determined.", None),
        ("The answer is 5 or 6.", None),
        (r"\boxed{}", None),
        (rf"\boxed{{{'x+' * 300}1}}", None),
    ],
)
def test_a_formula_is_found(text, answer):
    assert extract_answer(text, kind="math", mode="flexible") == answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\text{Friday}", "friday"),
        (r"Hence\n $x > 2$, so \boxed{(2,\infty)}.", r"(2,\infty)"),
        ("all real numbers except 3", "all real numbers except 3"),
        ("1,234", "1234"),
        ("(1,234)", "(1,234)"),  # a pair
        (r"x \ge 3", r"x\ge3"),
        ("3 <= x", r"3\le x"),
        (" ", None),
    ],
)
def test_a_gold_formula_may_be_bare(gold, answer):
    assert gold_answer(gold, kind="math") == answer


@pytest.mark.parametrize(
    ("gold", "found", "right"),
    [
        (r"\frac{1}{3}", "1/3", True),
        (r"\frac{1}{3}", "0.333333", False),  # math-verify alone rounds to six places
        ("0.5x", "x/2", True),
        (r"\sqrt{2}", "1.41421356237309505", False),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        (r"\{1,2\}", "2, 1", True),
        (r"\{0.5,1\}", r"\{1, \frac12\}", True),
        (r"\{1,2\}", r"\{1,3\}", False),
        ("(1,2)", "1, 2", True),
        ("(1,2)", "(2,1)", False),
        ("(1,2)", r"\{1,2\}", False),  # math-verify alone takes a set for a pair
        ("(0.5,1)", r"(\frac{1}{2}, 1)", True),
        ("[1,2)", "[1,2]", False),
        (r"(-\infty,0)\cup(1,2)", "(1,2) ∪ (-∞,0)", True),
        ("x=5", "5", True),
        ("x=5", "y=5", False),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"x\ge 3", "3 <= x", True),
        (r"2^{10}", "2**10", True),
        (r"90^\circ", "90", True),
        (r"\text{east}", "East", True),
        (r"\text{east}", "west", False),
        (r"\frac{1}{0}", "5", False),
    ],
)
def test_formulas_are_compared_by_value_and_exactly(gold, found, right):
    assert answers_match(found, gold, kind="math") is right


@given(st.integers(-999, 999), st.integers(1, 99), st.sampled_from(["\\frac", "\\dfrac"]))
def test_a_fraction_of_latex_is_the_fraction(top, bottom, command):
    sign = "-" * (top < 0)
    latex = rf"{sign}{command}{{{abs(top)}}}{{{bottom}}}"
    assert normal(latex) == normal(f"{top}/{bottom}")
    assert same(normal(latex), normal(f"{2 * top}/{2 * bottom}"))


@given(st.text(alphabet=r"\{}()[]$^_x1.,+-= frac", max_size=40))
def test_a_normal_form_is_its_own(text):
    assert normal(normal(text)) == normal(text)


@pytest.mark.parametrize("endless", [ENDLESS, r"(x+1)^{100000000}", rf"\sin({ENDLESS})"])
def test_what_does_not_end_is_neither_right_nor_wrong(short, endless):
    with pytest.raises(Undecided, match="against 5"):
        same(endless, "5")
    assert same("0.5x", "x/2")  # a new process compares on


def test_a_score_says_that_there_was_no_verdict(short):
    texts = [rf"\boxed{{{ENDLESS}}}", r"\boxed{\frac{10}{2}}", "The answer is 6."]
    scores = score(texts, ["5"] * 3, kind="math", mode="flexible")
    assert scores == [Score(False, ENDLESS, True), Score(True, "5"), Score(False, "6")]
    summary = summarize(scores)
    assert (summary["accuracy"], summary["undecided"], summary["count"]) == (1 / 3, 1, 3)
    assert "undecided" not in summarize(scores[1:])


def _is_half(_):
    return same("x/2", "0.5x")


def test_threads_and_processes_compare(short):
    """math-verify's own limit works in the main thread alone."""
    with ThreadPoolExecutor(4) as pool:
        pairs = [("x", f"{i}x/{i}") for i in range(1, 9)] + [("5", ENDLESS)]
        futures = [pool.submit(same, *pair) for pair in pairs]
        assert all(future.result() for future in futures[:-1])
        assert isinstance(futures[-1].exception(), Undecided)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_is_half, range(2))) == [True, True]
