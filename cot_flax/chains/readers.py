"""Reads what `prepare` takes, a record at a time: samples files, FLAN's TSV, the CoT Collection.

Reading and parsing are two steps, so that one process can hand out records while others parse.
`read_codex_dump` reads one more file, which `teach` makes a samples file.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ijson

from cot_flax.chains.samples import (
    CUT_OFF,
    UNREADABLE,
    BadRecord,
    Logprobs,
    Sample,
    json_lines,
    json_object,
    open_text,
    raw_lines,
    reject,
    require,
    sample_from_record,
)
from cot_flax.errors import UserError

_ID_FIRST = re.compile(rb'\s*\{\s*"id"\s*:\s*"((?:[^"\\]|\\.)*)"')
_ROUNDED_AWAY = 5e-5  # Of the Codex dump's four decimals: less was written as 0.0.
_CODEX_PARAMS = {"temperature": 0.5, "max_tokens": 256, "logprobs": 5}


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
        f"a name that ends in {', '.join(FORMATS)} (.gz may follow)",
        "rename or convert it",
    )


def parsed(path: str | os.PathLike) -> Iterator[Sample]:
    """The samples of a file in order, holding one at a time.

    Raises:
        UserError: the file cannot be used; BadRecord at the first record that cannot.
    """
    format = find_format(path)
    for raw in format.read(Path(path)):
        yield format.parse(raw)


def read_codex_dump(path: str | os.PathLike) -> Iterator[Sample]:
    """Yields every chain of the public Codex dump on GSM8K as a sample, with natural logs.

    It is paper [1]'s teacher. The dump holds probabilities of four decimals, unsorted. Its first
    two tokens echo the end of the prompt ("Let's think step by step"), its last two are the
    newlines after the answer.

    A chain that passes the paper's sanity gate loses the echo and the trailing newlines and has
    finish_reason "stop". One that fails it is yielded uncut with finish_reason "malformed", so
    that filtering rejects and counts it; the paper relabels it as wrong.

    A top-5 entry of 0.0 is left out: all that is known is that it lies below 5e-5. A sampled
    token of 0.0 gets the log of 5e-5, the most that it can have had. prompt_hash is "", for the
    dump does not hold the prompt.

    Raises:
        UserError: a line is not of the dump's shape; the message names file and line.

    Source: Fu et al. 2023, their notebook `dev_align_codex_to_flan_t5_dtw`, cell 32.
    """
    for place, record in json_lines(path):
        yield _without_echo(sample_from_record(_codex_record(record, place), place))


def _lines(path: Path) -> Iterator[tuple[str, bytes | BadRecord]]:
    """Lines with their places; what cannot be read to its end closes with the error."""
    try:
        yield from raw_lines(path)
    except BadRecord as error:
        yield str(path), error


def _read_samples(path: Path) -> Iterator[Raw]:
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
    """The sample, of which it is known that it has a UTF-8 form: JSON can hold half a character."""
    try:
        for name in ("id", "question", "gold_answer", "prompt_hash", "text"):
            getattr(sample, name).encode()
    except UnicodeEncodeError as error:
        reject("bad_text", place, f"{name!r} with half a character ({error.reason})", "UTF-8")
    return sample


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
    none = True
    try:
        with open_text(path) as file:
            for name, entry in ijson.kvitems(file, "", use_float=True):
                none = False
                place = f"{path}, entry {name}"
                if not isinstance(entry, dict):
                    entry = BadRecord("wrong_type", place, "an entry", "an object")
                yield Raw(place, place.encode(), entry)
    except UNREADABLE as error:
        raise UserError(f"{path}: {error.strerror}", "a JSON file", "check the path") from error
    except (ijson.JSONError, UnicodeDecodeError, *CUT_OFF) as error:
        none, wanted = False, "one JSON object of entries"
        got = str(error).splitlines()[0]
        broken = BadRecord("truncated_file", f"{path}, behind the last entry read", got, wanted)
        yield Raw(str(path), str(path).encode(), broken)
    if none:
        remedy = "convert it; a samples file's name ends in .jsonl"
        raise UserError(f"{path}: no entries", "one JSON object of entries", remedy)


def _parse_entry(raw: Raw) -> Sample:
    """An entry of the CoT Collection: source, target, rationale, task."""
    entry, place = _usable(raw), raw.place
    fields = (require(entry, name, str, place) for name in ("source", "target", "rationale"))
    number = place.rpartition(", entry ")[2]
    sample = _human_sample(str(entry.get("task", "cot_collection")), number, *fields)
    return _writable(sample, place)


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


def _codex_record(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {
        "id": f"gsm8k-train-{require(record, 'gsm8k_train_index', int, place)}",
        "dataset": "gsm8k",
        "split": "train",
        "question": require(record, "question", str, place),
        "gold_answer": require(record, "gold", str, place),
        "format": "few_shot_cot",
        "prompt_hash": "",
        "teacher": {"model": require(record, "model", str, place), "params": _CODEX_PARAMS},
        "sample": require(record, "sample", int, place),
        "text": require(record, "text", str, place),
        "logprobs": _codex_logprobs(record, place),
        "finish_reason": "stop",
    }


def _codex_logprobs(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    probabilities = require(record, "token_probs", list, place)
    top5 = require(record, "top5", list, place)
    try:
        return {
            "tokens": require(record, "tokens", list, place),
            "token_logprobs": [math.log(p or _ROUNDED_AWAY) for p in probabilities],
            "top_logprobs": [{token: math.log(p) for token, p in pairs if p} for pairs in top5],
        }
    except (TypeError, ValueError) as error:
        wanted = "probabilities, and lists of [token, probability]"
        reject("wrong_type", place, f"token_probs or top5 of another shape ({error})", wanted)


def _without_echo(sample: Sample) -> Sample:
    tokens = sample.logprobs.tokens
    if not _passes_gate(tokens):
        return replace(sample, finish_reason="malformed")
    kept = slice(2, -2)
    logprobs = Logprobs(*(values[kept] for values in vars(sample.logprobs).values()))
    return replace(sample, text="".join(tokens[kept]), logprobs=logprobs)


def _passes_gate(tokens: Sequence[str]) -> bool:
    return (
        len(tokens) >= 4
        and tuple(tokens[:2]) == (" step", "\n")
        and tokens[-2] in ("\n", "\n\n")
        and tokens[-1] == "\n"
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
