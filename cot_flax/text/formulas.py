r"""Answers that are formulas: sets, intervals, tuples, roots, equations, in LaTeX or plain.

A formula is read as it stands (`formula_behind`, `last_formula`) and has a normal form, so that
votes count: exact numbers as `numerals` writes them (`\frac{1}{2}` is 0.5), words in lower case,
all else LaTeX without layout. math-verify compares two of them, by value and exactly: no decimal is
rounded, so 0.333333 is not 1/3.

No comparison of arbitrary formulas is sure to end. math-verify's own limit needs the main thread's
alarm; here a process of its own compares, which the system ends after `CPU_SECONDS` of processor
time, whatever it does and in whichever thread or process somebody waits for it. What has no verdict
then is `Undecided`, neither right nor wrong.
"""

import atexit
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from typing import IO

from cot_flax.text import latex
from cot_flax.text.numerals import format_number, read_literal

LONGEST = 400
"""Characters of a formula; what is longer is no answer."""
CPU_SECONDS = 5.0
_MEMORY = 4 * 2**30  # bytes of address space
_LAYERS = 12  # of layout within one another
_PRECISION = 50  # digits to which irrational values must agree before they are proved the same

_DELIMITED = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\n]|\\\$)+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
_OPENING = re.compile(r"(?:\s|[*_`:])*")
_JOINED = re.compile(r"\s*(?:,|;|,?\s*\band\b|,?\s*\bor\b)\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b)")
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|,?\s+(?:because|since|as|where|which|so)\s")
_WRAPPED = re.compile(
    r"\\(?:boxed|fbox|displaystyle|mathbf|mathrm|boldsymbol|text(?:bf|it|rm)?|mbox)\s*\{([^{}]*)\}"
)
_LAYOUT = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\\$"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))(?<![(\[{,]\d,)(?=[\d,.]*$)"), ""),
]
_PLAIN = [
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*|×|·|⋅"), r"\\cdot "),
    (re.compile(r"÷"), r"\\div "),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"≤|<="), r"\\le "),
    (re.compile(r"≥|>="), r"\\ge "),
    (re.compile(r"≠|!="), r"\\ne "),
    (re.compile(r"∞|(?<![A-Za-z\\])(?:oo|inf(?:inity)?)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"∩"), r"\\cap "),
    (re.compile(r"∈"), r"\\in "),
    (re.compile(r"π|(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"√\s*(\d+|\w)|(?<![A-Za-z\\])sqrt\s*(\d+)"), r"\\sqrt{\1\2}"),
    (re.compile(r"√\s*\(([^()]*)\)|(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1\2}"),
    (re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|exp)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\^\s*\(([^()]*)\)|\^\s*(-\d+|\d{2,})"), r"^{\1\2}"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°"), ""),
]
_NAMES = re.compile(r"\\[A-Za-z]+|\b(?:sin|cos|tan|log|ln|exp|sqrt|pi|infinity|inf|oo|mod)\b")
_PROSE = re.compile(r"[^\W\d_]{2,}")
_UNIT = re.compile(r"(?<=[\d}])\\(?:text|mathrm|mbox)\{[^{}]*\}(?:\^\{?\d\}?)?$")
_ARITHMETIC = re.compile(r"(?:[-+\d.,/^{}()$]|\\(?:frac|sqrt|cdot|times|div)(?![A-Za-z]) ?)+")
_NUMBER = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+))?")
_NORMAL_NUMBER = re.compile(r"-?\d+(?:\.\d+|/\d+)?")
_WORDS = re.compile(r"[^\W\d_][\w' -]*[^\W\d_]{3}[\w' -]*")
_SET, _TUPLE = re.compile(r"\\\{|\\lbrace"), re.compile(r"[(\[]")


class Undecided(Exception):
    """A comparison of two formulas that had no verdict within its processor time or memory."""


def formula_behind(tail: str) -> str | None:
    """Returns the formula that `tail`, the text behind an answer marker, begins with.

    Returns:
        Its normal form, "" where it is too long, or None where the first sentence is prose.
    """
    tail = tail[_OPENING.match(tail).end() : 4 * LONGEST]  # type: ignore[union-attr]
    sentence = _SENTENCE_END.split(tail, maxsplit=1)[0] or tail
    first = _DELIMITED.search(tail)
    if first and first.start() <= len(sentence) and not re.search(r"\d", tail[: first.start()]):
        return normal(_joined(tail, first))
    return normal(sentence) if is_formula(sentence) else None


def last_formula(text: str) -> str | None:
    """Returns the last formula between LaTeX's delimiters, or the whole text where it is one."""
    if is_formula(text):
        return normal(text) or None
    found = list(_DELIMITED.finditer(text[-4 * LONGEST :]))
    return normal(_inner(found[-1])) or None if found else None


def is_formula(text: str) -> bool:
    """Whether a text holds signs, numbers, letters and names of functions alone."""
    text = text.strip()
    bare = _DELIMITED.fullmatch(text)
    if not text or len(text) > LONGEST or ("\n" in text and not bare):
        return False
    return not _PROSE.search(_NAMES.sub(" ", _WRAPPED.sub(" ", text)))


def normal(formula: str) -> str:
    r"""The normal form of a formula, "" for what is longer than `LONGEST`.

    A whole number with a unit in `\text{}` is the number; a whole `\text{}` is its words.
    """
    for _ in range(_LAYERS):
        if (simpler := _simpler(formula)) == formula:
            break
        formula = simpler
    return formula


def _inside(formula: str) -> str | None:
    """What a formula wraps or boxes as a whole."""
    wrapped = _WRAPPED.fullmatch(formula)
    return wrapped[1] if wrapped else _boxed(formula)


def _simpler(formula: str) -> str:
    """One layer of layout less."""
    if bare := _DELIMITED.fullmatch(formula.strip()):
        formula = _inner(bare)
    formula = formula.strip().rstrip(".,;:").strip(" *_`")
    if len(formula) > LONGEST:
        return ""
    while (inner := _inside(formula)) is not None:
        formula = inner.strip()
    for pattern, new in _LAYOUT:
        formula = pattern.sub(new, formula)
    formula = " ".join(formula.split())
    if _WORDS.fullmatch(formula):
        return formula.casefold()
    for pattern, new in _PLAIN:
        formula = pattern.sub(new, formula)
    formula = " ".join(formula.split())
    formula = re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", formula)
    formula = _UNIT.sub("", formula)
    arithmetic = latex.plain(formula) if _ARITHMETIC.fullmatch(formula) else ""
    value = _NUMBER.fullmatch(arithmetic.replace(" ", ""))
    return (_number(value) if value else None) or formula


def same(found: str, gold: str) -> bool:
    """Whether two formulas in normal form have one value.

    `x = 5` is 5, as math-verify has it; a set in braces is no tuple.

    Raises:
        Undecided: the comparison was ended.
    """
    if found == gold:
        return True
    if _WORDS.fullmatch(found) or _WORDS.fullmatch(gold):
        return False
    verdict = _verdict(gold, found)
    if verdict is None:
        raise Undecided(f"{found} against {gold}")
    return verdict


def _joined(text: str, first: re.Match) -> str:
    """A formula and those that `and`, `or` or a comma join to it: elements of one set."""
    formulas, end = [_inner(first)], first.end()
    while joint := _JOINED.match(text, end):
        following = _DELIMITED.match(text, joint.end())
        if not following:
            break
        formulas.append(_inner(following))
        end = following.end()
    percent = "\\%" if len(formulas) == 1 and _PERCENT.match(text, end) else ""
    return ",".join(formulas) + percent


def _inner(delimited: re.Match) -> str:
    return next(part for part in delimited.groups() if part is not None).strip()


def _boxed(formula: str) -> str | None:
    if not formula.startswith(("\\boxed{", "\\fbox{")):
        return None
    inner = latex.group(formula, formula.index("{"))
    return inner if inner is not None and formula.endswith(inner + "}") else None


def _number(match: re.Match) -> str | None:
    top, bottom = read_literal(match[2]), read_literal(match[3] or "1")
    if top is None or not bottom:
        return None
    return format_number(-top / bottom if match[1] == "-" else top / bottom)


class _Comparer:
    """The process that compares; one is started where there is none, or where it was ended."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen
        self._pipes: tuple[IO[str], IO[str]]
        self._owner = 0  # a fork must not write into its parent's pipes

    def __call__(self, gold: str, found: str) -> bool | None:
        with self._lock:
            if self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            asked, answers = self._pipes
            asked.write(json.dumps([gold, found, CPU_SECONDS]) + "\n")
            asked.flush()
            answer = answers.readline()
            if not answer:  # the system ended it
                self.end()
            return None if not answer else answer == "same\n"

    def end(self) -> None:
        if self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()

    def _start(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sympy's order of terms follows it
            text=True,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._owner = os.getpid()
        asked, answers = self._process.stdin, self._process.stdout
        assert asked and answers  # they are pipes
        self._pipes = asked, answers
        if answers.readline() != "ready\n":
            self.end()
            raise RuntimeError("no process that compares formulas could be started")


_COMPARER = _Comparer()
atexit.register(_COMPARER.end)


@functools.lru_cache(maxsize=4096)
def _verdict(gold: str, found: str) -> bool | None:
    """Whether two that are written differently are the same; None where that was ended."""
    if _NORMAL_NUMBER.fullmatch(gold) and _NORMAL_NUMBER.fullmatch(found):
        return False
    return _COMPARER(gold, found)


def _serve() -> None:
    """Answers lines of stdin: a gold formula, a found one, and the seconds that they may take."""
    import resource  # which Windows lacks

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable(logging.CRITICAL)
    _equal("1", "\\frac{1}{2}")  # loads the parser
    print("ready", flush=True)
    for line in sys.stdin:
        gold, found, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process, in C code, too
        try:
            verdict = "same" if _equal(gold, found) else "different"
        except (MemoryError, RecursionError):
            os._exit(1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(verdict, flush=True)


def _equal(gold: str, found: str) -> bool:
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    if (_SET.match(gold) and _TUPLE.match(found)) or (_TUPLE.match(gold) and _SET.match(found)):
        return False
    settings = [LatexExtractionConfig()]
    trees = [
        parse(f"${_exact(formula)}$", settings, "no_fallback", parsing_timeout=None)
        for formula in (gold, found)
    ]
    if not all(trees):
        return False
    if verify(*trees, numeric_precision=_PRECISION, timeout_seconds=None):
        return True
    one, other = trees[0][0], trees[1][0]
    expressions = isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)
    # math-verify compares a lone symbol with its own name alone: `2x/2` would not be `x`.
    return expressions and (one.is_Symbol or other.is_Symbol) and sympy.simplify(one - other) == 0


def _exact(formula: str) -> str:
    """With fractions instead of decimals, which a parser rounds."""

    def fraction(match: re.Match) -> str:
        return rf"(\frac{{{match[1]}{match[2]}}}{{1{'0' * len(match[2])}}})"

    return re.sub(r"(\d*)\.(\d+)", fraction, formula)
