"""The samples file: one teacher sample a line, JSON Lines, gzipped where the name ends in .gz."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cot_flax.chains.records import records, reject, require
from cot_flax.files import cleared_on_error, make_folder, new_file, work_path

MASS_NOISE = 0.01
"""The probabilities of a position may sum to more than 1 by this: servers round to bfloat16."""

BUCKETS = 256  # files that merging spreads questions over


@dataclass(frozen=True)
class Logprobs:
    """Natural-log probabilities (nats, finite, <= 0) of the L tokens of one text.

    The nesting is that of OpenAI's completions API.

    Attributes:
        tokens: L strings; concatenated they are the sample's text.
        token_logprobs: L values, one for each sampled token.
        top_logprobs: L mappings from the likeliest tokens to their values; the sampled token may
            be missing from them.
    """

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[Mapping[str, float], ...]

    @classmethod
    def certain(cls, *tokens: str) -> "Logprobs":
        """Those of a text that nobody sampled: log-probability 0, without alternatives."""
        return cls(tokens, (0.0,) * len(tokens), ({},) * len(tokens))

    @classmethod
    def joined(cls, parts: Iterable["Logprobs"]) -> "Logprobs":
        """Those of several texts, one behind the other."""
        return cls._of(row for part in parts for row in part._rows())

    def cut(self, start: int, end: int) -> "Logprobs":
        """Those of the characters [start, end) of the text.

        A token through which a cut goes keeps its log-probability, a lower bound for what is left
        of it, and loses its alternatives. Where no more than white space in front of it is cut off,
        the alternatives lose theirs too, and those that then are one text are added up: they are
        lower bounds of how the text goes on whatever white space stands before it.
        """
        kept, place = [], 0
        for token, value, top in self._rows():
            begin = max(start - place, 0)
            piece = token[begin : max(end - place, 0)]
            place += len(token)
            if not piece:
                continue
            if piece != token:
                is_behind_space = token.endswith(piece) and not token[:begin].strip()
                rest = {token: value, **top} if is_behind_space else {}
                top = _without_space(rest, token[:begin] if piece[0].isspace() else None)
                value = top.get(piece, value)
            kept.append((piece, value, top))
        return self._of(kept)

    def _rows(self) -> Iterator[tuple[str, float, Mapping[str, float]]]:
        return zip(self.tokens, self.token_logprobs, self.top_logprobs, strict=True)

    @classmethod
    def _of(cls, rows: Iterable[tuple[str, float, Mapping[str, float]]]) -> "Logprobs":
        return cls(*columns) if (columns := tuple(zip(*rows, strict=True))) else cls((), (), ())


def _without_space(top: Mapping[str, float], space: str | None) -> dict[str, float]:
    """Alternatives without such white space (None: any) in front; what is no more is left out."""
    left: dict[str, float] = {}
    for other, value in top.items():
        if token := other.lstrip(space):
            low, high = sorted((value, left.get(token, -math.inf)))
            left[token] = min(high + math.log1p(math.exp(low - high)), 0.0)
    return left


@dataclass(frozen=True)
class Sample:
    """One chain of thought of the teacher, with what it was asked and how it ended.

    Attributes:
        id: names the question; (id, sample) names this chain.
        dataset: the data set of the question, such as "gsm8k".
        split: its split, such as "train".
        question: the question, without any prompt around it.
        gold_answer: the right answer, without a rationale.
        format: the format of the prompt, such as "few_shot_cot".
        prompt_hash: names the exact prompt that was sent; "" where the source does not record it.
        teacher: {"model": its name, "params": its sampling parameters}.
        sample: the number of this sample among those of the same question, from 0.
        text: what the teacher wrote; "" of a record without a chain, whose format then is
            "zero_shot_answer".
        logprobs: its log-probabilities, or None where the teacher gives none.
        finish_reason: "stop", "length" (cut at the token limit), "malformed", or the API's own.
        thought: what a teacher that thinks apart from its text thought before it; "" and absent in
            the file for others.
        thought_logprobs: of the thought; None and absent in the file where the teacher gives none.
        answer_kind: of the gold answer, where the samples of a file differ in it: a name of
            `answers.KINDS`; "" and absent in the file for others.
    """

    id: str
    dataset: str
    split: str
    question: str
    gold_answer: str
    format: str
    prompt_hash: str
    teacher: Mapping[str, Any]
    sample: int
    text: str
    logprobs: Logprobs | None
    finish_reason: str
    thought: str = ""
    thought_logprobs: Logprobs | None = None
    answer_kind: str = ""

    @property
    def is_direct(self) -> bool:
        """Whether it is a question with its answer alone: its format asks for no chain."""
        return bool(self.gold_answer) and self.format.endswith("_answer") and not self.text.strip()


def source_of(teacher: Mapping[str, Any]) -> str:
    """Whose chains these are: "MODEL", "MODEL (RECIPE)", "MODEL (RECIPE), scored by MODEL"."""
    params = teacher["params"]
    recipe = f" ({params['recipe']})" if "recipe" in params else ""
    scored_by = f", scored by {params['scored_by']}" if "scored_by" in params else ""
    return f"{teacher['model']}{recipe}{scored_by}"


_LARGEST = sys.float_info.max
_NAMES = tuple(field.name for field in fields(Sample))
_LOGPROBS = {"logprobs": "text", "thought_logprobs": "thought"}
_OPTIONAL = {"thought", "thought_logprobs", "answer_kind"}
_TYPES = {"teacher": dict, "sample": int} | dict.fromkeys(_LOGPROBS, dict | None)  # others: str


def read_samples(path: str | os.PathLike) -> Iterator[Sample]:
    """Yields the samples of a file in order, holding one at a time.

    Raises:
        UserError: at the first line that breaks the contract, with the file and the line.
    """
    for place, record in records(path):
        yield sample_from_record(record, place)


def write_samples(path: str | os.PathLike, samples: Iterable[Sample]) -> None:
    """Writes the samples whole or not at all; equal samples give equal bytes.

    Folders on the way are made. The file grows beside its final name and is renamed at the end.
    """
    with new_file(path) as partial:
        zipped = Path(path).suffix == ".gz"
        with gzip_writer(partial) if zipped else open(partial, "wb") as file:
            file.writelines(map(to_line, samples))


@contextlib.contextmanager
def gzip_writer(path: Path) -> Iterator[gzip.GzipFile]:
    """Opens a gzip file for writing whose bytes depend on its content alone."""
    # No name and no time in the header.
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        yield packed


def to_line(sample: Sample, **added: str) -> bytes:
    """One line of a samples file; `added` fields come first."""
    record = added | vars(sample)
    for name in _LOGPROBS:
        record[name] = record[name] and vars(record[name])
    for name in _OPTIONAL:
        if not record[name]:
            del record[name]
    # A lone surrogate has no UTF-8; as a backslash escape it is JSON and comes back unchanged.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def merge_samples(paths: Sequence[str | os.PathLike], out: str | os.PathLike) -> int:
    """Writes the samples of several files with those of each question together.

    They are spread over 256 files by their question first, of which one at a time is held in
    memory. The chains of a question keep the order of their files and are numbered anew from 0, for
    two runs give the same numbers.

    Args:
        paths: samples files.
        out: the merged file, written whole or not at all; it may be one of `paths`.

    Returns:
        The number of samples.

    Raises:
        UserError: a line breaks the contract of samples files.
    """
    place = work_path(out).parent
    with cleared_on_error(place), tempfile.TemporaryDirectory(dir=make_folder(place)) as folder:
        count = _spread(paths, Path(folder))
        write_samples(out, _together(Path(folder)))
    return count


def sample_from_record(record: Mapping[str, Any], place: str) -> Sample:
    """Checks one object of the samples file and returns it as a Sample.

    Args:
        record: the decoded JSON object.
        place: where it stands, for the message of an error.

    Raises:
        UserError: a field is missing, unknown or of the wrong type; the log-probabilities do not
            have one entry a token, are positive or not finite, or sum to a probability above 1 at
            a position; the tokens do not join to the text.
    """
    if unknown := sorted(record.keys() - set(_NAMES)):
        reject("unknown_field", place, f"unknown fields {unknown}", f"only {', '.join(_NAMES)}")
    values = {
        name: require(record, name, _TYPES.get(name, str), place)
        for name in _NAMES
        if name in record or name not in _OPTIONAL
    }
    require(values["teacher"], "model", str, place)
    require(values["teacher"], "params", dict, place)
    for name, text in _LOGPROBS.items():
        if values.get(name) is not None:
            values[name] = _logprobs(values[name], values.get(text, ""), place)
    return Sample(**values)


def _logprobs(record: Mapping[str, Any], text: str, place: str) -> Logprobs:
    tokens = require(record, "tokens", list, place)
    token_logprobs = require(record, "token_logprobs", list, place)
    top_logprobs = require(record, "top_logprobs", list, place)
    lengths = (len(tokens), len(token_logprobs), len(top_logprobs))
    if len(set(lengths)) > 1:
        reject(
            "lengths_differ",
            place,
            "{} tokens, {} token_logprobs, {} top_logprobs".format(*lengths),
            "as many of each",
        )
    if not all(isinstance(token, str) for token in tokens) or "".join(tokens) != text:
        got, wanted = "tokens that do not join to the text", "strings that join to the text"
        reject("tokens_do_not_join", place, got, wanted)
    if not all(isinstance(top, dict) for top in top_logprobs):
        got, wanted = "top_logprobs that are no objects", "one {token: logprob} a token"
        reject("wrong_type", place, got, wanted)
    _check_values(token_logprobs, place)
    for token, value, top in zip(tokens, token_logprobs, top_logprobs, strict=True):
        _check_values(top.values(), place)
        if (found := mass(token, value, top)) > 1 + MASS_NOISE:
            got, wanted = f"probabilities at {token!r} that sum to {found:.3f}", "at most 1"
            reject("mass_above_1", place, got, wanted)
    return Logprobs(tuple(tokens), tuple(token_logprobs), tuple(top_logprobs))


def mass(token: str, value: float, top: Mapping[str, float]) -> float:
    """The probability of a sampled token and its alternatives together, each token once."""
    others = sum(map(math.exp, top.values()))
    return others if token in top else others + math.exp(value)


def _check_values(values: Collection[Any], place: str) -> None:
    for value in values:
        # The type itself, because bool is an int to isinstance.
        if type(value) not in (int, float):
            reason = "wrong_type"
        elif not -_LARGEST <= value <= _LARGEST:  # NaN, infinity, an integer of 400 digits
            reason = "nan_or_infinite"
        elif value > 0:
            reason = "probability_above_1"
        else:
            continue
        reject(reason, place, f"log-probability {value!r}", "finite natural logs, at most 0")


def _spread(paths: Sequence[str | os.PathLike], folder: Path) -> int:
    count = 0
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(open(folder / f"{i:03d}", "wb")) for i in range(BUCKETS)]
        for path in paths:
            for sample in read_samples(path):
                digest = hashlib.blake2b(sample.id.encode(errors="surrogatepass"), digest_size=1)
                buckets[digest.digest()[0]].write(to_line(sample))
                count += 1
    return count


def _together(folder: Path) -> Iterator[Sample]:
    for bucket in sorted(folder.iterdir()):
        if not bucket.stat().st_size:
            continue
        by_question: dict[str, list[Sample]] = {}
        for sample in read_samples(bucket):
            by_question.setdefault(sample.id, []).append(sample)
        for samples in by_question.values():
            for number, sample in enumerate(samples):
                yield dataclasses.replace(sample, sample=number)
