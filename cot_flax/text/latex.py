r"""LaTeX in an answer, brought to the plain notation that `numerals` reads.

Marks of layout go (`\text{...}`, `\$`, `{,}`); arithmetic with fractions, roots and powers becomes
its value (`2\frac12` is 5/2, `3 \times 10^4` is 30000), exactly. math-verify's parser makes the
tree; it is loaded only where there is such a formula. Its time limit needs the main thread's
alarm; here a formula of more than `_LONGEST` characters or `_DEEPEST` brackets is not parsed, nor
is a tree simplified, so that a parse takes some hundredths of a second in any thread or process.
"""

import functools
import logging
import re
from fractions import Fraction
from math import isqrt

from cot_flax.text.numerals import LIMIT, bounded, format_number

_LONGEST = 120
_DEEPEST = 6
MARKUP = re.compile(r"\\|\{,\}|\^|√|sqrt|\*\*(?= ?[-(\d])")
_UNREADABLE = " 0/0 "  # a number whose value is none: `numerals` reads it as beyond all limits

_WRAPPED = re.compile(
    r"\\(?:text\w*|math(?:rm|bf|it|sf|tt|normal)|mbox|boldsymbol|bm|operatorname|underline"
    r"|[fh]?boxed|fbox|displaystyle)\s*\{([^{}]*)\}"
)
_LAYOUT = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}|(?<=\d)\\,(?=\d{3})"), ","),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\\\\|\\newline\b"), "\n"),
    (re.compile(r"\\([$%&#_{}])"), r"\1"),
    (re.compile(r"\\[,;:! ()\[\]]|\\q?quad\b|~"), " "),
    (re.compile(r"\\times(?![A-Za-z])"), "×"),
    (re.compile(r"\\(?:cdot|ast)(?![A-Za-z])"), "·"),
    (re.compile(r"\\div(?![A-Za-z])"), "÷"),
    (re.compile(r"\\(?:approx|simeq)(?![A-Za-z])"), "≈"),
    (re.compile(r"√\s*(\d+)|(?<![\w\\])sqrt\s*\(\s*(\d+)\s*\)"), r"\\sqrt{\1\2}"),
    (re.compile(r"(?<=[\d)])(\s?)\*\*\1(?=[-(\d])"), "^"),  # alike on both sides: not bold text
    (re.compile(r"\^\s*\(?([-−]\d+)\)?"), r"^{\1}"),
    (re.compile(r"\^\s*(\d+)\s*\^\s*(\d+)(?!\s*\^)"), r"^{\1^{\2}}"),
    (re.compile(r"(?<=\d)\s*[xX*]\s*(?=10\s*\^)"), "×"),
]
# What changes the value of the number beside it, read or not.
_FORMULA = re.compile(
    r"\\(?:[dtc]?frac|sqrt|pi|log|ln|lg|sin|cos|tan|exp|binom|sum|prod|int|infty|pm|theta)"
    r"(?![A-Za-z])|(?<=[\d)}])\s*\^"
)
_EXPONENT = re.compile(r"[-−]?\d+|\S?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
# Two numbers side by side, of a product or of a list, and powers of powers.
_AMBIGUOUS = re.compile(r"\d\s+\d|\d\s*\(|\^\s*(?:\d+|\{\d+\})\s*\^")
_OPERAND = "0123456789.,+-−*/×·÷() "
_BEFORE = re.compile(r"(?<![\d.,])(?=[-−(\d])(?:(?>\d+(?:[.,]\d+)*)|[-−+*/×·÷() ])++$")


def plain(text: str) -> str:
    """Returns `text` without LaTeX: formulas by their values, 0/0 where there is no exact one."""
    if not MARKUP.search(text):
        return text
    for pattern, new in _LAYOUT:
        text = pattern.sub(new, text)
    for _ in range(_DEEPEST):
        text, unwrapped = _WRAPPED.subn(r"\1", text)
        if not unwrapped:
            break
    parts, end = [], 0
    while match := _FORMULA.search(text, end):
        found = _BEFORE.search(text[max(end, match.start() - _LONGEST) : match.start()])
        before = found[0] if found else ""
        if before.count(")") > before.count("("):  # the bracket of `5) \frac12`
            before = before.rpartition(")")[2].lstrip()
        start = match.start() - len(before)
        opened = before.count("(") - before.count(")")
        formula = text[start : _stop(text, match.start(), opened)].rstrip(" .,")
        parts += [text[end:start], " " * (start > 0), _value(formula) or _UNREADABLE]
        end = start + len(formula)
    return _COMMAND.sub(" ", "".join(parts) + text[end:])


def group(text: str, start: int) -> str | None:
    """Returns what stands in the braces that open at `start`, None where they do not close."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return text[start + 1 : i]
    return None


def _stop(text: str, start: int, opened: int) -> int:
    """Where the formula with a command or an exponent at `start` ends, `opened` brackets before."""
    i = start
    while i < min(len(text), start + 2 * _LONGEST):
        if command := _FORMULA.match(text, i):
            i = command.end()
            arguments = 2 if "frac" in command[0] else 1 if command[0][-1] in "t^" else 0
            for _ in range(arguments):
                i = _argument(text, i)
        elif text[i] in _OPERAND and not re.match(r"[.,](?!\d)", text[i : i + 2]):
            opened += (text[i] == "(") - (text[i] == ")")
            if opened < 0:
                break
            i += 1
        else:
            break
    return i


def _argument(text: str, i: int) -> int:
    while i < len(text) and text[i] in " [":  # `\sqrt[3]{27}`
        close = text.find("]", i) if text[i] == "[" else i
        i = close + 1 if close >= 0 else len(text)
    if text[i : i + 1] == "{":
        inner = group(text, i)
        return len(text) if inner is None else i + len(inner) + 2
    if text[i - 1 : i] == "^":
        exponent = _EXPONENT.match(text, i)
        return exponent.end() if exponent else i
    return min(i + 1, len(text))


@functools.lru_cache(maxsize=4096)
def _value(formula: str) -> str | None:
    """The value of a formula in normal form, None where it has no exact one or is too large."""
    depth = max(_depths(formula), default=0)
    if len(formula) > _LONGEST or depth > _DEEPEST or _AMBIGUOUS.search(formula):
        return None
    for plain_mark, mark in (("×", r"\times "), ("·", r"\cdot "), ("÷", r"\div "), ("−", "-")):
        formula = formula.replace(plain_mark, mark)
    formula = re.sub(r"(?<=\d),(?=\d{3})", "", formula)
    formula = re.sub(r"(\d*)\.(\d+)", _decimal, formula)  # a parser's decimals are rounded
    try:
        value = bounded(_exact(_tree(formula)))
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None
    return None if value is None else format_number(value)


def _depths(formula: str) -> list[int]:
    depth, depths = 0, []
    for character in formula:
        depth += (character in "{([") - (character in "})]")
        depths.append(depth)
    return depths


def _decimal(match: re.Match) -> str:
    return rf"{{\frac{{{match[1]}{match[2]}}}{{1{'0' * len(match[2])}}}}}"


@functools.cache
def _parser():
    """math-verify's parser; importing it takes half a second. It says once that it has no limit."""
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
    from math_verify import LatexExtractionConfig, parse

    settings = [LatexExtractionConfig()]
    return lambda text: parse(text, settings, "no_fallback", parsing_timeout=None)


def _tree(formula: str):
    trees = _parser()(f"${formula}$")
    if not trees:
        raise ValueError(f"no formula: {formula}")
    return trees[0]


def _exact(node) -> Fraction:
    """The value of a tree of sums, products, powers and roots of rationals; else ValueError."""
    if getattr(node, "is_Rational", False):
        return Fraction(int(node.p), int(node.q))
    if getattr(node, "is_Add", False):
        return _small(sum(map(_exact, node.args), Fraction(0)))
    if getattr(node, "is_Mul", False):
        value = Fraction(1)
        for factor in node.args:
            value = _small(value * _exact(factor))
        return value
    if getattr(node, "is_Pow", False):
        return _power(_exact(node.args[0]), _exact(node.args[1]))
    raise ValueError(f"not a rational: {node}")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator > 1:
        base = Fraction(*(_root(part, exponent.denominator) for part in base.as_integer_ratio()))
    whole = exponent.numerator
    if abs(whole) * max(base.numerator.bit_length(), base.denominator.bit_length()) > 2000:
        raise OverflowError
    return _small(base**whole)


def _root(value: int, degree: int) -> int:
    """The exact root of a natural number; ValueError where there is none."""
    if value < 0 or degree > 3:
        raise ValueError("no root that is read")
    root = isqrt(value) if degree == 2 else round(float(value) ** (1 / 3))
    if root**degree != value:
        raise ValueError("an irrational root")
    return root


def _small(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) > LIMIT**4:
        raise OverflowError
    return value
