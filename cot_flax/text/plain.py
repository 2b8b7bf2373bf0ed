r"""Plain words and signs for LaTeX and for symbols, where somebody cannot read these."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

WORDS = {
    "<": "less than", ">": "greater than", "≤": "less than or equal to",
    "≥": "greater than or equal to", "≠": "not equal to", "≈": "about", "~": "about",
    "√": "sqrt", "π": "pi", "∞": "infinity", "∴": "therefore", "∵": "because", "∠": "angle",
    "θ": "theta", "α": "alpha", "β": "beta", "Δ": "delta", "∆": "delta", "∑": "sum",
    "¢": "cents", "¥": "yen", "₹": "rupees",
}  # fmt: skip
"""Characters that become words, with a space on either side."""

SIGNS = {
    "×": "*", "∗": "*", "⋅": "*", "·": "*", "✕": "*", "✖": "*", "÷": "/", "⁄": "/", "−": "-",
    "–": "-", "—": "-", "±": "+/-", "^": "**", "→": "->", "⇒": "=>", "`": "'", "‘": "'", "’": "'",
    "“": '"', "”": '"', "…": "...", "•": "-", "。": ".", "，": ",", "、": ",", "{": "(", "}": ")",
}  # fmt: skip
"""Characters that become others."""

FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅛": "1/8"}
"""Behind a digit they get a space: `2½` is `2 1/2`."""

POWERS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))
"""Behind a digit or a bracket they become `**2`; elsewhere, as in `m²`, they are left."""

COMMANDS = {
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "pm": "+/-", "to": "->", "rightarrow": "->",
    "implies": "=>", "Rightarrow": "=>", "ldots": "...", "dots": "...", "cdots": "...",
    "left": "", "right": "", "quad": " ", "qquad": " ", "displaystyle": "", "circ": " degrees",
    "lt": WORDS["<"], "gt": WORDS[">"], "le": WORDS["≤"], "leq": WORDS["≤"], "ge": WORDS["≥"],
    "geq": WORDS["≥"], "ne": WORDS["≠"], "neq": WORDS["≠"], "approx": WORDS["≈"],
    "infty": WORDS["∞"], "therefore": WORDS["∴"], "because": WORDS["∵"], "pmod": "mod",
    "bmod": "mod",
}  # fmt: skip
r"""LaTeX by the names behind `\`; a name that is not here loses its `\`."""

WRAPPERS = (
    "boxed", "fbox", "text", "textbf", "textit", "mathrm", "mathbf", "mathit", "operatorname"
)  # fmt: skip
"""LaTeX whose argument stands alone: `\\boxed{12}` is `12`."""

_ESCAPED = {"\\": " ", ",": " ", ";": " ", ":": " ", " ": " ", "!": "", "(": "", ")": "",
            "[": "", "]": "", "{": "(", "}": ")"}  # fmt: skip
_MARKUP = "\\{}"
CHARACTERS = {
    **WORDS, **SIGNS, **FRACTIONS, **{power: f"**{digit}" for power, digit in POWERS.items()},
    "\\": "",
}  # fmt: skip
_SHORT_FRACTION = r"\\[dt]?frac[0-9]{2}"
_MARK = r"<<[^<>\n]*>>"
_DEGREES = r"\^\{?\\circ\b\}?"
_ENVIRONMENT = r"\\(?:begin|end)\{[^{}]*\}"
_NO_SPACE_BEFORE = " \n\t([/=*+"
_NO_SPACE_AFTER = " \n\t.,;:!?)]%/=*+"
_SIMPLE = re.compile(r"[\w.,$%]*")
_NEAR = 8  # characters beside a fraction, spaces included


class Edit(NamedTuple):
    """A stretch of a text and what stands for it.

    Attributes:
        start: its first character.
        end: the character behind it; beyond `start`.
        new: what is written there.
        name: by which it is counted; "" for what belongs to an edit before it.
    """

    start: int
    end: int
    new: str
    name: str


class Stretch(NamedTuple):
    """A part of an edited text and the part of the text before that it comes from.

    Attributes:
        new_begin: half-open range in the edited text.
        new_end: likewise.
        begin: half-open range in the text before.
        end: likewise.
        edited: whether an edit wrote it.
    """

    new_begin: int
    new_end: int
    begin: int
    end: int
    edited: bool

    def old_begin(self, place: int) -> int:
        """Where a part that begins at a place of the edited text began."""
        return self.begin if self.edited else self.begin + place - self.new_begin

    def old_end(self, place: int) -> int:
        """Where a part that ends at a place of the edited text ended."""
        return self.end if self.edited else self.begin + place - self.new_begin


def find_edits(text: str, lacking: Collection[str]) -> list[Edit]:
    r"""What to write instead of some characters, in order.

    Where one of `\`, `{` and `}` is lacking, LaTeX is written out: `\frac{a}{b}` as `a/b`,
    `10^{2}` as `10^2`. Where `<` is, GSM8K's calculator marks `<<48/2=24>>` are removed.

    Args:
        text: any.
        lacking: characters, keys of `CHARACTERS`.
    """
    lacking = frozenset(lacking)
    return [] if lacking.isdisjoint(text) else list(_edits(text, lacking))


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text after its edits."""
    written, done = [], 0
    for edit in edits:
        written += [text[done : edit.start], edit.new]
        done = edit.end
    return "".join([*written, text[done:]])


def stretches(
    text: str, edits: Sequence[Edit], size: Callable[[str], int] = len
) -> Iterator[Stretch]:
    """Yields the parts of the edited text that are not empty; `size` counts their ranges."""
    new = old = done = 0
    for edit in (*edits, Edit(len(text), len(text), "", "")):
        kept = size(text[done : edit.start])
        if kept:
            yield Stretch(new, new + kept, old, old + kept, edited=False)
        new, old = new + kept, old + kept
        written, replaced = size(edit.new), size(text[edit.start : edit.end])
        if written:
            yield Stretch(new, new + written, old, old + replaced, edited=True)
        new, old, done = new + written, old + replaced, edit.end


@lru_cache(maxsize=8)
def _pattern(lacking: frozenset[str]) -> re.Pattern:
    parts = [_MARK] if "<" in lacking else []
    if not lacking.isdisjoint(_MARKUP):
        parts += [_DEGREES, _ENVIRONMENT, _SHORT_FRACTION, r"\\[A-Za-z]+", r"\\.", "[{}]"]
    powers = "".join(character for character in POWERS if character in lacking)
    parts += [rf"(?<=[0-9)])[{powers}]+"] if powers else []
    others = lacking.difference(POWERS, _MARKUP)
    parts += ["[" + re.escape("".join(sorted(others))) + "]"] if others else []
    return re.compile("|".join(parts), re.DOTALL)


def _edits(text: str, lacking: frozenset[str]) -> Iterator[Edit]:
    pattern = _pattern(lacking)
    found = [(match.start(), match.end()) for match in pattern.finditer(text)]
    partners = _partners(text, [start for start, end in found if text[start:end] in "{}"])
    groups: dict[int, str] = {}  # what is written for braces that a command has
    done = 0
    for start, end in found:
        old = text[start:end]
        if start < done:  # the brace of a command
            continue
        if start in groups:
            yield Edit(start, end, groups[start], "")
        elif old in ("{", "}"):
            groups |= _group(text, start, partners)
            yield Edit(start, end, groups.get(start, SIGNS[old]), old)
        elif old.startswith("\\") and (written := _command_groups(text, old, end, partners)):
            opening = min(written)
            groups |= written
            new = groups.pop(opening)
            done = opening + 1
            yield Edit(start, done, _apart(text, start, new), old)
        else:
            yield Edit(start, end, _written(text, start, end), _name(old))


def _partners(text: str, braces: Sequence[int]) -> dict[int, int]:
    """For every opening brace that is closed its closing one."""
    partners, opened = {}, []
    for place in braces:
        if text[place] == "{":
            opened.append(place)
        elif opened:
            partners[opened.pop()] = place
    return partners


def _group(text: str, start: int, partners: Mapping[int, int]) -> dict[int, str]:
    """What is written for the braces of a group without a command; none for one not closed."""
    if start not in partners:
        return {}
    end = partners[start]
    raised = text[max(start - 1, 0) : start] in ("^", "_")
    bare = text[start : start + 3] == "{,}" or (raised and _SIMPLE.fullmatch(text, start + 1, end))
    return {start: "", end: ""} if bare else {start: "(", end: ")"}


def _command_groups(
    text: str, old: str, end: int, partners: Mapping[int, int]
) -> dict[int, str] | None:
    """What is written for the braces of a command's arguments; None where it has none."""
    name, opening = old[1:], end
    while text[opening : opening + 1] == " ":
        opening += 1
    if opening not in partners:
        return None
    closing = partners[opening]
    if name in WRAPPERS:
        return {opening: "", closing: ""}
    if name == "sqrt":
        return {opening: "sqrt(", closing: ")"}
    second = closing + 1
    if name not in ("frac", "dfrac", "tfrac") or second not in partners:
        return None
    written: dict[int, str] = {}
    start = end - len(old)
    for begin, close, after in ((opening, closing, "/"), (second, partners[second], "")):
        simple = _SIMPLE.fullmatch(text, begin + 1, close)
        written |= {begin: "" if simple else "(", close: ("" if simple else ")") + after}
    if _is_closer_bound(text, start, partners[second] + 1):
        written[opening] = "(" + written[opening]
        written[partners[second]] += ")"
    return written


def _is_closer_bound(text: str, start: int, end: int) -> bool:
    """Says whether something beside a fraction would take but its top or its bottom: `6 ÷ ½`."""
    before, after = text[max(start - _NEAR, 0) : start].rstrip(), text[end : end + _NEAR].lstrip()
    return before.endswith(("/", "÷", r"\div", "^")) or after.startswith(("/", "÷", r"\div", "^"))


def _written(text: str, start: int, end: int) -> str:
    old = text[start:end]
    if re.fullmatch(f"{_MARK}|{_ENVIRONMENT}", old):
        return ""
    if re.fullmatch(_DEGREES, old):
        return " degrees"
    if re.fullmatch(_SHORT_FRACTION, old):
        return _fraction(text, start, end, f"{old[-2]}/{old[-1]}")
    if old in FRACTIONS:
        return _fraction(text, start, end, FRACTIONS[old])
    if old[0] in POWERS:
        return "**" + "".join(POWERS[digit] for digit in old)
    if old[0] == "\\":
        name = old[1:]
        new = COMMANDS.get(name, name) if name.isalpha() else _ESCAPED.get(name, name)
    else:
        new = WORDS.get(old) or SIGNS[old]
    return _spaced(text, start, end, new) if new[:1].isalpha() else new


def _fraction(text: str, start: int, end: int, new: str) -> str:
    return _apart(text, start, f"({new})" if _is_closer_bound(text, start, end) else new)


def _apart(text: str, start: int, new: str) -> str:
    """A fraction or a bracket, which a digit before it would join."""
    return " " * text[max(start - 1, 0) : start].isdigit() + new


def _spaced(text: str, start: int, end: int, new: str) -> str:
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    return " " * (before not in _NO_SPACE_BEFORE) + new + " " * (after not in _NO_SPACE_AFTER)


def _name(old: str) -> str:
    if re.fullmatch(_MARK, old):
        return "<<>>"
    if re.fullmatch(_DEGREES, old):
        return r"^\circ"
    if re.fullmatch(f"{_SHORT_FRACTION}|{_ENVIRONMENT}", old):
        return re.sub(r"(?<=[a-z])[^a-z].*", "", old, flags=re.DOTALL)
    return old[0] if old[0] in POWERS else old
