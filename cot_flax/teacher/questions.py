"""The questions that a teacher is asked, read from the shapes in which data sets come."""

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_flax.chains.dataset import DataSet
from cot_flax.chains.file_names import files_of
from cot_flax.chains.readers import written
from cot_flax.chains.records import records, reject, require
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.calculator import strip_marks

_SOLUTION_END = "####"
_PROMPT_ITEM = re.compile(r"^(?:Question|Q):[^\S\n]*", re.MULTILINE)
_PROMPT_ANSWER = re.compile(
    r"\n(?:A:[^\S\n]*(?:Let's think step by step\b[.:]?)?|Let's think step by step\b[.:]?)\s*"
)
_PROMPT_CLOSING = re.compile(
    r"\s*(?:(?:So|Thus|Therefore|Hence),? )?\bthe answer is:?\s+(?P<answer>[^\n]+?)\.?\s*\Z",
    re.IGNORECASE,
)
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
        path: the file, or several as `file_names.files_of` takes them.
        dataset: the name of the data set.
        split: the name of the split; an item without an id is `{dataset}-{split}-{i}`, i from 0.

    Raises:
        UserError: an unreadable file, an item of another shape, or an id for the second time; the
            message names the file and the line.
    """
    for _, question in placed_questions(path, dataset=dataset, split=split):
        yield question


def read_exemplars(path: str | os.PathLike, *, dataset: str) -> tuple[list[Question], bool]:
    """The worked questions to show, in their order, and whether they are a prompt as it is written.

    Beside what `read_questions` reads, a file may be a prompt: a `.txt` whose items begin with
    `Question:` or `Q:`, go on with `Let's think step by step` or `A:`, and end in `The answer is
    ...`, as those of Fu et al. 2023 and Wei et al. 2022; or the object of Ho et al. 2022, which has
    such a `prompt` by data set.

    Raises:
        UserError: an item of another shape; no prompt of this data set; or as `read_questions`.
    """
    place, name = os.fspath(path), os.fspath(path)
    if name.endswith(".txt"):
        text = path_at(path).read_bytes().decode("utf-8-sig", errors="replace")
    else:
        prompts = _prompts_by_dataset(path)
        if prompts is None:
            return list(read_questions(path, dataset=dataset, split="exemplars")), False
        key = next((key for key in prompts if _plain(key) == _plain(dataset)), None)
        if key is None:
            raise UserError(
                f"{name} without a prompt of {dataset}",
                f"one of {', '.join(prompts)}",
                "correct --dataset, or give a file of one prompt",
            )
        text, place = prompts[key], f"{name}, {key}"
    _, *items = _PROMPT_ITEM.split(text.replace("\r\n", "\n"))
    if not items:
        reject("no_exemplars", place, "no line `Question: ...` or `Q: ...`", "worked questions")
    return [
        _of_prompt(item, f"{place}, item {i}", i, dataset) for i, item in enumerate(items)
    ], True


def _prompts_by_dataset(path: str | os.PathLike) -> dict[str, str] | None:
    """The prompts of a JSON object that has them by data set; None for any other file."""
    if not os.fspath(path).endswith(".json"):
        return None
    try:
        found = json.loads(path_at(path).read_bytes())
    except (OSError, ValueError, RecursionError):  # `read_questions` says why
        return None
    if not isinstance(found, dict):
        return None
    prompts = {
        key: item["prompt"]
        for key, item in found.items()
        if isinstance(item, dict) and isinstance(item.get("prompt"), str)
    }
    return prompts or None


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()


def _of_prompt(item: str, place: str, i: int, dataset: str) -> Question:
    question, *rest = _PROMPT_ANSWER.split(item, maxsplit=1)
    closing = _PROMPT_CLOSING.search(rest[0]) if rest else None
    if not question.strip() or closing is None:
        got = f"{item.strip()[:60]!r}"
        reject("incomplete_exemplar", place, got, "question, chain and `The answer is ...`")
    return Question(
        id=f"{dataset}-exemplars-{i}",
        dataset=dataset,
        split="exemplars",
        question=question.strip(),
        answer=closing["answer"].strip(),
        rationale=rest[0][: closing.start()].strip(),
    )


def training_questions(data: DataSet) -> list[Question]:
    """The questions of a data set's training split, each once; says what was read."""
    reading = data.read()
    print(reading.summary, file=sys.stderr)
    return [
        Question(item.id, data.name, "train", item.question, item.answer, item.rationale)
        for item in reading.splits["train"]
        if item.first
    ]


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
