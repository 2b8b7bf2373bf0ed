"""Finding the arithmetic steps `a op b = r` in a chain of thought, and judging them.

The finder would rather miss a step than misread one: what it takes for an equation, the calculator
may rewrite. On the 8,792 human solutions of GSM8K it finds 98.3% of the annotated steps in the bare
prose, and 99.86% of what it finds is right, as are all 27,556 steps that it reads inside the
`<<...>>` marks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import dropwhile, pairwise

from cot_flax.text.arithmetic import Token, evaluate, tokenize

_OPERAND_ENDS = ("number", ")", "%")
_OPERATORS = ("+", "-", "*", "/", "^")
_LEFT_OPEN = (*_OPERATORS, "(")
_MOST_UNIT_WORDS = 4
_NOT_UNITS = ("because", "is", "are", "so")
_HUNDREDTHS = ("%", "cents", "cent")
_FUNCTIONS = (
    "sqrt", "root", "log", "ln", "exp", "sin", "cos", "tan", "twice", "double", "triple"
)  # fmt: skip
_OF_FUNCTIONS = ("half", "square", "cube")  # followed by `of`; `5 square feet` has a unit
_SUFFIXES = ("squared", "cubed", "factorial", "choose", "mod", "modulo")  # behind their operand
_BETWEEN = ("of", "the", "base")  # a function and its argument: the square root of the 16
_REMAINDERS = ("remainder", "rem", "mod", "modulo")
_OPAQUE = frozenset("√∛∑∏∫±∓\\{}_")
_EQUALS = ("=", "＝", "\\")  # of which the last begins a command of LaTeX, such as `\implies`
# Parts of words that calculate in Chinese, Japanese and Korean: `10元的3倍+5`.
_CALCULATE = ("的", "倍", "分之", "折", "乘", "除", "加", "减", "減", "余", "餘", "배")


@dataclass(frozen=True)
class Equation:
    """A step `expression = result` of a text.

    Attributes:
        operands: the tokens of the expression.
        results: the stated result, and in GSM8K's `<<6*7=42>>42` its repetition behind the mark.
        hundredths: the result counts per cent or cents, the expression may count wholes.
        value: what the expression gives.
    """

    operands: tuple[Token, ...]
    results: tuple[Token, ...]
    hundredths: bool
    value: Fraction

    @property
    def stated(self) -> Fraction:
        """The result as the text states it."""
        return self.results[0].value

    @property
    def right(self) -> bool:
        """Whether the stated result is right: see `agrees`."""
        return agrees(as_stated(self.value, self), self.results[0])

    def written(self, text: str) -> str:
        """The step as it stands in its text."""
        return text[self.operands[0].start : self.results[0].end]


def find_equations(text: str) -> list[Equation]:
    """Returns the equations `a op b (op c ...) = r` of `text`, in order of their results.

    Operators are + - * x × · / ÷ ^ ** and `of` after a number, and LaTeX's; a bracket right behind
    an operand multiplies. What stands beside a function (`sqrt(16)`) is no equation, nor is a
    quotient with a remainder or a residue (`7 / 2 = 3 remainder 1`). `$`, thousands separators,
    per cent and a few words of unit behind a number (`3 halls * 6 rooms/hall`, `2元×6=12元`) are
    understood. In
    `3 * 20 = 30 * 2 = 60` only the last equation states a result. A step inside a GSM8K mark
    `<<...>>` is an equation of its own: `strip_marks` first to count each step once.
    """
    if not any(sign in text for sign in _EQUALS):  # most prose: tokens take long
        return []
    tokens = tokenize(text, 0, len(text))
    found = list(_equations([token for token in tokens if token.kind != "mark"]))
    for place, token in enumerate(tokens):
        if token.kind == "mark":
            inside = _equations(tokenize(text, token.start + 2, token.end - 2))
            echo = tuple(after for after in tokens[place + 1 : place + 2] if after.kind == "number")
            found += [replace(step, results=step.results + echo) for step in inside]
    return sorted(found, key=lambda step: step.results[-1].start)


def agrees(value: Fraction, stated: Token) -> bool:
    """Says whether `value`, rounded to the decimals of `stated`, is what is stated.

    A result stated as an integer or a fraction must be exact: `10 / 3 = 3` is wrong, `10 / 3 = 3.3`
    right.
    """
    places = decimals(stated)
    error = abs(value - stated.value)
    return error == 0 if places == 0 else error * 2 * 10**places <= 1


def as_stated(value: Fraction, step: Equation) -> Fraction:
    """Brings a value of the expression of `step` to the unit of its result.

    Both `10 / 50 = 20%` and `10 / 50 * 100 = 20%` are written: the reading nearer to the result is
    taken.
    """
    readings = (value, 100 * value) if step.hundredths else (value,)
    return min(readings, key=lambda reading: abs(reading - step.stated))


def decimals(number: Token) -> int:
    """Returns how many decimals a number is written with."""
    return len(number.text.partition(".")[2])


def _equations(tokens: Sequence[Token]) -> Iterator[Equation]:
    run: list[Token] = []  # the expression that is being read, without its units
    units = 0  # the words of unit since the last operand
    for place, token in enumerate(tokens):
        after_operand = bool(run) and run[-1].kind in _OPERAND_ENDS
        if token.kind == "=":
            yield from _equation(run, tokens, place)
            run, units = [], 0
        elif token.text == "of" and after_operand and not units:
            run.append(replace(token, kind="*"))
        elif token.kind == "word" and after_operand and _is_unit(token, units):
            units += 1
        elif token.kind in ("word", "other"):
            # A token that cannot be read, kept in the run, spoils what follows on a cut expression.
            applied = bool(run) and run[-1].kind == "word" and token.text in _BETWEEN
            cut = (
                applied
                or (run and run[-1].kind in _LEFT_OPEN)
                or _splits_number(tokens, place)
                or _is_applied(tokens, place, after_operand=after_operand)
            )
            run, units = [run[-1] if applied else token] * bool(cut), 0
        elif token.kind == "(" and units:
            run, units = [token], 0
        elif token.kind == "number" and after_operand:
            # So do two numbers in a row: `350 000 * 5`, `1/4 cup + 1 and 1/4 cup`.
            cut = not units or any(part.kind in _OPERATORS for part in run)
            run, units = run[-1:] * cut + [token], 0
        else:
            run.append(token)
            units = 0


def _equation(run: Sequence[Token], tokens: Sequence[Token], equals: int) -> Iterator[Equation]:
    result = _result(tokens[equals + 1 : equals + 12])
    if result is None:
        return
    for start in range(len(run)):
        if start and not _opens_aside(run, start):
            continue
        value = evaluate(run[start:])
        if value is not None:
            number, hundredths = result
            hundredths |= any(a.text == "100" and b.kind == "%" for a, b in pairwise(run))
            step = Equation(tuple(run[start:]), (number,), hundredths, value)
            if step.right or not _may_mean_else(step, tokens[equals + 2 : equals + 8]):
                yield step
            return


def _opens_aside(run: Sequence[Token], start: int) -> bool:
    """Says whether an aside such as `20 apples (4 * 5 = 20)` begins at `start`."""
    return run[start - 1].kind == "(" and (start == 1 or run[start - 2].kind in _OPERAND_ENDS)


def _is_unit(word: Token, units_before: int) -> bool:
    known = word.text in _NOT_UNITS or word.text.casefold() in _SUFFIXES
    return units_before < _MOST_UNIT_WORDS and not known and not _calculates(word)


def _calculates(word: Token) -> bool:
    return not word.text.isascii() and any(part in word.text for part in _CALCULATE)


def _is_applied(tokens: Sequence[Token], place: int, *, after_operand: bool) -> bool:
    """Says whether the token at `place` changes what is beside it: `f(3)`, `√16`, `5 squared`."""
    token, following = tokens[place], tokens[place + 1 : place + 2]
    name = token.text.casefold()
    if name in _FUNCTIONS or name in _OPAQUE:
        return True
    if after_operand and (name in _SUFFIXES or _calculates(token)):
        return True
    if not following:
        return False
    if name in _OF_FUNCTIONS:
        return following[0].text == "of"
    adjacent = following[0].start == token.end and token.text[-1:].isalpha()
    single = following[0].kind == "number" and token.kind == "other"
    return adjacent and (following[0].kind == "(" or single)


def _splits_number(tokens: Sequence[Token], place: int) -> bool:
    """Says whether the token at `place` stands inside a number: `13,2000`, `14, 400`, `6:00`."""
    around = tokens[max(place - 1, 0) : place + 2]
    if [token.kind for token in around] != ["number", "other", "number"]:
        return False
    before, sign, after = around
    gap = after.start - before.end - 1
    return sign.text in ",.:" and (gap == 0 or (sign.text == "," and len(after.text) == 3))


def _result(after: Sequence[Token]) -> tuple[Token, bool] | None:
    """Reads the result that stands behind `=`, and whether it counts hundredths.

    None if no number stands there, or more than a number: `= 90/x`, `= 5 and 2/3`.
    """
    number = _fraction(after[:3])
    if number is None:
        return None
    rest = [token for token in after[1:] if token.start >= number.end]
    unit = next((token.text for token in rest if token.text != "."), "")  # `8.33...%`
    if _goes_on(number, rest[unit == "%" :]):
        return None
    return number, unit in _HUNDREDTHS


def _fraction(tokens: Sequence[Token]) -> Token | None:
    """Joins `1/5`, written without spaces, to one number; returns a plain number as it is."""
    if not tokens or tokens[0].kind != "number":
        return None
    top, bottom = tokens[0], tokens[-1]
    kinds = [token.kind for token in tokens]
    if kinds[1:] != ["/", "number"] or not bottom.value:
        return top
    if tokens[1].whole and bottom.start > top.end + 1:
        return top
    text, whole = f"{top.text}/{bottom.text}", tokens[1].whole
    return Token("number", text, top.start, bottom.end, top.value / bottom.value, whole)


def _goes_on(number: Token, rest: Sequence[Token]) -> bool:
    """Says whether `rest` makes `number` a part of something larger."""
    if not rest:
        return False
    attached = rest[0].start == number.end and _is_operand(rest[0])
    joined = rest[0].text == "and" and _is_proper_fraction(rest[1:5])
    after_unit = list(dropwhile(lambda token: token.kind == "word", rest))
    continued = after_unit[:1] and after_unit[0].kind in _OPERATORS
    operated = continued and len(after_unit) > 1 and _is_operand(after_unit[1])
    return bool(attached or joined or operated or rest[0].kind == "number")


def _may_mean_else(step: Equation, rest: Sequence[Token]) -> bool:
    """Says whether a step that looks wrong may be right: see `find_equations`.

    Growth such as `7500(26/25)^3 = 8436` is rounded as a matter of course, and `33⁄5` may have been
    3 and 3/5 where it was copied from.
    """
    rounded = step.value.denominator > 1 and any(part.kind == "^" for part in step.operands)
    copied = not step.results[0].whole and step.stated > 1
    return rounded or copied or _leaves_a_remainder(rest) or _has_two_units(rest)


def _has_two_units(rest: Sequence[Token]) -> bool:
    """Says whether another number follows the result's unit at once: `5元6角`."""
    kinds = [token.kind for token in rest[:2]]
    adjacent = kinds == ["word", "number"] and rest[0].end == rest[1].start
    return adjacent and not rest[0].text.isascii()


def _leaves_a_remainder(rest: Sequence[Token]) -> bool:
    """Says whether a remainder or a modulus follows: `3 remainder 1`, `3 R1`, `3……1`."""
    words = list(dropwhile(lambda token: token.kind == "(" or token.text in ("with", "a"), rest))
    names = [token.text.casefold() for token in words[:3]]
    kinds = [token.kind for token in words[:2]]
    left = rest[:1] and rest[0].text == "with" and names[1:2] in (["left"], ["remaining"])
    return (
        names[:1] in [[name] for name in _REMAINDERS]
        or "".join(names[:2]).startswith(("余", "餘", "……", "あまり"))
        or (names[:1] == ["r"] and kinds[1:] == ["number"])
        or bool(left and kinds[0] == "number")
    )


def _is_proper_fraction(tokens: Sequence[Token]) -> bool:
    numbers = [token for token in tokens if token.kind != "("][:3]
    kinds = [token.kind for token in numbers]
    return kinds == ["number", "/", "number"] and numbers[0].value < numbers[2].value


def _is_operand(token: Token) -> bool:
    is_letter = len(token.text) == 1 and token.text.isalpha()
    is_variable = is_letter and token.kind not in ("number", "word")
    return is_variable or token.kind in ("number", "(")
