"""Why an answer is wrong: every prediction in one class, after the papers' error analyses.

Wei et al. 2022 (arXiv 2201.11903, appendices A.1 and D.2) sorted some fifty wrong chains of a model
by hand. These rules read nothing but arithmetic, so that they are proxies: they hold for what they
name, and what a reader would have to understand is `other`.

A wrong prediction has the first class of these that fits:

1. `repetition`: it goes round in circles.
2. `cut_off`: it met the limit of tokens before it stated an answer.
3. `no_answer`: none could be read.
4. `calculator_slip`: with its equations calculated anew (`calculator.rewrite`) it is right.
5. `wrong_answer_read`: its equations are right and the last one gives the gold answer, but another
   answer was stated, or read.
6. `number_from_nowhere`: an equation has an operand that neither the question nor an earlier
   equation gives, and no common unit does.
7. `step_missing`: one more operation on the answer and a number of question or chain gives gold.
8. `other`: mostly misunderstood questions.

A right one whose equations are not all right is `right_by_wrong_steps`, all others are `right`.
Classes 5 and 7 are of numbers alone; a class that needs equations does not fit a text without.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from operator import eq
from typing import NamedTuple

from cot_flax.text.answers import extract_answer, family, gold_answer
from cot_flax.text.arithmetic import evaluate
from cot_flax.text.calculator import rewrite, strip_marks
from cot_flax.text.equations import Equation, find_equations
from cot_flax.text.numerals import find_numbers, spelt_numbers
from cot_flax.text.scoring import Score, score

CLASSES = (
    "right",
    "right_by_wrong_steps",
    "repetition",
    "cut_off",
    "no_answer",
    "calculator_slip",
    "wrong_answer_read",
    "number_from_nowhere",
    "step_missing",
    "other",
)
"""In the order of tables."""

_ROUNDS, _BARE_ROUNDS = 3, 8  # of a phrase with letters, and of one without: `5 + 5 + 5 + 5`
_LONGEST_PHRASE = 40
_RUN = re.compile(r"([^\W_]{1,8}?)\1{19}")
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese: each character is a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_SAID_EQUAL = re.compile(r"(?<=[0-9)%])\s+(?:is|are|equals|makes|gives|leaves)\s+(?=[$0-9])")
_CONSTANTS = (0, 1, 2, 100)
_UNITS = {  # what a word lets a chain use: months in a year, days in a month
    r"week": (7, 52, 4, 5),
    r"weekday|school|work": (5,),
    r"weekend": (2,),
    r"day|daily|night": (24, 7, 30, 31, 365),
    r"hour|hr|clock|[ap]\.?m\b": (60, 24, 12),
    r"minute|min\b|second": (60, 3600),
    r"month": (12, 30, 31, 4, 28, 29),
    r"year|annual|age|birthday": (12, 52, 365, 366),
    r"decade": (10,),
    r"century|centuries": (100,),
    r"dozen": (12,),
    r"pair|couple|both|twin": (2,),
    r"thrice|triple|third": (3,),
    r"quarter|quadruple": (4, 25, 15),
    r"foot|feet|inch|yard": (12, 3, 36),
    r"ounce|pound|\boz\b|\blb": (16, 8),
    r"gallon|quart|pint|cup": (4, 2, 8, 16),
    r"mile": (5280, 1760),
    r"dollar|cent|coin|penny|pennies|\$": (5, 10, 25, 50),
    r"\bk|kilo|milli|meter|metre|gram|lit": (1000,),
    r"centi|\bcm": (10,),
    r"square|rectang|dog|cat|leg|chair|table": (4,),
    r"triang|tricycle": (3,),
    r"insect|hexagon": (6,),
    r"spider|octopus": (8,),
    r"die\b|dice": (6,),
    r"circle|angle|degree": (90, 180, 360),
}
_IMPLIED = [(re.compile(rf"(?:{word})", re.I), numbers) for word, numbers in _UNITS.items()]
_MULTIPLES = {r"half|halv": Fraction(1, 2), r"twice|doubl": 2, r"thrice|tripl|three times": 3}
_MULTIPLES |= {r"third": Fraction(1, 3), r"quarter|fourth": Fraction(1, 4)}
_BEHIND_EQUALS = re.compile(r"=\s*(\$?[-−]?\$?[0-9][0-9.,]*)")
_PERCENT = re.compile(r"%|percent|per cent", re.I)


class Tally(NamedTuple):
    """The predictions of one class.

    Attributes:
        count: how many.
        share: of all predictions.
        examples: the first few rows, each of another question.
    """

    count: int
    share: float
    examples: list[Mapping]


def classify(row: Mapping, *, mode: str = "flexible") -> str:
    """The one class of a prediction: see the module.

    Args:
        row: a row of `evaluate.predict`; others' predictions may lack `cut_off`.
        mode: of the answers' reading, as in `extract_answer`.
    """
    text, kind = row["text"], row["answer_kind"]
    chain = _SAID_EQUAL.sub(" = ", strip_marks(text))
    if row["right"]:
        steps = find_equations(strip_marks(text))
        return "right" if all(step.right for step in steps) else "right_by_wrong_steps"
    if is_repetitive(text):
        return "repetition"
    if row.get("cut_off") and extract_answer(text, kind=kind, mode="strict") is None:
        return "cut_off"
    if row["extracted"] is None:
        return "no_answer"
    if calculated(row, mode=mode).right:
        return "calculator_slip"
    steps = find_equations(chain)
    if not steps:
        return "other"
    gold = _number(gold_answer(row["gold"], kind=kind)) if family(kind) == "number" else None
    if gold is not None and steps[-1].stated == gold and all(step.right for step in steps):
        return "wrong_answer_read"
    given = _given(row["question"], chain)
    if _from_nowhere(steps, chain, given):
        return "number_from_nowhere"
    if gold is not None and _is_one_step_away(row["extracted"], gold, steps, row["question"]):
        return "step_missing"
    return "other"


def calculated(row: Mapping, *, mode: str = "flexible") -> Score:
    """How a row is scored once a calculator has corrected its equations, with what follows.

    Arguments are those of `classify`. A text that needs no correction keeps its score, and so does
    one whose gold answer cannot be read, as a paper's own mode allows.
    """
    text = rewrite(row["text"])
    if text == row["text"] or gold_answer(row["gold"], kind=row["answer_kind"]) is None:
        return Score(row["right"], row["extracted"])
    (found,) = score([text], [row["gold"]], kind=row["answer_kind"], mode=mode)
    return found


def tally(
    rows: Sequence[Mapping], *, mode: str = "flexible", examples: int = 3
) -> dict[str, Tally]:
    """Counts, shares and some examples of every class, in the order of `CLASSES`."""
    found: dict[str, list[Mapping]] = {name: [] for name in CLASSES}
    for row in rows:
        found[classify(row, mode=mode)].append(row)
    return {
        name: Tally(len(some), len(some) / len(rows) if rows else 0.0, _first(some, examples))
        for name, some in found.items()
    }


def summarize(rows: Sequence[Mapping], *, mode: str = "flexible") -> dict:
    """For results.json: `accuracy_with_calculator`, and `error_classes`, the counts by class."""
    names = [classify(row, mode=mode) for row in rows]
    # A right answer after right equations stays what it is.
    right = [
        name in ("right", "calculator_slip") or calculated(row, mode=mode).right
        for name, row in zip(names, rows, strict=True)
    ]
    counts = Counter(names)
    return {
        "accuracy_with_calculator": sum(right) / len(rows),
        "error_classes": {name: counts[name] for name in CLASSES},
    }


def is_repetitive(text: str) -> bool:
    """Whether a phrase of up to 40 words comes three times in a row.

    One without letters has to come eight times, for `5 + 5 + 5 + 5` is a sum; parts of a word, such
    as the digits of `3.333...`, 20 times.
    """
    if _RUN.search(text):
        return True
    words = _WORD.findall(text.casefold())
    for size in range(1, min(_LONGEST_PHRASE, len(words) // _ROUNDS) + 1):
        start = 0
        for same, run in groupby(map(eq, words, words[size:])):
            length = len(list(run))
            if same and length >= size * (_ROUNDS - 1):
                lettered = any(c.isalpha() for word in words[start : start + size] for c in word)
                if length >= size * ((_ROUNDS if lettered else _BARE_ROUNDS) - 1):
                    return True
            start += length
    return False


def _first(rows: Sequence[Mapping], most: int) -> list[Mapping]:
    return list({row["id"]: row for row in reversed(rows)}.values())[::-1][:most]


def _number(answer: str | None) -> Fraction | None:
    values = find_numbers(answer) if answer else []
    return values[0] if len(values) == 1 else None


def _numbers(question: str) -> Iterator[Fraction]:
    yield from (value for value in find_numbers(question) if value is not None)
    yield from spelt_numbers(question)


def _given(question: str, chain: str) -> set[Fraction]:
    """Numbers that need no computing: the question's in their usual forms, and units'."""
    both = f"{question} {chain}"
    given = {Fraction(value) for value in _CONSTANTS}
    for word, values in _IMPLIED:
        if word.search(both):
            given |= {Fraction(value) for value in values}
    share = bool(_PERCENT.search(both))
    factors = [factor for word, factor in _MULTIPLES.items() if re.search(word, both, re.I)]
    for value in _numbers(question):
        given |= {value * factor for factor in factors}
        given |= {value, value.numerator, value.denominator, value / 100, value * 100}
        given |= {1 - value} if 0 < value < 1 else set()
        given |= {100 - value, 100 + value, 1 - value / 100, 1 + value / 100} if share else set()
    return given


def _from_nowhere(steps: Iterable[Equation], chain: str, given: set[Fraction]) -> list[Fraction]:
    """Operands that are neither given nor were computed before: no number behind an earlier `=`."""
    computed = [(match.end(), match[1]) for match in _BEHIND_EQUALS.finditer(chain)]
    stated = [(end, value) for end, text in computed for value in find_numbers(text) if value]
    strangers = []
    for token in (token for step in steps for token in step.operands if token.kind == "number"):
        known = {abs(value) for end, value in stated if end <= token.end}
        known |= {factor * value for value in known for factor in (100, Fraction(1, 100))}
        if abs(token.value) not in given | known:
            strangers.append(token.value)
    return strangers


def _is_one_step_away(
    answer: str, gold: Fraction, steps: Sequence[Equation], question: str
) -> bool:
    """Whether gold is answer + x, answer - x, x - answer, answer * x, answer / x or x / answer.

    What comes out whatever x is, as where it is taken away again after it was added, is no missing
    step; nor is a result that was already there.
    """
    reached = _number(answer)
    results = {step.stated for step in steps}
    if reached is None or gold in results:
        return False
    operands = {token.value for step in steps for token in step.operands if token.kind == "number"}
    others = {*_numbers(question), *results - {reached}, *(x for x in operands if x is not None)}
    for x in others:
        changed = _combined(_recalculated(steps, reached, x), x + 1)
        before = _combined(reached, x)
        if any(a == gold != b for a, b in zip(before, changed, strict=True)):
            return True
    return False


def _recalculated(steps: Iterable[Equation], answer: Fraction, x: Fraction) -> Fraction:
    """The answer that the steps would have led to if `x` were one more."""
    values = {x: x + 1}
    for step in steps:
        operands = [
            replace(token, value=values.get(token.value)) if token.value in values else token
            for token in step.operands
        ]
        value = evaluate(operands)
        if value is not None and value != step.value:
            values[step.stated] = value
    return values.get(answer, answer)


def _combined(a: Fraction, x: Fraction) -> tuple[Fraction | None, ...]:
    return a + x, a - x, x - a, a * x, a / x if x else None, x / a if a else None
