"""Finding the answer in a generated text, and comparing it with the gold one.

The papers' own rules lose signs, thousands and trailing zeros, or read a choice out of any capital
letter (see `legacy`). Here numbers are exact, choices are letters that stand as choices, and an
answer that cannot be found is None, which never matches.

A text is read in this order:

1. What a model thinks aloud (`<think>...`, closed or not) and what follows the mark that ends its
   turn (`<|im_end|>`, `</s>`) is no part of the text. Other scripts' digits and full-width signs
   become ASCII.
2. The last answer marker decides: `The answer is`, `**Answer**:`, `Final result:`, `####`, `-->`,
   `[ANSWER]`, `<answer>`, `\boxed{`, a heading `Answer`, and some other languages' words. A marker
   with nothing of the kind behind it gives way to the one before. One that says that there is no
   answer (`unknown`, `cannot be determined`) or an answer that cannot be read (`5/0`, `\\sqrt{2}`,
   `(A) or (B)`) ends the search: there is none.
3. Without a marker, mode `flexible` takes the last one of the text; of kinds that are words
   (`text`, labels) a bare answer alone: one line of at most `BARE_WORDS` words.
"""

import functools
import importlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_uppercase
from typing import Literal, NamedTuple, get_args

from cot_flax.errors import UserError
from cot_flax.text import formulas, latex, legacy
from cot_flax.text.arithmetic import evaluate, tokenize
from cot_flax.text.numerals import (
    ASCII_FORMS,
    find_numbers,
    first_number,
    fold_numbers,
    format_number,
    only_number,
    read_literal,
    with_points,
)
from cot_flax.text.units import UNITS, in_unit
from cot_flax.text.wording import LANGUAGES

_LAST_LETTERS = list(enumerate(ascii_uppercase))[1:]


class Added(NamedTuple):
    """What `add_answer_kind` was called with."""

    find: Callable[[str], list[str]]
    bare: bool


class Marked(NamedTuple):
    """What `marked_kind` was called with, and the patterns of all markers and of the stop text."""

    kind: str
    markers: tuple[str, ...]
    pattern: re.Pattern[str]
    stop: str
    end: re.Pattern[str] | None


KINDS = ["number", "choice", "yes_no", "text", "math"]  # and those of ADDED and MARKED
LETTERS = "letters"
"""A kind that is added below: a word, spelt or whole (`naoa`, `"n a o a"`, `n-a-o-a`)."""

OF_UNIT = {f"number in {unit}": unit for unit in UNITS}
"""Kinds of numbers that a card wants in one unit: `2 hours` is 120 of kind `number in minutes`."""
OF_LETTERS = {f"choice A-{last}": ascii_uppercase[: i + 1] for i, last in _LAST_LETTERS}
"""Kinds of choices among so many: of kind `choice A-E` an F is no answer."""
FLOAT = "float"
"""Numbers that the rule `ho2022` compares as floats, as it does AddSub's golds without a point."""
FAMILIES = {
    **dict.fromkeys(OF_UNIT, "number"), **dict.fromkeys(OF_LETTERS, "choice"), FLOAT: "number"
}  # fmt: skip
"""By kind the one of `KINDS` whose answers it has."""

ADDED: dict[str, Added] = {}
MARKED: dict[str, Marked] = {}
Mode = Literal["strict", "flexible", "fu2023", "ho2022", "kim2023"]  # the last three: legacy.RULES
MODES = get_args(Mode)
BARE_WORDS = 5
# Of the gold answers of a data set: so few different ones, each so often on average, are labels;
# such a share of them has the kind of all.
_LABELS, _TIMES, _SURE = 20, 3, 0.95
_CHOICE_GOLD = re.compile(r"\(?[A-Ja-j]\)?\W*")
_CALLED = {"number": "numbers", "choice": "letters of choices", "yes_no": "yes or no"}

_NOUNS = "|".join(known.nouns for known in LANGUAGES.values() if known.nouns)
_ATTRIBUTES = "|".join(known.attributes for known in LANGUAGES.values() if known.attributes)
_VERBS = "|".join(known.verbs for known in LANGUAGES.values() if known.verbs)
_PHRASES = "|".join(known.phrases for known in LANGUAGES.values() if known.phrases)
_WORDS = rf"(?<![^\W_])(?:{_NOUNS})(?:\s+(?:{_ATTRIBUTES})(?=\W))?"
_RESULT = (
    r"\bfinal\s+(?:result|solution|output|choice|decision|conclusion)"
    r"|\b(?:correct|right|best)\s+(?:option|choice|letter)"
)
_REMARK = r"(?:\s*\([^()\n]{0,40}\))?"
_ABOUT = r"\s+(?:to|for|in|of)\s[^.:=\n]{0,60}?"
_IS = (
    rf"\b(?:{_VERBS})\b(?:\s*:)?"
    r"|\b(?:would|should|must|will)\s+be\b|(?=\bcan(?:not|'t| not)\b)"
)
ANSWER_MARKER = re.compile(
    rf"(?:{_WORDS}|{_RESULT})(?:[*_`\"”]*{_REMARK}\s*[*_`\"”]*\s*(?:{_IS}|[:=])"
    rf"|{_ABOUT}\s+(?:{_IS}))"
    rf"|####|-->|\[answer\]|<answer>|\\(?:boxed|fbox)\b|{_PHRASES}",
    re.IGNORECASE,
)
_FIRST_UNSPACED = "\u2e80"  # Chinese, Japanese and Korean, from here on
_CHOICE_MARKER = re.compile(
    rf"{ANSWER_MARKER.pattern}|\bI(?:'ll| will| would)?\s+(?:choose|pick|select)\b", re.IGNORECASE
)
# One of these is in every marker of an ASCII text, with at most so many characters before it.
_STEMS = (
    *("answer", "respuesta", "reponse", "antwort", "resposta", "risposta", "final", "correct"),
    *("right", "best", "####", "-->", "boxed", "fbox", "choose", "pick", "select"),
)
_BEFORE_STEM = 20
_HOPED = re.compile(r"\b(?:hope|sure)\b[^.!?\n]*$")  # `I hope that my answer is right`
_SENTENCE_END = re.compile(
    r"\n|###|[.!?](?=\s+[A-Z(\"]|\s*$)|(?<=[0-9%)])\.\s"  # not the dot of `Rs. 500` or `approx. 5`
)
_EMPHASIS = re.compile(r"(?:\s|[*`:]|__)*")
_ADVERB = re.compile(r"(?:\s|[*_`:]|,|\b(?:therefore|thus|hence|then|simply|clearly)\b)*", re.I)
_BULLET = re.compile(r"[^\S\n]*\n\s*+[-*•]\s+")
_OPENING = re.compile(r"(?:\s|[*_`:]|\\[\[(]|\$+(?=\s|\\))*")
_REFUSABLE = {"number", "choice", "yes_no"}  # elsewhere `none` or `not urgent` may be an answer
_NO_ANSWER = re.compile(
    r"\W*(?:(?:is|are)\s+)?(?:unknown|unclear|undetermined|undefined|indeterminate|impossible"
    r"|ambiguous|uncertain|cannot|can't|can not|none(?!\s+of\s+(?:the|these))|n/a"
    r"|not\b(?!\s+only))",
    re.IGNORECASE,
)
# Of formulas, among which `undefined` and `none` are answers.
_NOT_FOUND = re.compile(
    r"\W*(?:(?:is|are)\s+)?(?:unknown|unclear|undetermined|cannot|can't|can not|not\b)",
    re.IGNORECASE,
)
_BUT = re.compile(
    r"\W*not\b(?!\s+(?:known|clear|given|enough|possible|sure|certain))[^.!?\n]*?"
    r"\b(?:but|rather|it is|it's)\s+",
    re.IGNORECASE,
)
# Words behind a marker that speak of the answer and do not give it.
_COMMENT = re.compile(
    r"[\s*_`\".:]*(?:(?:the\s+)?(?:correct|right|helpful|useful|clear|obvious|complete|found|shown"
    r"|given|verified|reasonable|above|below|here|as\s+follows)\b|$)",
    re.IGNORECASE,
)

_THOUGHT = re.compile(
    r"<\|?(/?)(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)\s*\|?>"
    r"|\[(/?)think\]|◁(/?)think▷|<\|(?:begin|(end))_of_thought\|>",
    re.IGNORECASE,
)
_FINAL_CHANNEL = "<|channel|>final<|message|>"
_OTHER_CHANNEL = "<|channel|>"
_BEGIN = r"(?:\s|<pad>|<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)*"
# The header of a student's turn, by family: ChatML (Qwen), gpt-oss, Phi, Llama, Gemma, DeepSeek,
# Mistral, Command R, Granite, EXAONE.
_ASSISTANT = (
    r"<\|im_start\|>(?:assistant)?(?:<\|im_sep\|>)?|<\|start\|>assistant|<\|assistant\|>"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|<｜Assistant｜>"
    r"|\[/INST\]|<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>"
    r"|<\|start_of_role\|>assistant<\|end_of_role\|>|\[\|assistant\|\]"
)
_TURN_START = re.compile(rf"{_BEGIN}(?:{_ASSISTANT})?\s*")
_OTHERS = (
    r"<\|im_start\|>(?:user|system|tool)|<\|start\|>(?:user|system|developer)"
    r"|<\|(?:user|system|observation)\|>|<\|start_header_id\|>(?!assistant)|<start_of_turn>user"
    r"|<｜User｜>|\[INST\]|<\|START_OF_TURN_TOKEN\|><\|(?:USER|SYSTEM)_TOKEN\|>"
    r"|<\|start_of_role\|>(?!assistant)|\[\|(?:user|system)\|\]"
)
_PROMPT_START = re.compile(rf"{_BEGIN}(?:{_OTHERS})")
_HEADER = re.compile(_ASSISTANT)
_TURN_END = re.compile(
    r"<\|(?:im_end|endoftext|end_of_text|eot_id|eom_id|eot|eom|end|return|end_of_turn)\|>"
    r"|</s>|<eos>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>|<\|END_OF_TURN_TOKEN\|>"
    rf"|\[\|endofturn\|\]|<\|im_start\|>|{_OTHERS}"
)
_MARK = re.compile(r"[<\[◁][|｜/A-Za-z]")  # whether there may be one: not GSM8K's `<<6*7=42>>`
# Behind its answer a model without such marks asks itself the next question.
_NEXT_QUESTION = re.compile(
    r"\n\s*(?:#+ |\*\*)?(?:Q|Question|Human|User|Instruction|Problem)(?: [0-9]+)?(?:\*\*)?\s*:"
)

_BRACKETED = r"(?<!\w)\((?:(?:option|choice|answer)\s+)?([A-Za-z])\)"
# `A` and `I` are words first: they are choices unless a word follows that may follow an article or
# a pronoun.
_ALONE = r"(?!\s+(?!(?:because|since|as|is|and|or|which)\b)\w)"
_BARE = rf"(?<![\w'’.&/-])([B-HJ-Z]|[AI]{_ALONE})(?![\w'’&/+]|-(?!-))(?!\.\w)"
_CHOICE = re.compile(rf"{_BRACKETED}|{_BARE}")
_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_LETTERED = re.compile(r"[^\w(]*([A-Za-z])\)(?!\w)")
_REJECTED = re.compile(
    r"\b(?:not|isn't|than|instead of|unlike|ruled? out|exclude|eliminate|reject|none of"
    r"|neither|nor)\s+"
    r"(?:option\s+|choice\s+)?(?:\([A-Za-z]\)|[A-Z]\b)"
    r"(?:(?:,|,? and|,? or)\s+(?:\([A-Za-z]\)|[A-Z]\b))*",
    re.IGNORECASE,
)
_AFFIRMED = re.compile(
    rf"(?:{_BRACKETED}|{_BARE}) (?:is|would be|must be|seems) (?:the )?"
    r"(?:(?:most )?(?:correct|right|best|likely)|answer)\b"
)
_NEGATED = re.compile(r"\b(?:none|neither|nor|not|no)\b[^.!?\n]*$", re.IGNORECASE)
_DISMISSED = re.compile(
    r"(?:(?:\([A-Za-z]\)|\b[A-Z]\b)(?:,? and |,? or |, )?){1,6} (?:is|are) "
    r"(?:not|wrong|incorrect|false|out)\b"
)
_EITHER = re.compile(
    r"(?:\([A-Za-z]\)|[A-Z]\b)(?:\s*/\s*|,?\s+(?:or|and)\s+)(?:option\s+)?(?:\([A-Za-z]\)|[B-HJ-Z]\b)"
)

_YES_NO = re.compile(
    r"(?<![\w-])(?:(?P<both>(?:yes|true)\s*(?:/|\bor\b)\s*(?:no|false))"
    r"|(?P<not>\bnot\s+)?(?P<word>yes|no|true|false))(?![\w-])",
    re.IGNORECASE,
)
# `no` is an answer, unless it belongs to a noun (`no doubt`); in a sentence of its own words may
# follow that go on (`no it is not`).
_GOES_ON = re.compile(
    r"\W*$|\W*[^\w\s]|\s+(?:and|as|at|because|but|for|he|i|if|in|it|not|on|she|since|so|that|the"
    r"|there|they|this|we|you)\b",
    re.IGNORECASE,
)
_OF_A_NOUN = re.compile(
    r"\s+(?:doubt|longer|more|one|idea|matter|question|way|need|such|other|reason|answer)\b", re.I
)
_ENDS = re.compile(r"\W*$|[*_\"'”)]*[.,;!?\n]|\s+(?:because|since)\b")
_FALSE = {"no", "false"}

_QUOTES = " \"'`“”‘’*"
_ABBREVIATION = re.compile(
    r"(?:\b(?:St|Mt|Ft|Mr|Mrs|Ms|Dr|Prof|Jr|Sr|vs|etc|approx|e\.g|i\.e|a\.m|p\.m)"
    r"|(?:^|\s)[A-Z](?:\.[A-Z])*)$"
)
_STARTS_SENTENCE = re.compile(
    r"\s+(?:The|This|That|It|So|Therefore|Thus|Hence|He|She|They|We|I|A|An|In|If|Because|Since"
    r"|However|There|You|Q|Question|Answer|What|How)\b"
)
_TEXT_END = re.compile(
    r"\n|\s*###|\s+(?:Q|Question):\s|[.!?](?=[*_\"'”)]*\s+[A-Z(\"])|,?\s+(?:because|since)\s"
    r"|,\s+(?:as|so|which|given|due to)\s"
)
_QUOTED = re.compile(r"\s*(?:\"([^\"\n]+)\"|“([^”\n]+)”)(?=\W*$|[.,;}]|\s*\()")
_PARENTHESIS = re.compile(r"(?<=\w)\s*\([^()]*\)$")

_SIMPLE = re.compile(r"\$?((?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)%?[.\s]*")
_REMARKS = re.compile(  # `18 dollars (9 + 9 = 18)`, `4 (4 x 1)`; not `2 (3 + 4) = 14`
    r"(?:(?<=[\w%€°$*}])\s*\([^()]*=[^()]*\)|(?:(?<=[0-9%€°])|(?<=\*\*))\s+\([^()]*\))"
    r"(?!\s*[-−=+*/×·÷])"
)
_WHICH_IS = re.compile(
    r",?\s+which (?:is|equals)\s+(?=\S*[0-9]\S*(?:\s+(?!more|less|fewer|times)\w+)?\W*$)"
)
_REASON = re.compile(r",?\s+(?:because|since|as|where|which)\s")
_EXPRESSION = re.compile(r"(?:[-−(]\s*)*+[$€£¥₹]?[0-9][0-9.,()+\-−–*/×·÷xX%$€£¥₹ ]*")
_OPERATOR = re.compile(r"[0-9)%]\s*[+*×·÷]\s*[-−0-9($€£]|[0-9)%]\s+[-−–/xX]\s+[-−0-9($€£]")
_SPAN = re.compile(
    r"(?<![0-9.,])[$€£¥₹]?([0-9][0-9.,]*+)\s?%?[-–][$€£¥₹]?([0-9][0-9.,]*+)(?![-–/^])"
)
_DASHED = re.compile(r"(?<![0-9])[0-9]++([-–/])[0-9]++(?:\1[0-9]++)++")
_BETWEEN = re.compile(r"\W*between\b", re.IGNORECASE)
_TUPLE = re.compile(
    r"(?!\W*\d{1,3}(?:,\d{3})+\W)\W*[(\[{]\s*[-−]?[0-9.]+(?:\s*[,;]\s*[-−]?[0-9.]+)+\s*[)\]}]"
)
_OR = re.compile(r"\s+(?:or|to)\s+(?:[a-z]\s*=\s*)?(?=[-−$]?[0-9])")
_OTHER_UNIT = re.compile(r"[$€£¥₹]\s?[0-9.,]+ or [0-9]")  # `$5 or 500 cents`
_IN_WORDS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
_WORD_OPERATOR = re.compile(r"(?<=[0-9]) (plus|minus|times|divided by) (?=[0-9])")

_DIGIT = re.compile("[0-9¼-¾⅐-⅞]")
_LONGEST_FORMULAS = 400  # characters of a text in which formulas are read

# A gold such as 0.6666666667 is a quotient that its data set rounded (29 golds each of PAL's AddSub
# and SingleEq): from this many decimals on, agreement to _ROUNDED_TOLERANCE is equality.
_ROUNDED_DECIMALS = 9
_ROUNDED_TOLERANCE = Fraction(1, 10**9)

_NONE_THERE = ""
"""What a finder returns for an answer that cannot be read or is none: the search ends. (None: it
found nothing, and the search goes on.)"""


def extract_answer(text: str, *, kind: str, mode: str) -> str | None:
    """Returns the answer that `text` gives, in a normal form, or None if it gives none.

    Args:
        text: a generation, a chain of thought, or a gold answer.
        kind: `number` (normal form `18`, `-0.75`, `1/3`; a percent sign is a unit, so `50%` is 50),
            `choice` (a capital letter), `yes_no` (`true` is yes), or `text` (case-folded, in NFC,
            single spaces, no quotes or final full stop), `math` (a formula; see `formulas`), or one
            that `add_answer_kind` added. Of kind `choice A-E` other letters are no answers; of kind
            `number in minutes`, or another of `UNITS`, two hours are 120; `float` is `number`,
            which the papers' rule `ho2022` compares as a float.
        mode: `strict` reads only what follows an answer marker: the first number, choice or yes/no
            of that sentence (what follows the last `=`, if any), or the sentence up to `because`.
            `flexible` does the same, and takes the last one of the whole text where no marker gives
            one; for `text` the whole text, if it is one line of at most `BARE_WORDS` words.
            `fu2023`, `ho2022`, `kim2023` are the papers' rules, see `legacy`.

    Raises:
        UserError: unknown `kind` or `mode`.
    """
    _check_names(kind, mode)
    if mode in legacy.RULES:
        return legacy.RULES[mode].extract(text, _paper_kind(kind))
    text = _before_next_question(said(_stopped(text, kind)), kind)
    if "," in text and family(kind) == "number":
        text = with_points(text)
    found, decided = _marked(text, kind)
    if found or decided or mode == "strict":
        return found or None
    return _LAST[base_kind(kind)](text) or None


def answers_match(pred: str | None, gold: str, *, kind: str, mode: str = "strict") -> bool:
    """Says whether `pred`, an answer that `extract_answer` found, is the gold answer.

    Args:
        pred: the extracted answer; None (nothing found) never matches.
        gold: the gold answer, bare (`1,080`) or at the end of its solution (`... #### 1,080`). Of
            kind `text` a bare one may have any length: without a marker its last line is read.
        kind: as in `extract_answer`. Numbers are compared as exact fractions; only a gold with nine
            or more decimals, which some data set rounded, is met within 1e-9. A text may add a
            remark in brackets to the gold one: `page (urgent)` is `page`, not the other way round.
        mode: the mode of the extraction. A paper's name asks for that paper's comparison too, in
            which a gold that cannot be read is merely never matched.

    Raises:
        UserError: unknown `kind` or `mode`, or a gold in which there is no answer of that kind.
        formulas.Undecided: the comparison of two formulas was ended without a verdict.
    """
    _check_names(kind, mode)
    if mode in legacy.RULES:
        return pred is not None and legacy.RULES[mode].matches(pred, gold, _paper_kind(kind))
    wanted = gold_answer(gold, kind=kind)
    if wanted is None:
        raise UserError(
            f"the gold answer {gold[:80]!r}",
            f"an answer of kind {kind!r}",
            "fix the data or its kind",
        )
    found = None if pred is None else gold_answer(pred, kind=kind)
    if found is None:
        return False
    base = family(kind)
    if base == "number":
        return _same_number(found, wanted)
    if base == "math":
        return formulas.same(found, wanted)
    if base == "text" and found != wanted:  # what `The answer is` and this gold would give
        return found == _first_text(_last_line(gold)) or _PARENTHESIS.sub("", found) == wanted
    return found == wanted


def add_answer_kind(name: str, find: Callable[[str], list[str]], *, bare: bool = False) -> None:
    """Adds a kind of answer, such as a time of day; call it where a module of yours is imported.

    Its answers are read as choices are: the first one of the sentence behind the last marker, or,
    in mode `flexible` and without a marker, the last one of the text. The papers' rules treat the
    kind as text.

    Args:
        name: what is passed as `kind` from then on, and to `add_cot_task` as `answer_kind`.
        find: returns all answers in a text, in their order and each in its normal form. Answers of
            one normal form are the same; `find` must find a normal form as it is. A function of a
            module, not a lambda: `prepare` asks its other processes to import it.
        bare: for answers that are words of any prose, such as labels (`close`): without a marker
            the last one of a text counts only where all that are in it are the same and it is one
            line of at most `BARE_WORDS` words, or where it is the whole text.

    Raises:
        UserError: there is another kind of this name.
    """
    if ADDED.get(name) == (find, bare):
        return
    if is_kind(name):
        raise UserError(
            f"answer kind {name!r} a second time",
            "a new name",
            "choose another one, or import the module that adds it under one name only",
        )
    _FIRST[name] = lambda tail: next(iter(find(first_sentence(tail))), None)
    _LAST[name] = lambda text: next(reversed(find(text)), None)
    if bare:
        _LAST[name] = lambda text: _bare_word(text, find)
    ADDED[name] = Added(find, bare)
    KINDS.append(name)


@dataclass(frozen=True)
class Labels:
    """Finds the labels of a closed list in a text; other words are no answers.

    Labels are words of any prose (`close`): `add_answer_kind` takes them with `bare`.

    Attributes:
        labels: in the normal form of kind `text`.
    """

    labels: tuple[str, ...]

    def __call__(self, text: str) -> list[str]:
        longest_first = sorted(self.labels, key=len, reverse=True)
        one = "|".join(r"\s+".join(map(re.escape, label.split())) for label in longest_first)
        found = re.findall(rf"(?<!\w)(?:{one})(?!\w)", text, re.IGNORECASE)
        return [normal_text(label) for label in found]


def label_kind(labels: Collection[str]) -> str:
    """Returns the kind whose answers are these labels alone; adds it where it is new."""
    known = tuple(sorted(set(map(normal_text, labels))))
    kind = f"one of {', '.join(known)}"
    if kind not in KINDS:
        add_answer_kind(kind, Labels(known), bare=True)
    return kind


def labels_of(kind: str) -> tuple[str, ...]:
    """The labels of a kind that `label_kind` gave; none of any other."""
    found = ADDED[kind].find if kind in ADDED else None
    return found.labels if isinstance(found, Labels) else ()


def marked_kind(kind: str, markers: Sequence[str], stop: str = "") -> str:
    """Returns a kind whose answers are also found behind these markers; adds it where it is new.

    Case, white space within a marker, and a colon or `is` behind it do not count. Markers that are
    known anyway need no kind of their own: without a stop text it is `kind` then.

    Args:
        kind: what the answers are.
        markers: such as `Verdict`.
        stop: ends the text, such as `END`, in this case and as words of their own.

    Raises:
        UserError: an unknown `kind`.
    """
    check_kind(kind)
    new = tuple(sorted({" ".join(said(m).split()).casefold() for m in markers if not _known(m)}))
    stop = " ".join(stop.split())
    if not new and not stop:
        return kind
    name = kind + f" behind {', '.join(new)}" * bool(new) + f" up to {stop}" * bool(stop)
    if name not in MARKED:
        pattern = _markers_of(kind)
        if new:
            own = rf"(?:{'|'.join(map(_own, new))})(?:[*_`\"”]*\s*(?:{_IS}|[:=]))?"
            pattern = re.compile(f"{pattern.pattern}|{own}", re.IGNORECASE)
        end = re.compile(rf"\s*{_own(stop)}") if stop else None
        MARKED[name] = Marked(kind, new, pattern, stop, end)
        KINDS.append(name)
    return name


def describe_kind(kind: str) -> dict:
    """What `described_kind` needs to add the kind in another process, as JSON values."""
    base, marked = base_kind(kind), MARKED.get(kind)
    found: dict = {"kind": base}
    if labels := labels_of(base):
        found["labels"] = list(labels)
    elif base in ADDED:
        found["module"] = ADDED[base].find.__module__
    if marked:
        found |= {"markers": list(marked.markers), "stop": marked.stop}
    return found


def described_kind(description: Mapping) -> str:
    """The kind that `describe_kind` described; adds it where it is new.

    A kind of somebody's own is added where its module is imported.

    Raises:
        UserError: its module is not there, or adds it no more.
    """
    kind = description["kind"]
    if labels := description.get("labels"):
        kind = label_kind(labels)
    elif not is_kind(kind) and (module := description.get("module")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            got, wanted = f"answer kind {kind!r} of {module}: {error}", "a module to be imported"
            raise UserError(got, wanted, "put it on PYTHONPATH") from error
    return marked_kind(kind, description.get("markers", ()), description.get("stop", ""))


def base_kind(kind: str) -> str:
    """The kind itself, of one with markers of its own."""
    return MARKED[kind].kind if kind in MARKED else kind


def family(kind: str) -> str:
    """Which of `KINDS` a kind's answers are: `choice` of `choice A-E`, with or without markers."""
    kind = base_kind(kind)
    return FAMILIES.get(kind, kind)


def is_kind(kind: str) -> bool:
    """Whether there is such a kind: ours, or one that was added."""
    return kind in KINDS or kind in FAMILIES


def kinds_said() -> str:
    """The names of all kinds, for a message."""
    return (
        f"one of {(*KINDS, FLOAT)}, 'choice A-B' to 'choice A-Z', 'number in' one of "
        f"{', '.join(UNITS)}"
    )


def _paper_kind(kind: str) -> str:
    """What a paper's rule needs to know of a kind."""
    base = base_kind(kind)
    return base if base == FLOAT or base in OF_LETTERS else family(kind)


def _stopped(text: str, kind: str) -> str:
    """The text up to the stop text of its kind, if there is one."""
    end = MARKED[kind].end if kind in MARKED else None
    return end.split(text, maxsplit=1)[0] if end else text


def _known(marker: str) -> bool:
    """Whether a marker, with or without a colon, is one of any text."""
    text = said(marker).strip()
    return any(
        (found := ANSWER_MARKER.search(f"{text}{end}")) and found.end() >= len(text)
        for end in (" ", ": ")
    )


def _own(marker: str) -> str:
    """The pattern of a marker: whole words in scripts that set them apart."""
    before = r"(?<![^\W_])" * (marker[0].isalnum() and marker[0] < _FIRST_UNSPACED)
    behind = r"(?![^\W_])" * (marker[-1].isalpha() and marker[-1] < _FIRST_UNSPACED)
    return before + r"\s+".join(map(re.escape, marker.split())) + behind


def _markers_of(kind: str) -> re.Pattern[str]:
    if kind in MARKED:
        return MARKED[kind].pattern
    return _CHOICE_MARKER if family(kind) == "choice" else ANSWER_MARKER


def first_sentence(text: str) -> str:
    """Returns `text` up to its first line break, `###` or end of a sentence."""
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def said(text: str) -> str:
    """Returns what a model says in `text`: not what it thinks, nor what follows its turn.

    A thought that is never closed goes to the end; one that the chat template opened, from the
    start. Full-width signs and other scripts' digits become ASCII.
    """
    if _MARK.search(text):
        if _PROMPT_START.match(text):  # the prompt is part of it
            text = text[max((header.end() for header in _HEADER.finditer(text)), default=0) :]
        text = _without_thoughts(text)
        text = _behind(_TURN_START, text)
        text = _TURN_END.split(text, maxsplit=1)[0]
    return text if text.isascii() else text.translate(ASCII_FORMS)


def gold_answer(gold: str, *, kind: str) -> str | None:
    """Returns a gold answer in its normal form, or None if there is none of that kind in it.

    As `extract_answer` in mode `flexible`, except that a bare text or formula may have any length
    and may be prose: its last line is the answer.
    """
    if base_kind(kind) not in _BARE_GOLDS:
        return extract_answer(gold, kind=kind, mode="flexible")
    text = said(_stopped(gold, kind))
    return _marked(text, kind)[0] or _BARE_GOLDS[base_kind(kind)](_last_line(text)) or None


def kind_of_gold(gold: str) -> str:
    """The kind that a bare gold answer looks like: "number", "yes_no", "choice", else "text".

    A letter is a choice (`B`, `(b)`), a number may have a unit; words are none of them, whatever
    number stands among them.
    """
    gold = said(gold).strip()
    if re.fullmatch(r"(?:yes|no|true|false)\W*", gold, re.IGNORECASE):
        return "yes_no"
    if re.fullmatch(r"\(?[A-Z]\)?\W*|\([a-z]\)\W*", gold):
        return "choice"
    without_unit = re.sub(r"[^\W\d_]+\W*$", "", gold)
    numbers = [] if re.search(r"[^\W\d_]", without_unit) else only_number(gold)
    return "number" if numbers and numbers[0] is not None else "text"


class GoldKind(NamedTuple):
    """Of what kind the gold answers of a data set are.

    Attributes:
        kind: "number", "choice", "yes_no", "text", or "labels": a closed list of texts.
        labels: that list, in the normal form of kind `text` and in alphabetical order.
        why: what was seen, in words that follow on `for`.
    """

    kind: str
    labels: tuple[str, ...]
    why: str

    @property
    def name(self) -> str:
        """What is passed as `kind`; adds that of labels where it is new."""
        return label_kind(self.labels) if self.labels else self.kind


def kind_of_golds(golds: Iterable[str]) -> GoldKind:
    """The kind that the bare gold answers of a data set look like; "" is none of them.

    1. That of all of them (`kind_of_gold`); letters from a to j are choices in lower case, too.
    2. Labels, where a few different answers come again and again: at most 20, each three times on
       average, all of which a closing line can give. Beside numbers, choices or yes and no they
       are labels where they come as often (`maybe` beside `yes`), not where they are single slips.
    3. The kind of 95 % of them: the others are answers that cannot be read.
    4. Texts.
    """
    given = Counter(golds)
    given.pop("", None)
    total, labels = given.total(), _few_labels(given)
    if all(map(_CHOICE_GOLD.fullmatch, given)):
        kinds = dict.fromkeys(given, "choice")
    else:
        kinds = {gold: kind_of_gold(gold) for gold in given}
    counts: Counter[str] = Counter()
    for gold, kind in kinds.items():
        counts[kind] += given[gold]
    kind, count = counts.most_common(1)[0] if counts else ("text", 0)
    others = [gold for gold in given if kinds[gold] != kind]
    is_sure = kind != "text" and count >= _SURE * total
    are_slips = total - count < _TIMES * len(set(map(normal_text, others)))
    most = ", ".join(f"{label} {number}" for label, number in labels.most_common())
    seen = f"({most})" if most else f"({len(given):,} different ones)"
    if labels and not (is_sure and (not others or are_slips)) and _can_be_labels(given, labels):
        why = f"{len(labels)} different ones come again and again among {total:,} {seen}"
        return GoldKind("labels", tuple(sorted(labels)), why)
    if is_sure:
        slips = f" but {total - count:,}, such as {others[0]!r}," if others else ""
        return GoldKind(kind, (), f"all{slips} of {total:,} are {_CALLED[kind]} {seen}")
    looks = f", which look like {', '.join(sorted(counts))}" if len(counts) > 1 else ""
    return GoldKind("text", (), f"there are {len(given):,} different ones among {total:,}{looks}")


def _few_labels(given: Counter[str]) -> Counter[str]:
    """How often each of the few different answers stands there; none where they are many."""
    labels: Counter[str] = Counter()
    for gold, count in given.items():
        labels[normal_text(gold)] += count
        if len(labels) > _LABELS:
            return Counter()
    return labels if given.total() >= _TIMES * len(labels) else Counter()


def _can_be_labels(given: Iterable[str], labels: Collection[str]) -> bool:
    """Whether a closing line, and a gold answer alone, give each of them as itself."""
    find = Labels(tuple(labels))
    return len(labels) > 1 and all(
        find(first_sentence(gold))[:1] == [normal_text(gold)] == [_bare_word(gold, find)]
        for gold in given
    )


def whole_text(text: str, gold: str, kind: str = "text") -> str | None:
    """Returns `text` in the normal form of kind `text` if all of it, however long, is `gold`."""
    text = said(_stopped(text, kind))
    normal = normal_text(text) if "\n" not in text.strip() else None
    return normal if normal and normal == gold_answer(gold, kind="text") else None


def check_kind(kind: str) -> None:
    """Raises UserError for a kind that is neither ours nor added."""
    if not is_kind(kind):
        raise UserError(f"answer kind {kind!r}", kinds_said(), "correct the name, or add the kind")


def _check_names(kind: str, mode: str) -> None:
    check_kind(kind)
    if mode not in MODES:
        raise UserError(f"extraction mode {mode!r}", f"one of {MODES}", "correct the name")


def _same_number(found: str, gold: str) -> bool:
    rounded = len(gold.partition(".")[2]) >= _ROUNDED_DECIMALS
    return abs(Fraction(found) - Fraction(gold)) <= rounded * _ROUNDED_TOLERANCE


def _before_next_question(text: str, kind: str) -> str:
    """The text up to a further question: behind an answer marker, or `Q:` behind an empty line.

    A text that begins with a question is a prompt with its examples, and left whole.
    """
    following = _NEXT_QUESTION.search(text) if ":" in text else None
    if not following or _NEXT_QUESTION.match(f"\n{text[:20]}"):
        return text
    before = text[: following.start()]
    ends = following[0].startswith("\n\nQ:") or _markers_of(kind).search(before)
    return before if ends and before.strip() else text


def _without_thoughts(text: str) -> str:
    if _FINAL_CHANNEL in text:
        return text.rpartition(_FINAL_CHANNEL)[2]
    if _OTHER_CHANNEL in text:
        return ""
    kept, start, thinks = [], 0, False
    for tag in _THOUGHT.finditer(text):
        closes = any(tag.groups())
        if not closes and not thinks:
            kept.append(text[start : tag.start()])
        elif closes and not thinks:
            kept = []  # opened by the template
        thinks, start = not closes, tag.end()
    return " ".join([*kept, "" if thinks else text[start:]])


def _marked(text: str, kind: str) -> tuple[str | None, bool]:
    """The answer behind the last marker that gives one, and whether the search ends there."""
    tails, first, kind = _tails(text, kind), _FIRST[base_kind(kind)], family(kind)
    for end, tail in tails:
        if _HOPED.search(text, max(0, end - 60), end):
            continue
        if (kind in _REFUSABLE and _NO_ANSWER.match(tail)) or (
            kind == "math" and _NOT_FOUND.match(tail)
        ):
            return None, True
        found = first(tail)
        if found is not None:
            return found, True
        if kind != "number" and not _COMMENT.match(first_sentence(tail)):
            return None, True  # another answer stands there, such as `Bank` for a choice
    return None, False


def _tails(text: str, kind: str) -> Iterator[tuple[int, str]]:
    """(end of a marker, what follows it up to the next one), the last marker first."""
    own = MARKED[kind].markers if kind in MARKED else ()
    markers = list(_markers_of(kind).finditer(text, _first_stem(text, own)))
    kind = family(kind)
    if kind == "choice":
        markers = sorted([*markers, *_AFFIRMED.finditer(text)], key=re.Match.end)
    end = len(text)
    for marker in reversed(markers):
        if marker.re is not _AFFIRMED:
            yield marker.end(), _tail(text[marker.end() : end], marker[0].lower(), kind)
        elif not _NEGATED.search(text, max(0, marker.start() - 60), marker.start()):
            yield marker.end(), f"({marker[1] or marker[2]})"
        end = marker.start()


def _behind(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.match(text)
    return text[match.end() :] if match else text


def _first_stem(text: str, own: Sequence[str]) -> int:
    """Where a marker may begin at the earliest: finding substrings is faster than the pattern."""
    if not text.isascii():
        return 0
    lower = text.lower()
    stems = (*_STEMS, *(marker.split()[0] for marker in own))
    places = [place for place in map(lower.find, stems) if place >= 0]
    return max(0, min(places) - _BEFORE_STEM) if places else len(text)


def _tail(tail: str, marker: str, kind: str) -> str:
    """What stands behind a marker as the answer: in its box or tag, behind `therefore`, ..."""
    if marker.endswith(("boxed", "fbox")):
        tail = tail.lstrip()
        boxed = (latex.group(tail, 0) or "").strip() if tail.startswith("{") else ""
        return rf"\[{boxed}\]" if boxed and kind == "math" else boxed  # whole, whatever it is
    if marker == "<answer>":
        tail = tail.partition("</")[0]
    if marker.endswith("\n"):
        tail = f"\n{tail}"
    if bullet := _BULLET.match(tail):
        tail = tail[bullet.end() :]
    tail = _behind(_EMPHASIS, tail)
    if kind not in _REFUSABLE:  # `therefore` may be an answer
        return tail
    tail = _behind(_ADVERB, tail)
    but = _BUT.match(tail)
    return tail[but.end() :] if but else tail


def _first_number(tail: str) -> str | None:
    sentence = first_sentence(_behind(_OPENING, tail))
    if simple := _SIMPLE.fullmatch(sentence):  # as most are: the steps below find the same
        return _written([read_literal(simple[1])])
    sentence = _REMARKS.sub("", fold_numbers(sentence))
    sentence = _REMARKS.sub("", latex.plain(sentence))
    sentence = _WHICH_IS.sub(" = ", sentence)
    reason = _REASON.search(sentence)
    if reason and first_number(sentence[: reason.start()]):
        sentence = sentence[: reason.start()]
    return _written(_stated(sentence))


def _written(numbers: list[Fraction | None]) -> str | None:
    if not numbers:
        return None
    return _NONE_THERE if numbers[-1] is None else format_number(numbers[-1])


def _stated(sentence: str) -> list[Fraction | None]:
    """What follows the last `=`; a sum only where no other side has a number (`5 = 2 + 3`)."""
    value: list[Fraction | None] = []
    for side in reversed(re.split("=+", sentence)):
        if total := _sum(side):
            value = value or total
        elif number := _one_number(side):
            return number
    return value


def _sum(side: str) -> list[Fraction | None]:
    """The value of the expression that `side` begins with; [] where it is none."""
    match = _EXPRESSION.search(_WORD_OPERATOR.sub(lambda m: _IN_WORDS[m[1]].center(3), side))
    if not match or match.string[match.end() : match.end() + 1] == "^":
        return []
    written = match[0].rstrip(" .,+-−–*/×·÷xX($€£¥₹")
    if not _OPERATOR.search(written):
        return []
    value = evaluate(tokenize(written, 0, len(written)))
    return [] if value is None else [value]


def _one_number(side: str) -> list[Fraction | None]:
    """The first number of `side`; [None] where it is one of several, such as a range."""
    if _BETWEEN.match(side) or _TUPLE.match(side) or _DASHED.search(side):
        return [None] if find_numbers(side) else []
    if span := _SPAN.search(side):
        low, high = (find_numbers(end)[0] for end in span.groups())
        if low is not None and high is not None and not find_numbers(side[: span.start()]):
            return [low - high if low > high else None]
    number = first_number(side)
    if (other := _OR.search(side)) and not _OTHER_UNIT.search(side):
        numbers = [find_numbers(side[: other.start()]), first_number(side[other.end() :])]
        if all(len(found) == 1 for found in numbers) and numbers[0] != numbers[1]:
            return [None]
    return number


def _last_number(text: str) -> str | None:
    if _is_bare(text) or _EXPRESSION.fullmatch(text):
        plain = latex.plain(fold_numbers(text))
        numbers = only_number(plain) or ([] if _DIGIT.search(plain) else first_number(plain))
        if numbers := numbers or (_sum(plain) if _EXPRESSION.fullmatch(plain) else []):
            return _written(numbers)
    line = next((line for line in reversed(text.split("\n")) if _DIGIT.search(line)), "")
    line = fold_numbers(line)
    if latex.MARKUP.search(line):
        line = latex.plain(line[-_LONGEST_FORMULAS:])
    return _written(find_numbers(line))


def _first_in_unit(tail: str, unit: str) -> str | None:
    return _first_number(in_unit(first_sentence(_behind(_OPENING, tail)), unit))


def _last_in_unit(text: str, unit: str) -> str | None:
    return _last_number(in_unit(text, unit))


def _is_bare(text: str) -> bool:
    return "\n" not in text.strip() and len(text.split(maxsplit=BARE_WORDS)) <= BARE_WORDS


def _choices(text: str, letters: str) -> list[str]:
    lone = _LONE_LETTER.fullmatch(text)
    found = [lone[1]] if lone else [match[1] or match[2] for match in _CHOICE.finditer(text)]
    return [letter for letter in map(str.upper, found) if letter in letters]


def _first_choice(tail: str, letters: str = ascii_uppercase) -> str | None:
    sentence = first_sentence(latex.plain(tail[:_LONGEST_FORMULAS]) if "\\" in tail else tail)
    lettered = _LETTERED.match(sentence)
    if lettered and lettered[1].upper() in letters:
        return lettered[1].upper()
    sentence = _REJECTED.sub(" ", sentence)
    if _EITHER.match(sentence.lstrip(_QUOTES)):
        return _NONE_THERE
    bracketed = map(str.upper, re.findall(_BRACKETED, sentence))  # `Plan B (D)` is D
    inside = (letter for letter in bracketed if letter in letters)
    return next(itertools.chain(inside, _choices(sentence, letters)), None)


def _last_choice(text: str, letters: str = ascii_uppercase) -> str | None:
    left = _DISMISSED.sub(" ", _REJECTED.sub(" ", text))
    return next(reversed(_choices(left, letters)), None)


def _first_yes_no(tail: str) -> str | None:
    sentence = first_sentence(latex.plain(tail[:_LONGEST_FORMULAS]) if "\\" in tail else tail)
    return next(_yes_no(sentence, answers=True), None)


def _last_yes_no(text: str) -> str | None:
    return next(reversed([*_yes_no(text, answers=False)]), None)


def _yes_no(text: str, *, answers: bool) -> Iterator[str]:
    """The yes and no of `text`; `answers`: one is expected at its start."""
    for match in _YES_NO.finditer(text):
        if match["both"]:
            continue
        word, start = match["word"].lower(), not re.search(r"\w", text[: match.start()])
        goes_on = _GOES_ON.match(text, match.end())
        if word == "no" and not (
            not _OF_A_NOUN.match(text, match.end()) if answers and start else goes_on
        ):
            continue
        if word in ("true", "false"):
            if not answers and not _ENDS.match(text, match.end()):
                continue  # `it is true that ...`
        elif match["not"]:
            continue
        yield "no" if (word in _FALSE) != bool(match["not"]) else "yes"


def _first_text(tail: str) -> str | None:
    if "\\" in tail:
        tail = latex.plain(tail[:_LONGEST_FORMULAS])
    if quoted := _QUOTED.match(tail):
        return normal_text(quoted[1] or quoted[2]) or None
    tail = tail.strip()
    for end in _TEXT_END.finditer(tail):
        initial = _ABBREVIATION.search(tail, max(0, end.start() - 12), end.start())
        if (
            end[0] != "."
            or not initial
            or (initial[0].strip()[-1:].isupper() and _STARTS_SENTENCE.match(tail, end.end()))
        ):
            tail = tail[: end.start()]
            break
    return normal_text(tail) or None


def _bare_text(text: str) -> str | None:
    return _first_text(text) if _is_bare(text) and not ANSWER_MARKER.search(text) else None


def _bare_word(text: str, find: Callable[[str], list[str]]) -> str | None:
    found = find(text)
    is_one = len(set(found)) == 1 and (_is_bare(text) or found == [normal_text(text)])
    return found[0] if is_one else None


def _first_math(tail: str) -> str | None:
    found = formulas.formula_behind(tail)
    if found is None:
        number = _first_number(tail)
        found = _first_text(tail) if number is None else number
    return found


def _last_math(text: str) -> str | None:
    return formulas.last_formula(text) or _last_number(text) or _bare_text(text)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def normal_text(line: str) -> str:
    """The normal form of an answer of kind `text`, see `extract_answer`."""
    for _ in range(2):  # once more: the canonical caseless form of Unicode 3.13, D145
        line = unicodedata.normalize("NFD", line).casefold()
    line, before = " ".join(unicodedata.normalize("NFC", line).split()), None
    while line != before:
        before, line = line, line.strip(_QUOTES).removeprefix("__").removesuffix("__")
        line = line.rstrip(".!?,;:" + _QUOTES)
        if re.fullmatch(r"\(\w[^()]*\)|\[\w[^\[\]]*\]", line):
            line = line[1:-1]
    return line


_Finder = Callable[[str], str | None]
_FIRST: dict[str, _Finder] = {
    "number": _first_number,
    "choice": _first_choice,
    "yes_no": _first_yes_no,
    "text": _first_text,
    "math": _first_math,
}
_LAST: dict[str, _Finder] = {
    "number": _last_number,
    "choice": _last_choice,
    "yes_no": _last_yes_no,
    "text": _bare_text,
    "math": _last_math,
}
for _kind, _letters in OF_LETTERS.items():
    _FIRST[_kind] = functools.partial(_first_choice, letters=_letters)
    _LAST[_kind] = functools.partial(_last_choice, letters=_letters)
for _kind, _unit in OF_UNIT.items():
    _FIRST[_kind] = functools.partial(_first_in_unit, unit=_unit)
    _LAST[_kind] = functools.partial(_last_in_unit, unit=_unit)
_FIRST[FLOAT], _LAST[FLOAT] = _first_number, _last_number
_BARE_GOLDS: dict[str, Callable[[str], str]] = {"text": normal_text, "math": formulas.normal}


_SPELT = re.compile(
    r"(?<![^\W\d_])(?:[^\W\d_][\"'“”‘’*_]*[\s,.\-–—+][\s\"'“”‘’*_]*)+[^\W\d_](?![^\W\d_])|[^\W\d_]+"
)
_SEPARATE = re.compile(r"[\W\d_]+")


def find_letters(text: str) -> list[str]:
    """The words of a text in lower case; letters that stand apart are one."""
    return [_SEPARATE.sub("", match[0]).casefold() for match in _SPELT.finditer(text)]


add_answer_kind(LETTERS, find_letters, bare=True)
