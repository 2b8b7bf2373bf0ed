"""The answer rules of three papers, defects included, so that published figures stay comparable.

A rule is for comparison only: `fu2023` reads `1,000` as 0 and drops every minus sign, `ho2022`
holds `18.00` for wrong where the gold is `18` and finds the choice B in `Bank (D)`, `kim2023`
misses an answer that ends in a full stop. Where a paper's rule differs by data set, the docstring
says what it goes by here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A paper's way to read an answer, and to compare what it read with a gold answer.

    Attributes:
        extract: (text, kind) -> the answer or None.
        matches: (extracted answer, gold, kind) -> whether it counts as right.
    """

    extract: Callable[[str, str], str | None]
    matches: Callable[[str, str, str], bool]


_NUMBERS = ("number", "float")


def _fu_extract(text: str, kind: str) -> str | None:
    """Fu et al. 2023: the last unsigned number (maths), or what follows `the answer is` (BBH, CoT
    prompt).

    The number is given as a float's shortest form: the paper compares floats.
    """
    if kind not in _NUMBERS:
        parts = text.split("the answer is")
        return parts[1] if len(parts) > 1 else None
    numbers = re.findall(r"\d*\.?\d+", text)
    return str(float(numbers[-1])).removesuffix(".0") if numbers else None


def _fu_matches(found: str, gold: str, kind: str) -> bool:
    """The same rule reads the gold number; elsewhere the gold need only be a substring (BBH)."""
    return found == _fu_extract(gold, kind) if kind in _NUMBERS else gold in found


def _ho_extract(text: str, kind: str) -> str | None:
    """Ho et al. 2022, template `ft_cot_token`: the first candidate after `-->`, else the last of
    the text.

    Choices are those of the kind: `choice A-E` for AQuA and CommonsenseQA, `choice A-C` for
    tracking shuffled objects. Of kind `choice` they are A-F, date understanding's range.
    """
    before, marker, after = text.partition("-->")
    candidates = _ho_candidates(after if marker else before, kind)
    if not candidates:
        return None
    return candidates[0] if marker else candidates[-1]


def _ho_candidates(text: str, kind: str) -> list[str]:
    if kind in _NUMBERS:
        return re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    if choice := re.fullmatch(r"choice(?: (A-[B-Z]))?", kind):
        return re.findall(f"[{choice[1] or 'A-F'}]", text)
    if kind == "yes_no":
        words = re.sub(r"[\"'\n.\s:,]", " ", text.lower()).split(" ")
        return [word for word in words if word in ("yes", "no")]
    letters = re.sub(r"[\"'\n.\s]", "", text)
    return [letters] if letters else []


def _ho_matches(found: str, gold: str, kind: str) -> bool:
    """Equal strings; floats to 1e-6 of kind `float` (AddSub, SVAMP, SingleEq), and where the gold
    has a point."""
    if kind in _NUMBERS:
        gold = gold.replace(",", "")
        if re.fullmatch(r"-?\d+\.\d+" if kind == "number" else r"-?\d+(?:\.\d+)?", gold):
            return abs(float(found) - float(gold)) <= 1e-6
    return found == (gold.lower() if kind == "yes_no" else gold)


def _kim_extract(text: str, kind: str) -> str | None:
    """Kim et al. 2023: what follows the last `[ANSWER]`, lower case, no brackets or commas."""
    answer = text.rsplit("[ANSWER]", 1)[-1].strip().lower()
    return re.sub(r"[(),]", "", answer) or None


def _kim_matches(found: str, gold: str, kind: str) -> bool:
    """Exact match with the gold, brought to the same form."""
    return found == re.sub(r"[(),]", "", gold.strip().lower())


RULES = {
    "fu2023": Rule(_fu_extract, _fu_matches),
    "ho2022": Rule(_ho_extract, _ho_matches),
    "kim2023": Rule(_kim_extract, _kim_matches),
}
