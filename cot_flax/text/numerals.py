"""Numbers as people and models write them, read exactly.

One grammar serves the answer extraction and the calculator: thousands separators, decimals with or
without a leading zero, exponents, fractions (`3/4`), mixed numbers (`2 1/2`), a minus before or
after a currency sign. A percent sign or a unit after a number does not change it.
"""

import re
from fractions import Fraction

# A value is read only if its numerator and denominator stay below this. Generated text holds runs
# of thousands of digits and exponents such as 1e999999999: they are no answers, and cost no time.
LIMIT = 10**100
_LONGEST_LITERAL = 200
_LONGEST_DECIMAL = 20

UNSIGNED = (
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"|(?<![\w.])\.[0-9]+)"
)
_EXPONENT = r"(?:[eE][+-]?[0-9]+(?!\w))?"
# A minus is a sign only where nothing stands before it that it could be subtracted from.
_SIGN = r"(?<![\w)\]%-])(?<![0-9)%] )[-−]"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN}(?:[$€£¥₹] ?)?)?"
    r"(?:(?P<whole>[0-9]+) (?=[0-9]+[/⁄][0-9]))?"
    rf"(?P<top>{UNSIGNED}{_EXPONENT})(?:[/⁄](?P<bottom>{UNSIGNED}{_EXPONENT}))?"
)


def find_numbers(text: str) -> list[Fraction | None]:
    """Returns the numbers in `text` in order; None stands for one that is beyond `LIMIT` or x/0."""
    return [value for match in _NUMBER.finditer(text) for value in _values(match)]


def read_literal(literal: str) -> Fraction | None:
    """Reads one unsigned literal such as `1,000`, `.5` or `1e3`; None if it is beyond `LIMIT`."""
    mantissa, _, exponent = literal.replace(",", "").lower().partition("e")
    if len(mantissa) > _LONGEST_LITERAL or len(exponent) > 4:
        return None
    return bounded(Fraction(f"{mantissa}e{exponent or 0}"))


def format_number(value: Fraction) -> str:
    """Writes `value` in its normal form: `18`, `-0.75`, or `1/3` where no short decimal exists."""
    for places in range(_LONGEST_DECIMAL + 1):
        scaled = value * 10**places
        if scaled.denominator == 1:
            return _with_point(scaled.numerator, places)
    return f"{value.numerator}/{value.denominator}"


def bounded(value: Fraction) -> Fraction | None:
    """Returns `value`, or None if it is beyond `LIMIT`."""
    return value if abs(value.numerator) < LIMIT and value.denominator < LIMIT else None


def _with_point(scaled: int, places: int) -> str:
    digits = str(abs(scaled)).zfill(places + 1)
    point = len(digits) - places
    return "-" * (scaled < 0) + digits[:point] + ("." + digits[point:] if places else "")


def _values(match: re.Match) -> list[Fraction | None]:
    value = _divide(read_literal(match["top"]), read_literal(match["bottom"] or "1"))
    values: list[Fraction | None] = [value]
    if match["whole"]:
        whole = read_literal(match["whole"])
        if whole is not None and value is not None and value < 1:
            values = [bounded(whole + value)]
        else:  # `10 20/5` is two numbers, not a mixed one
            values = [whole, value]
    if match["sign"] and values[0] is not None:
        values[0] = -values[0]
    return values


def _divide(top: Fraction | None, bottom: Fraction | None) -> Fraction | None:
    return None if top is None or not bottom else bounded(top / bottom)
