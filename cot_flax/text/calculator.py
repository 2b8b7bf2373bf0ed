"""A calculator for chains of thought: after they were written, or while they are.

Wei et al. 2022 (arXiv 2201.11903, Table 1) evaluate every equation of a generated chain and carry
each corrected result into the later ones: `rewrite`. How much accuracy this wins is a cheap proxy
for their category "calculator error only" (appendix D.2). Theirs is Python's `eval`; this one reads
nothing but arithmetic. Cobbe et al. 2021 (arXiv 2110.14168) have the model write the expression and
`=`, and the calculator the result: `result_behind`.
"""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import groupby, pairwise

from cot_flax.text.answers import ANSWER_MARKER, first_sentence
from cot_flax.text.arithmetic import Token, evaluate, tokenize
from cot_flax.text.equations import Equation, agrees, as_stated, decimals, find_equations
from cot_flax.text.numerals import format_number

_MARK = re.compile(r"<<[^<>\n]*>>")
EQUALS = ("=", "＝")
_CURRENCIES = tuple("$€£¥₹")
_THOUSANDS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
_WRITTEN_DECIMALS = 4

Edits = dict[tuple[int, int], str]  # (start, end) -> new text
Carried = dict[Fraction, Fraction]  # a wrong result -> the right one


def rewrite(text: str) -> str:
    """Replaces wrong results, and carries each into the later equations and the answer sentence.

    A wrong result is carried by its value: wherever a later equation uses that number, it gets the
    right one, until some equation states that number rightly. Results are written with up to four
    decimals.
    """
    edits: Edits = {}
    carried: Carried = {}
    for _, steps in groupby(find_equations(text), key=lambda step: step.results[-1].start):
        known = dict(carried)  # a step and its mark share a result: neither changes the other
        for step in steps:
            _correct(step, known, carried, edits)
    for marker in ANSWER_MARKER.finditer(text):
        for token in tokenize(text, marker.end(), _sentence_end(text, marker.end())):
            _carry(token, carried, edits)
    return _apply(text, edits)


def result_behind(text: str) -> str | None:
    """What a calculator writes behind a text that ends with an expression and `=`.

    None where there is none, or none that can be read for sure. The number follows the chain: with
    a space where one stands before the `=`, `$` where the expression is an amount of money, with
    separators of thousands where the chain has some, and up to four decimals. In a chain with
    GSM8K's marks a result is written inside them alone.
    """
    if not text.endswith(EQUALS) or _is_outside_marks(text):
        return None
    steps = find_equations(text + "0")  # where a result may stand
    if not steps or steps[-1].results[0].start != len(text):
        return None
    step = steps[-1]
    value = 100 * step.value if step.hundredths else step.value
    operands = [token for token in step.operands if token.kind == "number"]
    places = max(_WRITTEN_DECIMALS, *map(decimals, operands))
    commas = bool(_THOUSANDS.search(text))
    written = _spell(round(value, places), money=_currency(step, text), commas=commas)
    return " " * text[:-1].endswith(" ") + written


def strip_marks(text: str) -> str:
    """Removes GSM8K's calculator annotations `<<...>>`."""
    return _MARK.sub("", text)


def _correct(step: Equation, known: Carried, carried: Carried, edits: Edits) -> None:
    value = evaluate([_carry(token, known, edits) for token in step.operands])
    if value is None:  # a result that became 0 is a divisor
        return
    value = as_stated(value, step)
    if agrees(value, step.results[0]):
        carried.pop(step.stated, None)
        return
    carried[step.stated] = _rounded(value, step.results[0])
    for result in step.results:
        if not result.whole:
            continue
        edits[result.start, result.end] = _write(value, result)


def _carry(token: Token, carried: Carried, edits: Edits) -> Token:
    if token.value not in carried or not token.whole:
        return token
    value = carried[token.value]
    edits[token.start, token.end] = _write(value, token)
    return replace(token, value=value)


def _write(value: Fraction, like: Token) -> str:
    return _spell(_rounded(value, like), money="$" * ("$" in like.text), commas="," in like.text)


def _spell(value: Fraction, *, money: str, commas: bool) -> str:
    digits = format_number(abs(value))
    if commas and value.denominator == 1:
        digits = f"{value.numerator:,}".lstrip("-")
    return "-" * (value < 0) + money + digits


def _currency(step: Equation, text: str) -> str:
    """The sign of an amount of money, "" of other results: one amount over another is none."""
    before = {token.start: text[token.start - 1 : token.start] for token in step.operands}
    signs = [sign for sign in before.values() if sign in _CURRENCIES]
    over = any(a.kind == "/" and before[b.start] in signs for a, b in pairwise(step.operands))
    return signs[0] if signs and not over else ""


def _is_outside_marks(text: str) -> bool:
    return text.rfind("<<") <= text.rfind(">>") and "<<" in text


def _rounded(value: Fraction, like: Token) -> Fraction:
    return round(value, max(_WRITTEN_DECIMALS, decimals(like)))


def _sentence_end(text: str, start: int) -> int:
    tail = text[start:]
    skipped = len(tail) - len(tail.lstrip())
    return start + skipped + len(first_sentence(tail.lstrip()))


def _apply(text: str, edits: Edits) -> str:
    for (start, end), new in sorted(edits.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text
