"""Finding the answer in a generated text, and comparing it with the gold one.

The papers' own rules lose signs, thousands and trailing zeros, or read a choice out of any capital
letter (see `legacy`). Here numbers are exact, choices are letters that stand as choices, and an
answer that cannot be found is None, which never matches.

Cut a generation at its end-of-sequence token before it comes here: where a model runs on into a
next question, that question's answer is the last one.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from cot_flax.errors import UserError
from cot_flax.text import legacy
from cot_flax.text.numerals import find_numbers, format_number

KINDS = ["number", "choice", "yes_no", "text"]  # and those of ADDED
ADDED: dict[str, Callable[[str], list[str]]] = {}
"""The `find` of every kind that `add_answer_kind` added."""
MODES = ("strict", "flexible", *legacy.RULES)

ANSWER_MARKER = re.compile(
    r"\banswer(?:\s*\([^()\n]{0,40}\))?\s*(?:\bis\b(?:\s*:)?|[:=])|####|-->|\[answer\]",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"\n|###|[.!?](?=\s+[A-Z(\"]|\s*$)|(?<=[0-9%)])\.\s"  # not the dot of `Rs. 500` or `approx. 5`
)

_BRACKETED = r"(?<!\w)\(([A-Za-z])\)"
# `A` and `I` are words first: they are choices unless a word follows that may follow an article or
# a pronoun.
_ALONE = r"(?!\s+(?!(?:because|since|as|is|and|or|which)\b)\w)"
_BARE = rf"(?<![\w'’.&/-])([B-HJ-Z]|[AI]{_ALONE})(?![\w'’&/+-])(?!\.\w)"
_CHOICE = re.compile(rf"{_BRACKETED}|{_BARE}")
_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_YES_NO = re.compile(r"(?<![\w-])(yes|no)(?![\w-])", re.IGNORECASE)
_QUOTES = " \"'`“”‘’*"

# A gold such as 0.6666666667 is a quotient that its data set rounded (29 golds each of PAL's AddSub
# and SingleEq): from this many decimals on, agreement to _ROUNDED_TOLERANCE is equality.
_ROUNDED_DECIMALS = 9
_ROUNDED_TOLERANCE = Fraction(1, 10**9)


def extract_answer(text: str, *, kind: str, mode: str) -> str | None:
    """Returns the answer that `text` gives, in a normal form, or None if it gives none.

    Args:
        text: a generation, a chain of thought, or a gold answer.
        kind: `number` (normal form `18`, `-0.75`, `1/3`; a percent sign is a unit, so `50%` is 50),
            `choice` (a capital letter), `yes_no`, or `text` (lower-cased, single spaces, no quotes
            or final full stop), or one that `add_answer_kind` added.
        mode: `strict` reads only what follows the last answer marker (`The answer is`, `Answer:`,
            `####`, `-->`, `[ANSWER]`): the first number, choice or yes/no of that sentence (what
            follows the last `=`, if any), or the rest of the line. `flexible` does the same, and
            takes the last one of the whole text (for `text` the last line) where there is no
            marker. `fu2023`, `ho2022`, `kim2023` are the papers' rules, see `legacy`.

    Raises:
        UserError: unknown `kind` or `mode`.
    """
    _check_names(kind, mode)
    if mode in legacy.RULES:
        return legacy.RULES[mode].extract(text, kind)
    markers = list(ANSWER_MARKER.finditer(text))
    if markers:
        return _FIRST[kind](text[markers[-1].end() :].lstrip())
    return _LAST[kind](text) if mode == "flexible" else None


def answers_match(pred: str | None, gold: str, *, kind: str, mode: str = "strict") -> bool:
    """Says whether `pred`, an answer that `extract_answer` found, is the gold answer.

    Args:
        pred: the extracted answer; None (nothing found) never matches.
        gold: the gold answer, bare (`1,080`) or at the end of its solution (`... #### 1,080`).
        kind: as in `extract_answer`. Numbers are compared as exact fractions; only a gold with nine
            or more decimals, which some data set rounded, is met within 1e-9.
        mode: the mode of the extraction. A paper's name asks for that paper's comparison too, in
            which a gold that cannot be read is merely never matched.

    Raises:
        UserError: unknown `kind` or `mode`, or a gold in which there is no answer of that kind.
    """
    _check_names(kind, mode)
    if mode in legacy.RULES:
        return pred is not None and legacy.RULES[mode].matches(pred, gold, kind)
    wanted = extract_answer(gold, kind=kind, mode="flexible")
    if wanted is None:
        raise UserError(
            f"the gold answer {gold[:80]!r}",
            f"an answer of kind {kind!r}",
            "fix the data or its kind",
        )
    found = None if pred is None else extract_answer(pred, kind=kind, mode="flexible")
    if found is None:
        return False
    return _same_number(found, wanted) if kind == "number" else found == wanted


def add_answer_kind(name: str, find: Callable[[str], list[str]]) -> None:
    """Adds a kind of answer, such as a time of day; call it where a module of yours is imported.

    Its answers are read as numbers are: the first one of the sentence behind the last marker, or,
    in mode `flexible` and without a marker, the last one of the text. The papers' rules treat the
    kind as text.

    Args:
        name: what is passed as `kind` from then on, and to `add_cot_task` as `answer_kind`.
        find: returns all answers in a text, in their order and each in its normal form. Answers of
            one normal form are the same; `find` must find a normal form as it is. A function of a
            module, not a lambda: `prepare` asks its other processes to import it.

    Raises:
        UserError: there is another kind of this name.
    """
    if ADDED.get(name) is find:
        return
    if name in KINDS:
        raise UserError(
            f"answer kind {name!r} a second time",
            "a new name",
            "choose another one, or import the module that adds it under one name only",
        )
    _FIRST[name] = lambda tail: next(iter(find(first_sentence(tail))), None)
    _LAST[name] = lambda text: next(reversed(find(text)), None)
    ADDED[name] = find
    KINDS.append(name)


def first_sentence(text: str) -> str:
    """Returns `text` up to its first line break, `###` or end of a sentence."""
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def check_kind(kind: str) -> None:
    """Raises UserError for a kind that is neither ours nor added."""
    if kind not in KINDS:
        raise UserError(
            f"answer kind {kind!r}", f"one of {tuple(KINDS)}", "correct the name, or add the kind"
        )


def _check_names(kind: str, mode: str) -> None:
    check_kind(kind)
    if mode not in MODES:
        raise UserError(f"extraction mode {mode!r}", f"one of {MODES}", "correct the name")


def _same_number(found: str, gold: str) -> bool:
    rounded = len(gold.partition(".")[2]) >= _ROUNDED_DECIMALS
    return abs(Fraction(found) - Fraction(gold)) <= rounded * _ROUNDED_TOLERANCE


def _first_number(tail: str) -> str | None:
    sentence = first_sentence(tail)
    numbers = find_numbers(sentence.rpartition("=")[2]) or find_numbers(sentence) or [None]
    return None if numbers[0] is None else format_number(numbers[0])


def _last_number(text: str) -> str | None:
    numbers = find_numbers(text) or [None]
    return None if numbers[-1] is None else format_number(numbers[-1])


def _choices(text: str) -> list[str]:
    lone = _LONE_LETTER.fullmatch(text)
    if lone:
        return [lone[1].upper()]
    return [(match[1] or match[2]).upper() for match in _CHOICE.finditer(text)]


def _first_choice(tail: str) -> str | None:
    sentence = first_sentence(tail)
    bracketed = re.search(_BRACKETED, sentence)  # `Plan B (D)` is D
    if bracketed:
        return bracketed[1].upper()
    return next(iter(_choices(sentence)), None)


def _last_choice(text: str) -> str | None:
    choices = _choices(text)
    return choices[-1] if choices else None


def _first_yes_no(tail: str) -> str | None:
    match = _YES_NO.search(first_sentence(tail))
    return match[1].lower() if match else None


def _last_yes_no(text: str) -> str | None:
    return next((word.lower() for word in reversed(_YES_NO.findall(text))), None)


def _first_line(tail: str) -> str | None:
    line = " ".join(tail.partition("\n")[0].split())
    return line.strip(_QUOTES).rstrip("." + _QUOTES).casefold() or None


def _last_line(text: str) -> str | None:
    return _first_line(text.strip().rpartition("\n")[2])


_Finder = Callable[[str], str | None]
_FIRST: dict[str, _Finder] = {
    "number": _first_number,
    "choice": _first_choice,
    "yes_no": _first_yes_no,
    "text": _first_line,
}
_LAST: dict[str, _Finder] = {
    "number": _last_number,
    "choice": _last_choice,
    "yes_no": _last_yes_no,
    "text": _last_line,
}
