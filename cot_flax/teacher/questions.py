"""The questions that a teacher is asked, read from the shapes in which data sets come."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_flax.chains.readers import written
from cot_flax.chains.records import files_of, records, reject, require
from cot_flax.text.calculator import strip_marks

_SOLUTION_END = "####"
VALIDATION = {"gsm8k": (7473, 500)}
"""By data set: the questions of its training file, and how many of the last its tasks hold out."""


@dataclass(frozen=True)
class Question:
    """One question, as far as it is known what is right.

    Attributes:
        id: its name, different for each question of a file.
        dataset: the data set that it is from, such as "gsm8k".
        split: its split, such as "train".
        question: what is asked.
        answer: the right answer without a rationale; "" where the question is unlabelled.
        rationale: the steps that lead to the answer, without the answer's own line; "" where
            nobody wrote them down.
        category: the kind of question, from which demonstrations are taken; "" for none.
    """

    id: str
    dataset: str
    split: str
    question: str
    answer: str = ""
    rationale: str = ""
    category: str = ""


def read_questions(path: str | os.PathLike, *, dataset: str, split: str) -> Iterator[Question]:
    """Yields the questions of a file, any that `chains.records` reads.

    A record has "question" or "input"; it may have "answer" or "target" (text or a number),
    "rationale" or "reasoning", "category", and "id" (text or a whole number). Other fields are
    passed over. GSM8K's solution that ends in `#### N` is taken apart, without its `<<...>>`.

    Args:
        path: the file, or several as `records.files_of` takes them.
        dataset: the name of the data set.
        split: the name of the split; an item without an id is `{dataset}-{split}-{i}`, i from 0.

    Raises:
        UserError: an unreadable file, an item of another shape, or an id for the second time; the
            message names the file and the line.
    """
    for _, question in placed_questions(path, dataset=dataset, split=split):
        yield question


def validation_of(questions: Sequence[Question]) -> Sequence[Question]:
    """The questions that tasks of their data set hold out, where these are its training file."""
    first = questions[0] if questions else None
    if first is None or first.split != "train":
        return ()
    whole, count = VALIDATION.get(first.dataset, (0, 0))
    return questions[-count:] if len(questions) == whole else ()


def placed_questions(
    path: str | os.PathLike, *, dataset: str, split: str
) -> Iterator[tuple[str, Question]]:
    """Yields (place, question) as `read_questions` does; place names the file and the line."""
    seen = set()
    placed = itertools.chain.from_iterable(map(records, files_of(path)))
    for i, (place, record) in enumerate(placed):
        question = _question(record, place, i, dataset, split)
        if question.id in seen:
            reject(
                "duplicate_id",
                place,
                f"the id {question.id!r} again",
                "a different id for each question",
            )
        seen.add(question.id)
        yield place, question


def _question(record: Mapping, place: str, i: int, dataset: str, split: str) -> Question:
    text = _field(record, ("question", "input"), str, place)
    if not text.strip():
        reject("no_question", place, "no question", "a text in 'question' or 'input'")
    answer = _field(record, ("answer", "target"), str | int | float, place)
    rationale = _field(record, ("rationale", "reasoning"), str, place)
    if _SOLUTION_END in (solution := written(answer, "answer", place)):
        steps, _, solution = solution.rpartition(_SOLUTION_END)
        rationale = rationale or steps
        if not solution.strip():
            reject("no_answer", place, f"nothing behind {_SOLUTION_END}", "the answer there")
    id = str(_field(record, ("id",), str | int, place))
    return Question(
        id=id or f"{dataset}-{split}-{i}",
        dataset=dataset,
        split=split,
        question=text.strip(),
        answer=solution.strip(),
        rationale=strip_marks(rationale).strip(),
        category=_field(record, ("category",), str, place),
    )


def _field(record: Mapping, names: tuple[str, ...], kind: Any, place: str) -> Any:
    """The first of the fields that is there and not null, else ""."""
    there = [name for name in names if record.get(name) is not None]
    return require(record, there[0], kind, place) if there else ""
