"""The steps of `prepare` as an Apache Beam pipeline.

    files -> records -> by question -> prepared -> by shard -> written

Every record has its place in the inputs, by which questions and shards are sorted, so that what is
written depends on the inputs and the settings alone and not on the runner. A worker holds a
question, and a shard while it writes it; what a runner keeps of its groups is the runner's affair.
"""

import dataclasses
import gzip
import json
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import tensorflow as tf
from etils import epath

from cot_flax.chains.preparation import Outcome, Preparation, parse, prepare_question
from cot_flax.chains.readers import Format, Raw, find_format
from cot_flax.chains.samples import to_line
from cot_flax.chains.tally import Tally
from cot_flax.chains.workers import Job
from cot_flax.errors import UserError
from cot_flax.store import layout
from cot_flax.store.prepare import PARTS
from cot_flax.text.tokenizers import Tokenizer

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError(f"no {error.name}", "Apache Beam", 'pip install "cot-flax[beam]"') from error

COUNTS = "counts.json"

Place = tuple[int, int]  # the file's number and the record's
Entry = tuple[Place, Format, Raw]  # place, how to parse it, record
Lines = tuple[Place, list[bytes], list[bytes], list[bytes]]  # place, kept, dropped, rejected


def new_pipeline(flags: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline; raises UserError where Beam knows no such runner or misses a flag."""
    try:
        return beam.Pipeline(options=PipelineOptions(list(flags)))
    except ValueError as error:
        wanted = "a runner of Beam with the flags that it needs"
        raise UserError(f"{' '.join(flags)}: {error}", wanted, "correct the flags") from error


def run(
    pipeline: beam.Pipeline,
    files: Sequence[str],
    out: str,
    job: Job,
    stored: layout.StoredIds,
    *,
    shards: int,
) -> None:
    """Adds the steps to a new pipeline and runs it to its end.

    It leaves the shards in `out`, and under `out`/parts what was dropped and rejected, a file a
    shard, and COUNTS: the records read and the tally.
    """
    formats = [find_format(path, job.settings.columns) for path in files]
    with pipeline:
        entries = (
            pipeline
            | "files" >> beam.Create(list(zip(range(len(files)), files, formats, strict=True)))
            | "share files out" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(read_file)
        )
        prepared = (
            entries
            | "by question" >> beam.GroupByKey()
            | "prepare"
            >> beam.ParDo(_Prepare(job, stored, shards)).with_outputs("tallies", main="lines")
        )
        # A shard that no question falls into is written too.
        nothing = pipeline | "shards" >> beam.Create([(i, ((), [], [], [])) for i in range(shards)])
        (
            (prepared.lines, nothing)
            | beam.Flatten()
            | "by shard" >> beam.GroupByKey()
            | "write" >> beam.Map(_write_shard, out, shards)
        )
        read = entries | "count" >> beam.combiners.Count.Globally()
        (
            prepared.tallies
            | "add up" >> beam.CombineGlobally(AddTallies())
            | "write counts" >> beam.Map(_write_counts, out, read=beam.pvalue.AsSingleton(read))
        )


def part(out: str | epath.Path, index: int, name: str) -> epath.Path:
    """Where the dropped or rejected records of a shard are left."""
    return epath.Path(out) / PARTS / f"{index:05d}.{name}"


def read_file(file: tuple[int, str, Format]) -> Iterator[tuple[bytes, Entry]]:
    """Yields the records of a numbered file, one at a time, by the questions that they name."""
    number, path, format = file
    for index, raw in enumerate(format.read(path)):
        yield raw.question, ((number, index), format, raw)


class _Prepare(beam.DoFn):
    """Prepares the records of a question."""

    def __init__(self, job: Job, stored: layout.StoredIds, shards: int):
        self._job, self._stored, self._shards = job, stored, shards

    def process(self, group: tuple[bytes, Iterable[Entry]]):
        question, entries = group
        entries = sorted(entries, key=lambda entry: entry[0])
        outcome = prepare_entries(entries, self._job.tokenizer, self._job.settings)
        yield zlib.crc32(question) % self._shards, _lines(entries[0][0], outcome, self._stored)
        yield beam.pvalue.TaggedOutput("tallies", outcome.tally)


def prepare_entries(
    entries: Sequence[Entry], tokenizer: Tokenizer, settings: Preparation
) -> Outcome:
    """Parses and prepares the records of one question.

    The chains of several files are numbered anew, for two runs give the same numbers.
    """
    outcome = Outcome()
    samples, rules = parse(((format, raw) for _, format, raw in entries), outcome)
    if len({file for (file, _), _, _ in entries}) > 1:
        samples = [dataclasses.replace(sample, sample=i) for i, sample in enumerate(samples)]
    if samples:
        prepare_question(samples, rules, tokenizer, settings, outcome)
    return outcome


def _lines(place: Place, outcome: Outcome, stored: layout.StoredIds) -> Lines:
    rejected = [{"reason": e.reason, "error": str(e)} for e in outcome.rejected]
    return (
        place,
        [layout.serialize(record, stored) for record in outcome.kept],
        [to_line(sample, reason=reason) for reason, sample in outcome.dropped],
        [(json.dumps(line) + "\n").encode() for line in rejected],
    )


class AddTallies(beam.CombineFn):
    """Adds tallies up; `mass`, a float, may differ in its last digits with the order."""

    def create_accumulator(self) -> Tally:
        return Tally()

    def add_input(self, total: Tally, tally: Tally) -> Tally:
        total.add(tally)
        return total

    def merge_accumulators(self, totals: Iterable[Tally]) -> Tally:
        merged = Tally()
        for total in totals:
            merged.add(total)
        return merged

    def extract_output(self, total: Tally) -> Tally:
        return total


def _write_shard(group: tuple[int, Iterable[Lines]], out: str, shards: int) -> None:
    """Writes a shard; may be repeated, or run twice at once: files are renamed when whole."""
    index, questions = group
    ordered = sorted(questions, key=lambda lines: lines[0])
    _, kept, dropped, rejected = (chain(*lists) for lists in zip(*ordered, strict=True))
    partial = epath.Path(out) / PARTS / uuid.uuid4().hex
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for record in kept:
            writer.write(record)
    partial.replace(epath.Path(out) / layout.shard_name(index, shards))
    _write_whole(part(out, index, layout.DROPPED), gzip.compress(b"".join(dropped), mtime=0))
    _write_whole(part(out, index, layout.REJECTED), b"".join(rejected))


def _write_counts(total: Tally, out: str, read: int) -> None:
    counts = {"read": read, "tally": total.to_json()}
    _write_whole(epath.Path(out) / PARTS / COUNTS, json.dumps(counts).encode())


def _write_whole(path: epath.Path, content: bytes) -> None:
    partial = path.with_name(uuid.uuid4().hex)
    partial.write_bytes(content)
    partial.replace(path)
