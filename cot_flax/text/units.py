"""Quantities of time and of money in a text, brought to the one unit that a card names."""

import functools
import re
from fractions import Fraction

from cot_flax.text.numerals import (
    COUNTING_WORD,
    UNSIGNED,
    first_number,
    fold_numbers,
    format_number,
)

# Families of units: how many of the smallest one each has, and how it is written.
_FAMILIES: tuple[dict[str, tuple[int, str]], ...] = (
    {
        "seconds": (1, r"seconds?|secs?|s"),
        "minutes": (60, r"minutes?|mins?"),
        "hours": (3600, r"hours?|hrs?|h"),
        "days": (86_400, r"days?"),
        "weeks": (604_800, r"weeks?"),
    },
    {"cents": (1, r"cents?|¢"), "dollars": (100, r"dollars?|bucks?|\$")},
    {"euro cents": (1, r"(?:euro )?cents?"), "euros": (100, r"euros?|EUR|€")},
    {"pence": (1, r"pence|penny|p"), "pounds": (100, r"pounds?|GBP|£")},
)
UNITS = {unit: family for family in _FAMILIES for unit in family}
_SYMBOLS = {"$": "dollars", "€": "euros", "£": "pounds"}
_SCALE = r" (?:hundred|thousand|million|billion|trillion)"
_COUNT = (
    rf"(?:half an?|(?:(?:{COUNTING_WORD})(?:[ -](?:and )?(?:{COUNTING_WORD}))*)(?: and a half)?"
    rf"|an?|[0-9]+[ -][0-9]+/[0-9]+|{UNSIGNED}(?:/[0-9]+|{_SCALE})?)"
)


def in_unit(text: str, unit: str) -> str:
    """Writes quantities that can be had in `unit` in it: `1 hour and 5 minutes` as `65 minutes`.

    Args:
        unit: of `UNITS`. What is of another family, or has no unit, is left as it stands.
    """
    return _pattern(unit).sub(lambda match: _written(match[0], unit), fold_numbers(text))


@functools.cache
def _pattern(unit: str) -> re.Pattern[str]:
    part = _part(unit)
    return re.compile(
        rf"(?<![\w.,]){part}(?:(?:,? and |, | ?){part})*(?P<half> and a half)?", re.IGNORECASE
    )


def _part(unit: str) -> str:
    """One number with its unit, without names of groups."""
    names = "|".join(written for _, written in UNITS[unit].values())
    symbols = "".join(symbol for symbol, name in _SYMBOLS.items() if name in UNITS[unit])
    money = rf"|[{symbols}] ?{UNSIGNED}(?:{_SCALE}|(?:[kmb]|bn)(?!\w))?" if symbols else ""
    return rf"(?:{_COUNT}[ -]?(?:{names})(?![\w^]){money})"


@functools.cache
def _parts(unit: str) -> re.Pattern[str]:
    return re.compile(_part(unit), re.IGNORECASE)


def _written(quantity: str, unit: str) -> str:
    family = UNITS[unit]
    total = Fraction(0)
    size = 0
    for part in _parts(unit).findall(quantity):
        value, size = _value(part, family)
        if value is None:
            return quantity
        total += value * size
    if quantity.casefold().endswith(" and a half"):
        total += Fraction(size, 2)
    return f"{format_number(total / family[unit][0])} {unit}"


def _value(part: str, family: dict[str, tuple[int, str]]) -> tuple[Fraction | None, int]:
    """The number of a quantity, and the size of its unit."""
    if part[0] in _SYMBOLS:
        return _count(part), family[_SYMBOLS[part[0]]][0]
    for size, written in family.values():
        if found := re.fullmatch(rf"({_COUNT})[ -]?(?:{written})", part, re.IGNORECASE):
            return _count(found[1]), size
    return None, 0


def _count(written: str) -> Fraction | None:
    words = written.strip().casefold()
    if words in ("a", "an"):
        return Fraction(1)
    if words in ("half a", "half an"):
        return Fraction(1, 2)
    numbers = first_number(words)
    return numbers[0] if numbers else None
