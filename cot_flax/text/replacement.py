r"""Other words for what a student's vocabulary lacks.

T5's has no `<`, `{`, `}`, `\`, `^`, `~`, `×`, `÷` or `√`: each would be learnt as the unknown
piece. `²` it writes as `2`, `½` as `1`, the unknown piece and `2`. What a vocabulary can write is
never replaced.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from cot_flax.text.pieces import Pieces
from cot_flax.text.tokenizers import Tokenizer

WORDS = {
    "<": "less than", ">": "greater than", "≤": "less than or equal to",
    "≥": "greater than or equal to", "≠": "not equal to", "≈": "about", "~": "about",
    "√": "sqrt", "π": "pi", "∞": "infinity", "∴": "therefore", "∵": "because", "∠": "angle",
    "θ": "theta", "α": "alpha", "β": "beta", "Δ": "delta", "∆": "delta", "∑": "sum",
    "¢": "cents", "¥": "yen", "₹": "rupees",
}  # fmt: skip
"""Characters that become words, with a space on either side."""

SIGNS = {
    "×": "*", "∗": "*", "⋅": "*", "·": "*", "÷": "/", "⁄": "/", "−": "-", "–": "-", "—": "-",
    "±": "+/-", "^": "**", "→": "->", "⇒": "=>", "`": "'", "‘": "'", "’": "'", "“": '"', "”": '"',
    "…": "...", "•": "-", "。": ".", "，": ",", "、": ",", "{": "(", "}": ")",
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
    "infty": WORDS["∞"], "therefore": WORDS["∴"], "because": WORDS["∵"],
}  # fmt: skip
r"""LaTeX by the names behind `\`; a name that is not here loses its `\`."""

WRAPPERS = (
    "boxed", "fbox", "text", "textbf", "textit", "mathrm", "mathbf", "mathit", "operatorname"
)  # fmt: skip
"""LaTeX whose argument stands alone: `\\boxed{12}` is `12`."""

_ESCAPED = {"\\": " ", ",": " ", ";": " ", ":": " ", " ": " ", "!": "", "(": "", ")": "",
            "[": "", "]": "", "{": "(", "}": ")"}  # fmt: skip
_MARKUP = "\\{}"
_CHARACTERS = {
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


def find_edits(text: str, tokenizer: Tokenizer) -> list[Edit]:
    """What to replace in a text so that the tokenizer has ids for it, in order.

    A character is replaced if it is in a table above and does not come back from the tokenizer,
    and only by what does not hold an unknown piece. Where one of `\\`, `{` and `}` does not come
    back, LaTeX is written out: `\\frac{a}{b}` as `a/b`, `10^{2}` as `10**2`. Where `<` does not,
    GSM8K's calculator marks `<<48/2=24>>` are removed.
    """
    lacking = _lacking(tokenizer)
    if lacking.isdisjoint(text):
        return []
    return list(_edits(text, lacking))


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text after its edits."""
    written, done = [], 0
    for edit in edits:
        written += [text[done : edit.start], edit.new]
        done = edit.end
    return "".join([*written, text[done:]])


def before_edits(pieces: Pieces, text: str, edits: Sequence[Edit]) -> tuple[Pieces, list[bool]]:
    """Pieces of an edited text with their spans in the text before, and which of them are new.

    Args:
        pieces: M, of the text after the edits.
        text: the one before them.
        edits: as `find_edits` gives them.

    Returns:
        The same pieces with spans that still follow each other, and for each whether anything in
        it was written by an edit: it then has the span of all that the edit replaced.
    """
    if not edits:
        return pieces, [False] * len(pieces.spans)
    stretches = list(_stretches(text, edits))
    spans, is_new, at = [], [], 0
    for begin, end in pieces.spans:
        while at + 1 < len(stretches) and stretches[at].new_end <= begin:
            at += 1
        last = at
        while last + 1 < len(stretches) and stretches[last].new_end < end:
            last += 1
        covered = stretches[at : last + 1]
        spans.append((covered[0].old_begin(begin), covered[-1].old_end(end)))
        is_new.append(any(part.edited for part in covered))
    return Pieces(pieces.strings, pieces.ids, tuple(spans)), is_new


def unknown_characters(text: str, pieces: Pieces, unk_id: int | None) -> Counter[str]:
    """Counts the characters of a text that its pieces hold as the unknown one.

    Where normalisation made several pieces of a character (T5's `½`), and one of them is unknown,
    the character is.
    """
    found: Counter[str] = Counter()
    if unk_id is None or unk_id not in pieces.ids:
        return found
    made_up = False
    for id, cut in zip(pieces.ids, pieces.cut(text), strict=True):
        if id == unk_id or made_up:
            found.update(cut.strip())
        made_up = id == unk_id and not cut
    return found


@lru_cache(maxsize=8)
def _lacking(tokenizer: Tokenizer) -> frozenset[str]:
    """Characters of the tables that a tokenizer cannot write, though it can what replaces them."""
    return frozenset(
        character
        for character, new in _CHARACTERS.items()
        # Normalisation may write the very same: three dots for T5's `…`.
        if tokenizer.decode(tokenizer.encode(character)) not in (character, new)
        and tokenizer.unk_id not in tokenizer.encode(new)
    )


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
    before, content = text[max(start - 1, 0) : start], text[start + 1 : end]
    bare = content == "," or (before in ("^", "_") and _SIMPLE.fullmatch(content))
    return {start: "", end: ""} if bare else {start: "(", end: ")"}


def _command_groups(
    text: str, old: str, end: int, partners: Mapping[int, int]
) -> dict[int, str] | None:
    """What is written for the braces of a command's arguments; None where it has none."""
    name, opening = old[1:], end + len(text[end:]) - len(text[end:].lstrip(" "))
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
    written = {}
    for begin, end, after in ((opening, closing, "/"), (second, partners[second], "")):
        simple = _SIMPLE.fullmatch(text[begin + 1 : end])
        written |= {begin: "" if simple else "(", end: ("" if simple else ")") + after}
    return written


def _written(text: str, start: int, end: int) -> str:
    old = text[start:end]
    if re.fullmatch(f"{_MARK}|{_ENVIRONMENT}", old):
        return ""
    if re.fullmatch(_DEGREES, old):
        return " degrees"
    if re.fullmatch(_SHORT_FRACTION, old):
        return _apart(text, start, f"{old[-2]}/{old[-1]}")
    if old in FRACTIONS:
        return _apart(text, start, FRACTIONS[old])
    if old[0] in POWERS:
        return "**" + "".join(POWERS[digit] for digit in old)
    if old[0] == "\\":
        name = old[1:]
        new = COMMANDS.get(name, name) if name.isalpha() else _ESCAPED.get(name, name)
    else:
        new = WORDS.get(old) or SIGNS[old]
    return _spaced(text, start, end, new) if new[:1].isalpha() else new


def _apart(text: str, start: int, new: str) -> str:
    """A fraction or a bracket, which a digit before it would join."""
    return " " * text[:start][-1:].isdigit() + new


def _spaced(text: str, start: int, end: int, new: str) -> str:
    before, after = text[:start][-1:], text[end : end + 1]
    return " " * (before not in _NO_SPACE_BEFORE) + new + " " * (after not in _NO_SPACE_AFTER)


def _name(old: str) -> str:
    if re.fullmatch(_MARK, old):
        return "<<>>"
    if re.fullmatch(_DEGREES, old):
        return r"^\circ"
    if re.fullmatch(f"{_SHORT_FRACTION}|{_ENVIRONMENT}", old):
        return re.match(r"\\[a-z]+", old)[0]
    return old[0] if old[0] in POWERS else old


class _Stretch(NamedTuple):
    """Bytes of the new text and those of the old one that they come from."""

    new_begin: int
    new_end: int
    begin: int
    end: int
    edited: bool

    def old_begin(self, place: int) -> int:
        return self.begin if self.edited else self.begin + place - self.new_begin

    def old_end(self, place: int) -> int:
        return self.end if self.edited else self.begin + place - self.new_begin


def _stretches(text: str, edits: Sequence[Edit]) -> Iterator[_Stretch]:
    new = old = done = 0
    for edit in (*edits, Edit(len(text), len(text), "", "")):
        kept = len(text[done : edit.start].encode())
        if kept:
            yield _Stretch(new, new + kept, old, old + kept, edited=False)
        new, old = new + kept, old + kept
        size, replaced = len(edit.new.encode()), len(text[edit.start : edit.end].encode())
        if size:
            yield _Stretch(new, new + size, old, old + replaced, edited=True)
        new, old, done = new + size, old + replaced, edit.end
