"""The four formats in which a question is put to the student, and the exemplars that go before it.

A `Template` says how they are laid out. `fu2023` gives the strings of Fu et al. 2023 byte for byte
("Specializing Smaller Language Models towards Multi-Step Reasoning", arXiv 2301.12726). T5's
vocabulary has no newline, so there the blank line between exemplars is no more than a space; the
default, `t5`, puts ` ### ` in its place, which T5's pieces can write.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from cot_flax.errors import UserError
from cot_flax.text.numerals import ASCII_FORMS
from cot_flax.text.templates import DEFAULT_NAME, TEMPLATES, Template, fill
from cot_flax.text.wording import ENGLISH, PLACE, Wording

FORMATS = ("zero_shot_cot", "few_shot_cot", "zero_shot_answer", "few_shot_answer")


_LETTER = r"[^\W0-9]"
_PUNCTUATION = re.compile(
    r"[.,;:!?\"“”…–—]"
    rf"|(?<={_LETTER})\s*-\s*(?={_LETTER})|(?<={_LETTER})[(){{}}\[\]]|[(){{}}\[\]](?={_LETTER})"
)
_WORD = re.compile(rf"[0-9]+|{_LETTER}+|[^\w\s]")
_SPACES_BESIDE_OTHERS = re.compile(r"(?<=[\u2E80-\uFFEF])[^\S\n]+|[^\S\n]+(?=[\u2E80-\uFFEF])")


@dataclass(frozen=True)
class Exemplar:
    """A worked example: what stands before the question in a few-shot prompt."""

    question: str
    rationale: str
    answer: str


DEFAULT = TEMPLATES[DEFAULT_NAME]


def is_cot(format: str) -> bool:
    """Says whether the target of `format` has a rationale. Raises UserError for an unknown name."""
    return _known(format).endswith("_cot")


def is_few_shot(format: str) -> bool:
    """Says whether the input of `format` has exemplars. Raises UserError for an unknown name."""
    return _known(format).startswith("few_shot")


def build_input(
    question: str,
    format: str,
    exemplars: Sequence[Exemplar] = (),
    template: Template = DEFAULT,
    wording: Wording = ENGLISH,
    instruction: str = "",
) -> str:
    """Returns the encoder's text.

    Args:
        question: the question to answer.
        format: one of `FORMATS`.
        exemplars: the worked examples of a few-shot format, in prompt order; none in a zero-shot
            one.
        template: the layout.
        wording: the words beside question and exemplars, where the template has none of its own.
        instruction: what to do, before everything else.

    Raises:
        UserError: unknown `format`; exemplars in a zero-shot format, or none in a few-shot one.
    """
    if is_few_shot(format) != bool(exemplars):
        raise UserError(
            f"{len(exemplars)} exemplars for format {format!r}",
            "some in a few-shot format and none in a zero-shot one",
            "change the format or the number of exemplars",
        )
    template = template.worded(wording)
    parts = [instruction.strip()] if instruction.strip() else []
    parts += [show(exemplar, format, template) for exemplar in exemplars]
    return "".join(part + template.separator for part in parts) + _ask(question, format, template)


def show(exemplar: Exemplar, format: str, template: Template) -> str:
    """An exemplar as a few-shot prompt has it, without the separator behind it."""
    target = _target(exemplar.rationale, exemplar.answer, format, template)
    return show_turn(exemplar.question, target, format, template)


def build_target(
    rationale: str,
    answer: str,
    format: str,
    template: Template = DEFAULT,
    wording: Wording = ENGLISH,
) -> str:
    """Returns the decoder's text: the rationale closed by `The answer is N`, or this alone.

    A rationale that ends with this sentence already, `$`, thousands separators and full stop aside,
    is left as it is, so that a teacher's token probabilities still fit it. Full-width signs count
    as ASCII, and spaces beside other scripts not at all. One that is closed in other words keeps
    them before the template's.

    Raises:
        UserError: unknown `format`.
    """
    return _target(rationale.strip(), answer, format, template.worded(wording))


def ends(answer: str, format: str, template: Template = DEFAULT) -> tuple[str, str]:
    """The ends of input and target that have to stay where a long one is cut (paper [4]).

    Of the input it is what follows the question, of the target the closing with the answer.

    Args:
        answer: the gold one.
        format: one of `FORMATS`.
        template: the layout, with the words of its wording.

    Raises:
        UserError: unknown `format`.
    """
    behind = _asks(format, template).partition("{question}")[2]
    closing = template.closing if is_cot(format) else template.answer_target
    join = template.join if is_cot(format) else ""
    return behind, join + closing.replace(PLACE, answer) + template.stop


def show_turn(question: str, output: str, format: str, template: Template = DEFAULT) -> str:
    """A question with what was said to it, as an exemplar is shown whose target is `output`."""
    gap = template.cot_gap if is_cot(format) else template.answer_gap
    return _ask(question, format, template) + gap + output


class ExemplarPool:
    """The training items that may be shown as exemplars, one for each different question.

    Questions are the same if they differ only in case, white space and punctuation. The pool does
    not depend on the order of `exemplars`: of several for one question it keeps the first in sorted
    order.
    """

    def __init__(self, exemplars: Iterable[Exemplar]):
        by_question: dict[str, Exemplar] = {}
        for item in sorted(exemplars, key=astuple):
            by_question.setdefault(normalize_question(item.question), item)
        questions = sorted(by_question)
        self._exemplars = [by_question[question] for question in questions]
        self._place = {question: place for place, question in enumerate(questions)}

    def __len__(self) -> int:
        return len(self._exemplars)

    def __contains__(self, question: str) -> bool:
        return normalize_question(question) in self._place

    def draw(self, question: str, n: int, key: str) -> tuple[Exemplar, ...]:
        """Draws `n` exemplars at random, none on `question` itself and no two on the same one.

        The draw depends on the pool, the question and `key` alone, never on process, shard or call
        order. It takes O(n) time whatever the size of the pool. Fu et al. 2023 redraw for every
        training instance, but neither seed the draw nor leave the item out.

        Args:
            question: the item that the exemplars are for.
            n: how many.
            key: the seed; make it different for each item, for instance `f"{seed}/{split}/{id}"`.

        Raises:
            UserError: fewer than `n` exemplars remain.
        """
        own = self._place.get(normalize_question(question))
        size = len(self) - (own is not None)
        if n > size:
            raise UserError(
                f"a pool of {size} exemplars without the question itself",
                f"at least the {n} to draw",
                "ask for fewer exemplars or give a larger training set",
            )
        places = _sample_places(size, n, key)
        return tuple(
            self._exemplars[place + (own is not None and place >= own)] for place in places
        )


class FixedExemplars:
    """The exemplars of a prompt that somebody wrote: all are shown, in their order.

    Raises:
        UserError: there are none.
    """

    def __init__(self, exemplars: Iterable[Exemplar]):
        self._exemplars = tuple(exemplars)
        self._questions = [normalize_question(item.question) for item in self._exemplars]
        if not self._exemplars:
            raise UserError(
                "no fixed exemplars", "at least one", "give some, or have them drawn from a pool"
            )

    def __len__(self) -> int:
        return len(self._exemplars)

    def without(self, question: str) -> tuple[Exemplar, ...]:
        """Those on other questions than this one, which are all but where it is one of them."""
        own = normalize_question(question)
        pairs = zip(self._questions, self._exemplars, strict=True)
        return tuple(exemplar for other, exemplar in pairs if other != own)


def check_no_leak(pool: ExemplarPool, held_out_questions: Iterable[str]) -> None:
    """Checks that no held-out question can be drawn as an exemplar.

    Raises:
        UserError: some are in the pool; it says how many and shows the first three.
    """
    leaked = [question for question in held_out_questions if question in pool]
    if leaked:
        shown = "; ".join(repr(question[:80]) for question in leaked[:3])
        raise UserError(
            f"{len(leaked)} held-out question(s) in the exemplar pool: {shown}",
            "none",
            "take them out of the training data, or say why they stay (may_leak of add_cot_task)",
        )


def normalize_question(question: str) -> str:
    """Returns `question` without case, white space and punctuation, to compare questions by.

    What carries meaning in a formal question stays: operators, a minus, brackets next to symbols,
    or all items of Dyck languages and multi-step arithmetic (BBH) would be the same one.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    text = re.sub(r"['‘’]|(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    return " ".join(_WORD.findall(_PUNCTUATION.sub(" ", text)))


def _known(format: str) -> str:
    if format not in FORMATS:
        raise UserError(f"format {format!r}", f"one of {FORMATS}", "correct the name")
    return format


def _asks(format: str, template: Template) -> str:
    if is_cot(format):
        return template.cot_input
    return (is_few_shot(format) and template.few_shot_answer_input) or template.answer_input


def _ask(question: str, format: str, template: Template) -> str:
    return fill(_asks(format, template), question=question)


def _target(rationale: str, answer: str, format: str, template: Template) -> str:
    if not is_cot(format):
        return fill(template.answer_target, answer=answer) + template.stop
    if template.stop:
        rationale = rationale.rstrip().removesuffix(template.stop.strip())
    return _close(rationale, template.closing.replace(PLACE, answer), template) + template.stop


def _close(rationale: str, closing: str, template: Template) -> str:
    if _bare(rationale).endswith(_bare(closing)):
        return rationale.rstrip()
    join = template.join
    if join != "\n" or template.full_stop:  # else the lines above stay as they are
        rationale = rationale.strip()
    if template.full_stop and rationale and not rationale.endswith("."):
        rationale += "."
    return rationale + join * (not rationale.endswith(("\n", join)) and rationale != "") + closing


def _bare(text: str) -> str:
    if not text.isascii():
        text = _SPACES_BESIDE_OTHERS.sub("", text).translate(ASCII_FORMS)
    return re.sub(r"[$,]", "", text).strip().removesuffix(".").casefold()


def _sample_places(size: int, n: int, key: str) -> list[int]:
    """Takes the first `n` steps of a Fisher-Yates shuffle of range(size), its moves in a dict."""
    moved: dict[int, int] = {}
    places = []
    for step in range(n):
        chosen = step + _random_number(f"{key}#{step}") % (size - step)
        places.append(moved.get(chosen, chosen))
        moved[chosen] = moved.get(step, step)
    return places


def _random_number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest())
