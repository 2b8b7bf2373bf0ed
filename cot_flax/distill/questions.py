"""A user's questions: read from any file, what their answers are, which are held out."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cot_flax.chains import readers
from cot_flax.chains.records import BadRecord, find_container
from cot_flax.errors import UserError
from cot_flax.text.answers import answers_match, extract_answer, gold_answer
from cot_flax.text.calculator import strip_marks
from cot_flax.text.prompts import normalize_question

LEAST = 40
"""Questions with an answer: 10 are the test, 5 the validation, 25 are left to learn from."""
_BAD = 0.05  # the share of records, and of answers, that may be unreadable
_LISTED = 3
_LOOKED_AT = 20  # records by which a file's fields are found


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        answer: "" where it is not known.
        rationales: chains that lead to the answer, none where nobody wrote them down.
    """

    id: str
    question: str
    answer: str
    rationales: tuple[str, ...] = ()

    @property
    def rationale(self) -> str:
        """The first chain, or ""."""
        return self.rationales[0] if self.rationales else ""


class Splits(NamedTuple):
    train: list[Item]
    validation: list[Item]
    test: list[Item]


def read(
    path: str | os.PathLike, columns: Mapping[str, str] | None = None
) -> tuple[list[Item], list[str]]:
    """The questions of a file, each once, and notes on what was left out.

    Args:
        path: what `chains.readers` knows; a samples file, too.
        columns: as of `readers.columns_of`.

    Raises:
        UserError: the file cannot be used, or too much of it.
    """
    found, bad, count = _found(path, columns or {}), [], 0
    by_question: dict[str, Item] = {}
    for item in found:
        count += 1
        if isinstance(item, BadRecord):
            bad.append(item)
            continue
        key = normalize_question(item.question)
        first = by_question.setdefault(key, item)
        if first is not item:
            chains = dict.fromkeys((*first.rationales, *item.rationales))
            answer = first.answer or item.answer
            by_question[key] = replace(first, answer=answer, rationales=tuple(chains))
    if len(bad) > _BAD * count:
        raise UserError(
            f"{len(bad):,} of {count:,} records of {path} that cannot be read ({bad[0]})",
            f"at most {_BAD:.0%}",
            "repair the file, or name its fields: --question, --rationale, --answer",
        )
    items = _of_own_ids(by_question.values())
    labelled = [item for item in items if item.answer]
    notes = []
    if bad:
        notes.append(f"{len(bad):,} records that cannot be read are left out ({bad[0]})")
    if count - len(bad) > len(items):
        notes.append(f"{count - len(bad) - len(items):,} records repeat a question")
    if len(labelled) < len(items):
        notes.append(f"{len(items) - len(labelled):,} questions without an answer are left out")
    return labelled, notes


def is_samples(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> bool:
    """Whether it is a samples file, whose chains may have log-probabilities."""
    return _format(path, columns or {}) is readers.SAMPLES


def _of_own_ids(items: Iterable[Item]) -> list[Item]:
    """The items, of which those that share an id get another one."""
    seen: set[str] = set()
    found = []
    for i, item in enumerate(items):
        id = item.id if item.id not in seen else f"{item.id}-{i}"
        seen.add(id)
        found.append(replace(item, id=id))
    return found


def check_enough(items: Sequence[Item], path: str | os.PathLike) -> None:
    """Raises UserError where too few are left to learn from and to measure with."""
    if not items:
        raise UserError(
            f"{path} without answers",
            "the right answer to each question: by it chains are chosen and the student measured",
            "name the field (--answer FIELD), or label some",
        )
    if len(items) < LEAST:
        raise UserError(
            f"{len(items)} questions with an answer in {path}",
            f"{LEAST} or more: a third is held out to measure with",
            "label more of them",
        )


def of_kind(
    items: Sequence[Item], kind: str, path: str | os.PathLike
) -> tuple[list[Item], list[str]]:
    """The questions whose answer a line `The answer is ...` gives as one of the kind, and notes.

    Raises:
        UserError: too many are of another kind.
    """

    def is_readable(answer: str) -> bool:
        if gold_answer(answer, kind=kind) is None:
            return False
        found = extract_answer(f"The answer is {answer}.", kind=kind, mode="strict")
        return found is not None and answers_match(found, answer, kind=kind)

    readable = {answer: is_readable(answer) for answer in {item.answer for item in items}}
    others = [item for item in items if not readable[item.answer]]
    if not others:
        return list(items), []
    got = f"{len(others):,} answers that are none of kind {kind} (such as {others[0].answer!r})"
    if len(others) > _BAD * len(items):
        raise UserError(
            f"{got} of {len(items):,} in {path}",
            f"at most {_BAD:.0%}",
            "repair them, or name their kind: --kind KIND",
        )
    return [item for item in items if readable[item.answer]], [f"{got} are left out"]


def sizes(count: int) -> tuple[int, int]:
    """Questions of the validation and of the test split: a tenth and a fifth, within limits.

    10 test questions give an interval of 50 points, 60 one of 25, 1,000 one of 6; more cost and
    tell little.
    """
    return min(500, max(5, count // 10)), min(1000, max(10, count // 5))


def split(items: Sequence[Item], seed: int = 0) -> Splits:
    """Holds questions out, by their wording and a seed alone.

    The order of the file does not matter; most of what is held out stays so when the file grows.
    """
    validation, test = sizes(len(items))

    def place(item: Item) -> str:
        text = f"{seed}/{normalize_question(item.question)}"
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()

    ranked = sorted(items, key=place)
    held_out = {id(item): "test" for item in ranked[:test]}
    held_out |= {id(item): "validation" for item in ranked[test : test + validation]}
    parts: dict[str, list[Item]] = {"train": [], "validation": [], "test": []}
    for item in items:
        parts[held_out.get(id(item), "train")].append(item)
    return Splits(**parts)


def with_ask(items: Sequence[Item], ask: str) -> list[Item]:
    """The questions with a text behind each that says what is asked."""
    return [replace(item, question=f"{item.question}\n\n{ask}") for item in items]


def ask_for(labels: Sequence[str], items: Sequence[Item]) -> str:
    """What asks for one of the labels; "" where there are none, or the questions name them all."""
    named = all(label in item.question.casefold() for item in items[:_LISTED] for label in labels)
    if not labels or named:
        return ""
    return f"Which one is it: {', '.join(labels[:-1])} or {labels[-1]}?"


def _found(path: str | os.PathLike, columns: Mapping[str, str]) -> Iterable[Item | BadRecord]:
    container = find_container(path)
    looked_at = itertools.islice(container.read(path), _LOOKED_AT)
    first = {k: v for _, record in looked_at if isinstance(record, dict) for k, v in record.items()}
    if _format(path, columns) in (readers.SAMPLES, readers.FLAN):
        return _of_samples(path, columns)
    _check_fields(path, first, columns)
    is_chat = "question" not in columns and first.keys() & set(readers.NAMES["messages"])
    return _of_samples(path, columns) if is_chat else _of_records(path, container, first, columns)


def _format(path: str | os.PathLike, columns: Mapping[str, str]) -> readers.Format | None:
    try:
        return readers.find_format(path, columns or None)
    except UserError:  # it holds no chains
        return None


def _check_fields(path, first: Mapping, columns: Mapping[str, str]) -> None:
    """Raises UserError where the file lacks a field that was named, or the question's."""
    options = {"question": "--question", "text": "--rationale", "gold_answer": "--answer"}
    for ours, theirs in columns.items():
        if first and theirs not in first:
            raise UserError(
                f"{options[ours]} {theirs}",
                f"a field of {path}: {', '.join(first)}",
                "correct it",
            )
    known = readers.NAMES["question"]
    if first and not (
        columns.get("question") or first.keys() & {*known, *readers.NAMES["messages"]}
    ):
        raise UserError(
            f"{path} with the fields {', '.join(first)}",
            f"a question (one of {', '.join(known)})",
            "name it: --question FIELD",
        )


def _of_records(path, container, first, columns) -> Iterable[Item | BadRecord]:
    """Questions with what a record has of answer and chain; a solution holds both, by `####`."""

    def field(ours: str) -> str:
        known = (columns.get(ours), *readers.NAMES[ours])
        return next((name for name in known if name and name in first), "")

    fields = {ours: field(ours) for ours in ("question", "text", "gold_answer", "id")}
    for i, (place, record) in enumerate(container.read(path)):
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            found = {
                ours: readers.written(record[name], name, place).strip()
                for ours, name in fields.items()
                if record.get(name) is not None
            }
        except BadRecord as error:
            yield error
            continue
        question, chain = found.get("question", ""), found.get("text", "")
        if fields["question"] == "instruction" and isinstance(record.get("input"), str):
            question = f"{question}\n\n{record['input']}".strip()
        if not question:
            wanted = f"a text in {fields['question']!r}"
            yield BadRecord("no_question", place, "no question", wanted)
            continue
        steps, mark, end = found.get("gold_answer", "").rpartition("####")
        chain = chain or (strip_marks(steps).strip() if mark else "")
        chains = (chain,) if chain else ()
        yield Item(found.get("id") or f"q{i}", question, end.strip(), chains)


def _of_samples(path, columns) -> Iterable[Item | BadRecord]:
    format = readers.find_format(path, columns or None)
    for raw in format.read(path):
        try:
            sample = format.parse(raw)
        except BadRecord as error:
            yield error
            continue
        # A chat's answer stands in its text alone.
        closing = extract_answer(sample.text, kind="text", mode="strict") or ""
        answer = sample.gold_answer or closing
        yield Item(sample.id, sample.question.strip(), answer, (sample.text,))
