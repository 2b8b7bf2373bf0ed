"""Reads what `prepare` takes, a record at a time: samples files, FLAN's TSV, the CoT Collection.

Reading and parsing are two steps, so that one process can hand out records while others parse.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ijson
from etils import epath

from cot_flax.errors import UserError
from cot_flax.teacher.records import BadRecord, json_object, raw_lines, reject, require
from cot_flax.teacher.samples import Sample, sample_from_record

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
    """

    read: Callable[[Path], Iterator[Raw]]
    parse: Callable[[Raw], Sample]
    rules: str


def find_format(path: str | os.PathLike) -> Format:
    """The format of a file, by its name; raises UserError where the name says none."""
    name = Path(path).name.removesuffix(".gz")
    for suffix, found in FORMATS.items():
        if name.endswith(suffix):
            return found
    raise UserError(
        f"{path}, a file of unknown format",
        f"a name that ends in {', '.join(FORMATS)} (all but .json may end in .gz too)",
        "rename or convert it",
    )


def _lines(path: Path) -> Iterator[tuple[str, bytes | BadRecord]]:
    """Lines with their places; what cannot be read to its end closes with the error."""
    try:
        yield from raw_lines(path)
    except BadRecord as error:
        yield str(path), error


def _read_samples(path: Path) -> Iterator[Raw]:
    for place, line in _lines(path):
        if isinstance(line, BadRecord):
            yield Raw(place, place.encode(), line)
        else:
            yield Raw(place, _question(line, place), line)


def _question(line: bytes, place: str) -> bytes:
    """The record's id without decoding the record, which may be long, wherever it comes first."""
    if match := _ID_FIRST.match(line):
        return match[1]
    try:
        return str(json_object(line, place).get("id", place)).encode()
    except BadRecord:
        return place.encode()  # parsing will say what is wrong


def _parse_sample(raw: Raw) -> Sample:
    return sample_from_record(json_object(_usable(raw), raw.place), raw.place)


def _read_tsv(path: Path) -> Iterator[Raw]:
    for place, line in _lines(path):
        yield Raw(place, place.encode(), line)


def _parse_tsv(raw: Raw) -> Sample:
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
    return _human_sample(Path(path).name.partition(".")[0], number, question, answer, chain)


def _read_collection(path: Path) -> Iterator[Raw]:
    """One JSON object of entries, read as a stream; of a file that breaks off, what came before."""
    try:
        with epath.Path(path).open("rb") as file:
            for name, entry in ijson.kvitems(file, "", use_float=True):
                place = f"{path}, entry {name}"
                if not isinstance(entry, dict):
                    entry = BadRecord("wrong_type", place, "an entry", "an object")
                yield Raw(place, place.encode(), entry)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}", "a JSON file", "check the path") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        wanted = "one JSON object of entries"
        got = str(error).splitlines()[0]
        broken = BadRecord("truncated_file", f"{path}, behind the last entry read", got, wanted)
        yield Raw(str(path), str(path).encode(), broken)


def _parse_entry(raw: Raw) -> Sample:
    """An entry of the CoT Collection: source, target, rationale, task."""
    entry, place = _usable(raw), raw.place
    fields = (require(entry, name, str, place) for name in ("source", "target", "rationale"))
    number = place.rpartition(", entry ")[2]
    return _human_sample(str(entry.get("task", "cot_collection")), number, *fields)


def _human_sample(dataset: str, number: str, question: str, answer: str, chain: str) -> Sample:
    return Sample(
        id=f"{dataset}-{number}",
        dataset=dataset,
        split="train",
        question=question,
        gold_answer=answer,
        format="zero_shot_cot",
        prompt_hash="",
        teacher={"model": "given rationales", "params": {}},
        sample=0,
        text=chain,
        logprobs=None,
        finish_reason="stop",
    )


def _usable(raw: Raw):
    if isinstance(raw.data, BadRecord):
        raise raw.data
    return raw.data


FORMATS: dict[str, Format] = {
    ".jsonl": Format(_read_samples, _parse_sample, rules="default"),
    ".tsv": Format(_read_tsv, _parse_tsv, rules="none"),
    ".json": Format(_read_collection, _parse_entry, rules="none"),
}
