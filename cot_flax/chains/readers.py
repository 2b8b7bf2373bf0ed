"""Reads what `prepare` and `teach import` take, a record at a time, and makes samples of it.

Samples files, FLAN's TSV, and chains of one's own, the CoT Collection among them: records in any
file that `chains.records` reads, whose fields have names of `NAMES` or names that the user gives.

Reading and parsing are two steps, so that one process can hand out records while others parse.
"""

import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cot_flax.chains.file_names import divided_name
from cot_flax.chains.records import (
    ENTRIES,
    LINES,
    TABLE,
    BadRecord,
    Container,
    find_container,
    json_object,
    raw_lines,
    reject,
    require,
)
from cot_flax.chains.samples import Sample, sample_from_record
from cot_flax.errors import UserError
from cot_flax.text.answers import extract_answer, is_kind, kinds_said
from cot_flax.text.calculator import strip_marks

NAMES = {
    "question": ("question", "problem", "instruction", "prompt", "input", "inputs", "source"),
    "text": (
        *("text", "rationale", "reasoning", "chain_of_thought"),
        *("solution", "completion", "response", "output"),
    ),
    "gold_answer": ("gold_answer", "answer", "target", "targets", "label"),
    "messages": ("messages", "conversations"),
    "thought": ("thought", "thinking", "reasoning_content"),
    "answer_kind": ("answer_kind",),
    "id": ("id",),
    "dataset": ("dataset", "task"),
    "split": ("split",),
    "teacher": ("teacher", "model"),
}
"""What is read of a chain of one's own, and under which names; of several, the first counts."""

_SAMPLES_ONLY = ("prompt_hash", "finish_reason", "logprobs")  # fields that say: a samples file
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_TRUTH = {True: "yes", False: "no"}
_FIELD = re.compile(r"\{([^{}]+)\}")
_THOUGHT_END = "</think>"
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_COLUMN_NAME = re.compile(r"[\w-]{1,40}")
_LOOKED_AT = 20  # records by which a file's fields and rules are found

_ID_FIRST = re.compile(rb'\s*\{\s*"id"\s*:\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Raw:
    """A record that is not parsed yet.

    Attributes:
        place: where it stands, for errors.
        question: names its question: equal for the chains of one question.
        data: a line, a decoded object, or the error that reading it gave.
    """

    place: str
    question: bytes
    data: bytes | dict | BadRecord


@dataclass(frozen=True)
class Format:
    """A kind of input: how to read it, how to parse a record, and which rules suit it.

    Attributes:
        read: yields the records of a file in order, holding one at a time.
        parse: makes a record a sample; raises BadRecord.
        rules: the filter rules by default, a name of `filtering`'s table.
        names: which of `NAMES` its records have, and the file's names of them.
    """

    read: Callable[[str | os.PathLike], Iterator[Raw]]
    parse: Callable[[Raw], Sample]
    rules: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class _Origin:
    """What is said of chains whose records do not say it."""

    dataset: str
    teacher: str = "unknown"


def find_format(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> Format:
    """The format of a file, by its first records.

    Args:
        path: any file that `chains.records` reads.
        columns: how the file calls some of the `NAMES`: a field's name, or a template of several,
            such as `{body} {question}`; see `columns_of`.

    Raises:
        UserError: the file cannot be used, or its fields make no chain; the message lists them.
    """
    container = find_container(path)
    if container is TABLE and not columns and _is_flan(path):
        return FLAN
    looked_at = itertools.islice(container.read(path), _LOOKED_AT)
    first = [record for _, record in looked_at if isinstance(record, dict)]
    seen = dict.fromkeys(itertools.chain.from_iterable(first))
    named = columns is not None and all(map(_fields_in(seen), columns.values()))
    if container is LINES and not first and not columns:
        return SAMPLES
    if first and not named and not first[0].keys().isdisjoint(_SAMPLES_ONLY):
        if container is LINES:
            return SAMPLES
        raise UserError(f"{path}, samples in {container.name}", "JSON Lines", "write one a line")
    names = _names(list(seen), columns or {}, path) if first else {}
    if container is ENTRIES:
        return _chains(container, names, _Origin("cot_collection", "given rationales"), "none")
    return _chains(container, names, _Origin(divided_name(path)[0]), _rules(first, names))


def columns_of(text: str) -> dict[str, str]:
    """Reads `question={title}: {body},text=reasoning`: a name of `NAMES`, and the file's.

    Raises:
        UserError: a name that is none of `NAMES`, or no such pairs.
    """
    divided = re.split(rf",(?=\s*(?:{'|'.join(NAMES)})\s*=)", text)
    pairs = [[part.strip() for part in pair.split("=", 1)] for pair in divided]
    if not all(
        len(pair) == 2 and pair[0] in NAMES and pair[1] and ("," not in pair[1] or "{" in pair[1])
        for pair in pairs
    ):
        wanted = f"NAME=FIELD, divided by commas, with names of {', '.join(NAMES)}"
        raise UserError(f"--columns {text}", wanted, "correct it")
    return dict(pairs)


def parsed(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> Iterator[Sample]:
    """The samples of a file in order, holding one at a time; arguments as of `find_format`.

    Raises:
        UserError: the file cannot be used; BadRecord at the first record that cannot.
    """
    format = find_format(path, columns)
    for raw in format.read(path):
        yield format.parse(raw)


def written(value: Any, name: str, place: str) -> str:
    """A text or a number as a text; PAL writes the answer 51 as 51.0.

    Raises:
        BadRecord: it is neither, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        got = f"{name!r} of type {type(value).__name__}"
        reject("wrong_type", place, got, f"a text or a number in {name!r}")
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        reject("no_answer", place, f"the {name} {value}", "a finite number")
    return str(int(value)) if value.is_integer() else repr(value)


def _lines(path: str | os.PathLike) -> Iterator[tuple[str, bytes | BadRecord]]:
    """Lines with their places; what cannot be read to its end closes with the error."""
    try:
        yield from raw_lines(path)
    except BadRecord as error:
        yield os.fspath(path), error


def _read_samples(path: str | os.PathLike) -> Iterator[Raw]:
    question = b""
    for place, line in _lines(path):
        # A line that does not say goes with the one before it: it must not divide a question.
        question = _question(line, place) or question
        yield Raw(place, question, line)


def _question(line: bytes | BadRecord, place: str) -> bytes:
    """The record's id without decoding the record, which may be long, wherever it comes first."""
    if isinstance(line, BadRecord):
        return b""
    match = _ID_FIRST.match(line)
    if match and b"\\" not in match[1] and line.rstrip().endswith(b"}"):
        return match[1]
    try:
        return str(json_object(line, place).get("id", "")).encode(errors="replace")
    except BadRecord:
        return b""  # parsing will say what is wrong


def _parse_sample(raw: Raw) -> Sample:
    sample = sample_from_record(json_object(_usable(raw), raw.place), raw.place)
    return _writable(sample, raw.place)


def _writable(sample: Sample, place: str) -> Sample:
    """The sample, whose answer kind exists, and whose texts have a UTF-8 form.

    JSON can hold half a character.
    """
    try:
        for name in ("id", "question", "gold_answer", "prompt_hash", "text", "thought"):
            getattr(sample, name).encode()
    except UnicodeEncodeError as error:
        reject("bad_text", place, f"{name!r} with half a character ({error.reason})", "UTF-8")
    if sample.answer_kind and not is_kind(sample.answer_kind):
        got = f"the answer kind {sample.answer_kind!r}"
        reject("answer_kind", place, got, kinds_said())
    return sample


def _is_flan(path: str | os.PathLike) -> bool:
    """Whether the first row is three texts and not three names; FLAN's files name no columns."""
    first = next(raw_lines(path))[1].decode(errors="replace")
    cells = first.rstrip("\r\n").split("\t")
    divided = len(cells) > 1 or divided_name(path)[1] == ".tsv"
    return divided and not all(map(_COLUMN_NAME.fullmatch, cells))


def _read_flan(path: str | os.PathLike) -> Iterator[Raw]:
    for place, line in _lines(path):
        yield Raw(place, place.encode(), line)


def _parse_flan(raw: Raw) -> Sample:
    """question TAB answer TAB chain_of_thought, with newlines written as two characters."""
    try:
        columns = _usable(raw).decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        reject("bad_text", raw.place, str(error), "UTF-8")
    if len(columns) != 3:
        wanted = "question, answer and chain of thought, divided by tabs"
        reject("columns", raw.place, f"{len(columns)} columns", wanted)
    question, answer, chain = (column.replace("\\n", "\n") for column in columns)
    path, _, number = raw.place.rpartition(", line ")
    dataset = divided_name(path)[0]
    values = {"question": question, "gold_answer": answer, "text": chain}
    return _sample(values | {"id": f"{dataset}-{number}"}, _Origin(dataset, "given rationales"))


def _names(
    fields: Sequence[str], columns: Mapping[str, str], path: str | os.PathLike
) -> dict[str, str]:
    """Our names and the file's; raises UserError where its fields make no chain."""
    is_there = _fields_in(fields)
    names = {ours: theirs for ours, theirs in columns.items() if is_there(theirs)}
    taken = {field for theirs in columns.values() for field in fields_of(theirs)}
    for ours, known in NAMES.items():
        free = (name for name in known if name in fields and name not in taken)
        if ours not in columns and (found := next(free, None)):
            names[ours] = found
    if (
        columns.keys() <= names.keys()
        and names.keys() & {"question", "messages"}
        and names.keys() & {"text", "gold_answer", "messages"}
    ):
        return names
    listed = "; ".join(f"{name}: {', '.join(NAMES[name])}" for name in tuple(NAMES)[:4])
    raise UserError(
        f"{path} with the fields {', '.join(fields)}",
        f"question and text, gold_answer where it is known, or messages ({listed})",
        "name them: --columns question=FIELD,text=FIELD,gold_answer=FIELD (of your_data in "
        "gin: QUESTION, RATIONALE, ANSWER)",
    )


def _rules(first: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Chains are judged, but those that leave it to the right answer beside them to close them."""
    found = []
    for record in first:
        with contextlib.suppress(BadRecord):
            found.append(_values(record, names, ""))
    found = [v for v in found if v["text"].strip()] or found
    closed = sum(extract_answer(v["text"], kind="text", mode="strict") is not None for v in found)
    return (
        "none" if any(v["gold_answer"] for v in found) and closed <= len(found) / 2 else "default"
    )


def _chains(container: Container, names: Mapping[str, str], origin: _Origin, rules: str) -> Format:
    read = partial(_read_chains, container=container, names=names, origin=origin)
    return Format(read, partial(_parse_chain, origin=origin), rules, names)


def _read_chains(
    path: str | os.PathLike, *, container: Container, names: Mapping[str, str], origin: _Origin
) -> Iterator[Raw]:
    """Numbers the chains of a question that follow on each other as its samples."""
    group, key, question, sample = b"", None, "", 0
    for place, record in container.read(path):
        if not isinstance(record, dict):
            yield Raw(place, group, record)
            continue
        try:
            values = _values(record, names, place)
        except BadRecord as error:
            yield Raw(place, group, error)
            continue
        number = place.removeprefix(f"{path}, ").partition(" ")[2]
        name = values["id"] or f"{values['dataset'] or origin.dataset}-{number}"
        if (values["id"] or values["question"]) != key:
            key, question, sample, id = values["id"] or values["question"], "", 0, name
            group = (values["id"] or place).encode(errors="replace")
        question = question or values["question"]
        if values["question"] != question:
            got, wanted = f"another question of the id {key!r}", "a different id for each question"
            yield Raw(place, group, BadRecord("duplicate_id", place, got, wanted))
            continue
        yield Raw(place, group, values | {"id": id, "sample": sample})
        sample += 1


def _parse_chain(raw: Raw, *, origin: _Origin) -> Sample:
    return _writable(_sample(_usable(raw), origin), raw.place)


def _values(record: Mapping[str, Any], names: Mapping[str, str], place: str) -> dict[str, str]:
    """What of a record becomes a sample; "" for what it does not say.

    Raises:
        BadRecord: there is no question, neither chain nor answer, or something else than a text or
            a number.
    """
    values = {
        ours: text
        for ours, theirs in names.items()
        if ours != "messages" and (text := _cell(record, theirs, ours, place)) is not None
    }
    if "messages" in names:
        values |= _turns(require(record, names["messages"], list, place), place)
    if names.get("question") == "instruction" and record.get("input"):
        values["question"] += "\n\n" + written(record["input"], "input", place)
    if names.keys().isdisjoint(("text", "messages")) and "gold_answer" in values:
        values |= solution(values["gold_answer"])
    if _THOUGHT_END in values.get("text", ""):
        values |= _apart(values["text"])
    if "gold_answer" in values and not values.get("thought"):
        values.setdefault("text", "")  # a question with its answer alone
    for name in ("question", "text"):
        if name not in values:
            got, wanted = f"no {name}", f"a text in {names.get(name, name)!r}"
            reject("missing_field", place, got, wanted)
    return dict.fromkeys(NAMES, "") | values


def fields_of(column: str) -> list[str]:
    """The fields of a record that a column's name, or a template of several, asks for."""
    return _FIELD.findall(column) or [column]


def _fields_in(fields: Collection[str]) -> Callable[[str], bool]:
    """Whether a column is among the fields of a file, or all fields of its template are."""
    return lambda column: column in fields or set(fields_of(column)) <= set(fields)


def _cell(record: Mapping[str, Any], column: str, ours: str, place: str) -> str | None:
    """What a record has in a column or a template's fields; None where it has nothing there."""
    if column in record or not _FIELD.search(column):
        value = record.get(column)
        if isinstance(value, bool) and ours == "gold_answer":
            return _TRUTH[value]
        return None if value is None else written(value, column, place)
    missing = [field for field in fields_of(column) if record.get(field) is None]
    if missing:
        reject("missing_field", place, f"no {', '.join(missing)}", f"the fields of {column!r}")
    return _FIELD.sub(lambda match: written(record[match[1]], match[1], place), column)


def solution(text: str) -> dict[str, str]:
    """A chain and its answer, which solutions give behind `####` (GSM8K) or in `\\boxed` (MATH)."""
    steps, mark, answer = text.rpartition("####")
    if mark:
        return {"text": strip_marks(steps).strip(), "gold_answer": answer.strip()}
    return {"text": text, "gold_answer": boxed(text)}


def boxed(text: str) -> str:
    """What stands in the last `\\boxed{...}` of a text; "" where none is closed."""
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        depth = 1
        for place, character in enumerate(text[start:], start):
            depth += (character == "{") - (character == "}")
            if not depth:
                return text[start:place].strip()
    return ""


def _turns(messages: Sequence[Any], place: str) -> dict[str, str]:
    """Question and chain of a conversation, and its thought where a message has it apart."""
    turns, apart = [], ""
    for message in messages:
        if not isinstance(message, dict):
            reject("wrong_type", place, f"a message of type {type(message).__name__}", "an object")
        role = message.get("role") or message.get("from")
        if role not in ("system", "developer"):
            content = _content(message.get("content", message.get("value")), place)
            turns.append((_ROLES.get(role, role), content.strip()))
            known = (message.get(name) for name in NAMES["thought"])
            apart = next(filter(None, known), "")
    roles = [role for role, _ in turns]
    got = f"turns of {', '.join(map(str, roles)) or 'nobody'}"
    if roles == ["user"]:
        reject("no_answer", place, got, "an answer of the assistant")
    if roles != ["user", "assistant"]:
        reject("several_turns", place, got, "one of the user and one of the assistant")
    (_, question), (_, answer) = turns
    if not answer:
        reject("no_answer", place, "an empty answer of the assistant", "a text")
    found = {"question": question, "text": answer}
    thought = _content(apart, place)
    return found | {"thought": thought} if thought else found


def _apart(text: str) -> dict[str, str]:
    """A text, and what it has in `<think>` before it as the thought."""
    within, end, text = text.rpartition(_THOUGHT_END)
    thought = within.strip().removeprefix("<think>").strip()
    return {"text": text.strip() if end else text} | ({"thought": thought} if thought else {})


def _content(content: Any, place: str) -> str:
    """What a message says, at once or in parts."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        reject("wrong_type", place, "a message without text", "a text in 'content' or 'value'")
    return "".join(texts)


def _sample(values: Mapping[str, Any], origin: _Origin) -> Sample:
    has_chain = values["text"].strip() or values.get("thought") or not values["gold_answer"]
    return Sample(
        id=values["id"],
        dataset=values.get("dataset") or origin.dataset,
        split=values.get("split") or "train",
        question=values["question"],
        gold_answer=values["gold_answer"],
        format="zero_shot_cot" if has_chain else "zero_shot_answer",
        prompt_hash="",
        teacher={"model": values.get("teacher") or origin.teacher, "params": {}},
        sample=values.get("sample", 0),
        text=values["text"],
        logprobs=None,
        finish_reason="stop",
        thought=values.get("thought", ""),
        answer_kind=values.get("answer_kind", ""),
    )


def _usable(raw: Raw):
    if isinstance(raw.data, BadRecord):
        raise raw.data
    return raw.data


SAMPLES = Format(
    _read_samples,
    _parse_sample,
    rules="default",
    names={name: name for name in ("id", "question", "text", "gold_answer", "thought")},
)
FLAN = Format(
    _read_flan,
    _parse_flan,
    rules="none",
    names={"question": "question", "gold_answer": "answer", "text": "chain_of_thought"},
)
