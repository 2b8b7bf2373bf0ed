"""Reading and evaluating arithmetic that stands in prose, exactly and without `eval`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from cot_flax.text.numerals import LIMIT, UNSIGNED, bounded, read_literal
from cot_flax.text.plain import FRACTIONS, POWERS, Stretch, apply, find_edits, stretches

LONGEST_EXPRESSION = 64
_SYMBOLS = dict.fromkeys("×·∗⋅✕✖xX", "*") | {"−": "-", "–": "-", "÷": "/", "**": "^"}
_BINARY = ("+", "-", "*", "/", "^")
_REWRITTEN = frozenset(("\\", "{", "}", "√", "⁄", *FRACTIONS, *POWERS))
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_LARGEST_EXPONENT = 64
_NEAR = 4  # characters beside `**`, spaces included

# Two letters at least: `2x + 3 = 7` is algebra, not a sum with a unit. A letter of a script that
# algebra does not use is a word by itself, as `元` in `2元×6=12元`; Cyrillic `х` looks like an x.
_LETTERS = r"[^\W\d_]{2,}"
_WORD_LETTER = "[а-фц-яё\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"
_MONEY = "$€£¥₹¢￥₩￦₽₫₱฿₺₴₦"
_TOKEN = re.compile(
    rf"(?P<mark><<[^<>\n]*>>)|(?P<number>{UNSIGNED})"
    rf"|(?P<word>/?{_LETTERS}(?:[-'’/]{_LETTERS})*(?:/[hs](?!\w))?(?:\^[0-9](?![0-9.]))?"
    rf"|/?{_WORD_LETTER})"
    rf"|(?P<symbol>\*\*|[-−–+*×·∗⋅✕✖xX/÷()=%^])|(?P<space>(?:[ \t\u3000{_MONEY}]|&(?==))+)"
    r"|(?P<other>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """A piece of text: `kind` is number, word, mark, other, or the symbol.

    `x` and `×` are `*`, and `**` is `^`. `text` is what `tokenize` made of it, and `whole` says
    that nothing else stands in its range: the 2 of `10²` and of `½` cannot be changed by itself.
    """

    kind: str
    text: str
    start: int
    end: int
    value: Fraction | None = None
    whole: bool = True


def tokenize(text: str, start: int, end: int) -> list[Token]:
    """Splits `text[start:end]` into tokens, signs attached to numbers, spaces and `$` left out.

    LaTeX, powers such as `10²` and full-width characters are read as `plain` writes them:
    `\\frac{a}{b}` is `a`, `/`, `b`. Such tokens have the range of what they stand for. Marks of
    bold text (`**`) are left out.
    """
    if not text.isascii():
        text = text.translate(_FULL_WIDTH)
    edits = find_edits(text, _REWRITTEN)
    if not edits:
        return _tokens(text, start, end)
    parts = list(stretches(text, edits))
    tokens, first = [], 0
    for token in _tokens(apply(text, edits), *(_in_edited(parts, at) for at in (start, end))):
        while parts[first].new_end <= token.start:
            first += 1
        last = first
        while parts[last].new_end < token.end:
            last += 1
        begin, stop = parts[first].old_begin(token.start), parts[last].old_end(token.end)
        whole = not any(part.edited for part in parts[first : last + 1])
        tokens.append(replace(token, start=begin, end=stop, whole=whole))
    return tokens


def _in_edited(parts: Sequence[Stretch], place: int) -> int:
    """Where a place of the text before the edits is in the edited one."""
    part = next((part for part in parts if place < part.end), parts[-1])
    return part.new_end if place >= part.end else part.new_begin + max(0, place - part.begin)


def evaluate(tokens: Sequence[Token]) -> Fraction | None:
    """Returns the value of an expression, or None if `tokens` are none, or divide by zero.

    More than `LONGEST_EXPRESSION` tokens and values beyond `numerals.LIMIT` are not read either.
    An expression has at least one operator. `20% of 50` and `50 * 20%` take the percentage as
    hundredths; in sums alone it is a unit (`100% - 20%` is 80).
    """
    if len(tokens) > LONGEST_EXPRESSION:
        return None
    operators = {token.kind for token in tokens[1:]} & {*_BINARY, "("}
    if not operators:
        return None
    percent = Fraction(1, 100) if {"*", "/", "("} & operators else Fraction(1)
    try:
        value, stop = _sum(tokens, 0, percent)
    except (SyntaxError, ZeroDivisionError):
        return None
    return bounded(value) if stop == len(tokens) else None


def _tokens(text: str, start: int, end: int) -> list[Token]:
    tokens: list[Token] = []
    for token in _raw_tokens(text, start, end):
        if token.kind == "number" and _is_sign(tokens, text, token):
            sign = tokens.pop()
            token = replace(
                token, text=text[sign.start : token.end], start=sign.start, value=-token.value
            )
        tokens.append(token)
    return tokens


def _raw_tokens(text: str, start: int, end: int) -> Iterator[Token]:
    for match in _TOKEN.finditer(text, start, end):
        kind, piece = str(match.lastgroup), match[0]
        if kind == "space" or (piece == "**" and not _is_power(text, *match.span())):
            continue
        value = read_literal(piece) if kind == "number" else None
        if kind == "number" and value is None:
            kind = "other"
        if kind == "symbol":
            kind = _SYMBOLS.get(piece, piece)
        yield Token(kind, piece, match.start(), match.end(), value)


def _is_power(text: str, start: int, end: int) -> bool:
    """Whether `**` stands between operands, alike on both sides, and is no mark of bold text."""
    before, after = text[max(start - _NEAR, 0) : start], text[end : end + _NEAR]
    left, right = before.rstrip(" "), after.lstrip(" ")
    alike = (len(before) > len(left)) == (len(after) > len(right))
    return alike and bool(re.search(r"[\w)]$", left) and re.match(r"[\w(-]", right))


def _is_sign(before: Sequence[Token], text: str, number: Token) -> bool:
    if not before or before[-1].kind != "-":
        return False
    minus = before[-1]
    adjacent = text[minus.end : number.start] in ("", "$")
    after_operand = len(before) > 1 and before[-2].kind in ("number", ")", "%")
    return adjacent and not after_operand and not text[minus.start - 1 : minus.start].isalnum()


# A recursive descent: each function reads its part from `place` on and says where it stopped.


def _sum(tokens: Sequence[Token], place: int, percent: Fraction) -> tuple[Fraction, int]:
    value, place = _product(tokens, place, percent)
    while _kind(tokens, place) in ("+", "-"):
        term, stop = _product(tokens, place + 1, percent)
        value = value + term if tokens[place].kind == "+" else value - term
        place = stop
    return value, place


def _product(tokens: Sequence[Token], place: int, percent: Fraction) -> tuple[Fraction, int]:
    value, place = _factor(tokens, place, percent)
    while _kind(tokens, place) in ("*", "/", "("):
        operator = tokens[place].kind
        if _is_ambiguous(tokens, place):
            raise SyntaxError("ambiguous quotient")
        factor, stop = _factor(tokens, place + (operator != "("), percent)  # 2(3 + 4) is a product
        value = value / factor if operator == "/" else value * factor
        place = stop
    return value, place


def _is_ambiguous(tokens: Sequence[Token], place: int) -> bool:
    """Says whether one of two quotients in a row is set apart: `25 / 1/3` may mean 75 or 8.33."""
    if (_kind(tokens, place), _kind(tokens, place + 2)) != ("/", "/") or place + 3 >= len(tokens):
        return False
    widths = [tokens[at + 1].start - tokens[at - 1].end for at in (place, place + 2)]
    return (widths[0] == 1) != (widths[1] == 1)


def _factor(tokens: Sequence[Token], place: int, percent: Fraction) -> tuple[Fraction, int]:
    value, stop = _operand(tokens, place, percent)
    if _kind(tokens, stop) != "^":
        return value, stop
    exponent, after = _factor(tokens, stop + 1, Fraction(1))  # 2^3^2 is 2^9
    if stop == place + 1 and value < 0:
        raise SyntaxError("ambiguous sign")
    if tokens[stop - 1].kind == "%" or exponent.denominator != 1:
        raise SyntaxError("no whole power")
    size = max(abs(value.numerator), value.denominator).bit_length() * abs(exponent)
    if abs(exponent) > _LARGEST_EXPONENT or size > LIMIT.bit_length():
        raise SyntaxError("too large a power")
    return value ** int(exponent), after


def _operand(tokens: Sequence[Token], place: int, percent: Fraction) -> tuple[Fraction, int]:
    if _kind(tokens, place) == "(":
        value, place = _sum(tokens, place + 1, percent)
        if _kind(tokens, place) != ")":
            raise SyntaxError("unclosed bracket")
    elif _kind(tokens, place) == "number":
        value = tokens[place].value
    else:
        raise SyntaxError("no operand")
    if _kind(tokens, place + 1) == "%":
        return value * percent, place + 2
    return value, place + 1


def _kind(tokens: Sequence[Token], place: int) -> str:
    return tokens[place].kind if place < len(tokens) else "end"
