"""`cot-flax prepare`: from samples files to a store, on all cores, going on after a kill.

The input is cut into chunks of whole questions. A chunk becomes one shard under `parts/`, whose
JSON file, written last, says that it is done. At the end the shards are renamed into the layout.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.chains.file_names import files_of
from cot_flax.chains.filtering import UNREADABLE_GOLD
from cot_flax.chains.preparation import Outcome, Preparation
from cot_flax.chains.readers import Raw, find_format
from cot_flax.chains.samples import gzip_writer, to_line
from cot_flax.chains.tally import Tally, most
from cot_flax.chains.workers import Chunk, Job, cores, prepare_chunks
from cot_flax.data.features import OTHER_STUDENTS, fingerprint, tokenizer_of
from cot_flax.errors import UserError
from cot_flax.files import (
    file_version,
    is_bucket,
    make_folder,
    path_at,
    upload,
    work_path,
    write_whole,
)
from cot_flax.store import layout
from cot_flax.text.answers import kind_of_gold

PARTS, PLAN = "parts", "plan.json"
RECORDS_PER_SHARD = 2048

Progress = Callable[[Tally], None]


def prepare(
    inputs: Sequence[str],
    out: str,
    *,
    vocabulary: seqio.Vocabulary,
    settings: Preparation,
    workers: int | None = None,
    max_rejected: float = 0.05,
    max_unknown_chains: float = 0.1,
    max_nats: float = 6.0,
    min_likeliest: float = 0.15,
    overwrite: bool = False,
    records_per_shard: int = RECORDS_PER_SHARD,
    progress: Progress = lambda tally: None,
) -> Tally:
    """Filters, aligns and tokenizes samples into a store.

    Args:
        inputs: files that `chains.readers` knows, as `file_names.files_of` takes them. The chains
            of a question stand together in one.
        out: the store's folder. An unfinished one of the same inputs and settings is gone on with,
            a finished one is left as it is. One in a bucket grows at `files.work_path` until it is
            uploaded whole.
        vocabulary: the student's.
        settings: what is kept and how it is aligned.
        workers: processes; by default one a core.
        max_rejected: the share of unreadable records at which it stops.
        max_unknown_chains: the share of otherwise good chains at which it stops that hold
            characters which the vocabulary lacks, kept ones and dropped ones.
        max_nats: a token of one teacher and recipe, on average, beyond which it stops.
        min_likeliest: the share of such tokens that are the likeliest at their place, below which
            it stops.
        overwrite: replace a finished store of other inputs or settings.
        records_per_shard: records a chunk, at least.
        progress: called with the counts after each chunk.

    Returns:
        The counts, in which kept + dropped + rejected = read.

    Raises:
        UserError: a vocabulary without a tokenizer, an input that cannot be used, too many
            rejected records or unknown characters, log-probabilities that cannot be the text's,
            nothing kept, or another finished store.
    """
    inputs = files_of(inputs)
    job = Job(tokenizer_of(vocabulary), settings)
    final, plan = path_at(out), _plan(inputs, vocabulary, settings, records_per_shard)
    if tally := layout.finished(final, plan, overwrite=overwrite):
        return tally
    folder = work_path(out)
    total = layout.finished(folder, plan)  # where a kill came between the last part and the bucket
    if total is None:
        parts = _open_parts(folder, plan)
        total, done = Tally(), 0
        chunks = _chunks(inputs, settings.columns, records_per_shard)
        stored = layout.ids_of(plan)
        for tally in _prepared(chunks, parts, job, stored, workers or cores()):
            total.add(tally)
            done += 1
            stop_if_too_many_rejected(total, max_rejected, str(parts))
            stop_if_too_many_unknown(total, max_unknown_chains)
            stop_if_unlikely(total, max_nats, min_likeliest)
            progress(total)
        stop_if_nothing_kept(total, str(parts))
        _finish(folder, done, total, plan)
    if is_bucket(out):
        layout.remove(final)
        upload(folder, final, last=layout.COMPLETED)
        shutil.rmtree(folder)
    return total


def _plan(inputs, vocabulary, settings, records_per_shard) -> dict[str, Any]:
    """What a store is made of; two stores of one plan are the same."""
    for path in inputs:
        find_format(path, settings.columns)
    plan = {
        "format": layout.FORMAT,
        "inputs": [file_version(path) for path in inputs],
        "vocabulary": fingerprint(vocabulary),
        "id_bits": layout.id_bits(vocabulary.vocab_size),
        "settings": dataclasses.asdict(settings),
        "records_per_shard": records_per_shard,
    }
    return json.loads(json.dumps(plan))


def _open_parts(folder: Path, plan: dict) -> Path:
    """Opens the folder of finished chunks, emptied unless they are of the same plan."""
    parts = folder / PARTS
    file = parts / PLAN
    if not (file.exists() and json.loads(file.read_text()) == plan):
        shutil.rmtree(parts, ignore_errors=True)
        layout.remove(folder)
        make_folder(parts)
        write_whole(file, json.dumps(plan))
    return parts


def _prepared(
    chunks: Iterable[Chunk], parts: Path, job: Job, stored: layout.StoredIds, workers: int
) -> Iterator[Tally]:
    """Yields the tally of every chunk in order, preparing those that are not done."""
    tallies: dict[int, Tally] = {}

    def missing():
        for chunk in chunks:
            if (done := _part(parts, chunk.index, "json")).exists():
                tallies[chunk.index] = Tally.from_json(json.loads(done.read_text()))
            else:
                yield chunk

    following = 0
    for chunk, outcome in prepare_chunks(missing(), job, workers=workers):
        _write_part(parts, chunk.index, outcome, stored)
        tallies[chunk.index] = outcome.tally
        while following in tallies:
            yield tallies.pop(following)
            following += 1
    while following in tallies:
        yield tallies.pop(following)
        following += 1


def _chunks(inputs: Sequence[str], columns: Mapping[str, str] | None, size: int) -> Iterator[Chunk]:
    """Cuts the inputs into chunks of at least `size` records that end where a question ends."""
    index, seen = 0, np.empty(0, np.uint64)
    for path in inputs:
        raws: list[Raw] = []
        format = find_format(path, columns)
        for raw in format.read(path):
            if len(raws) >= size and raw.question != raws[-1].question:
                seen = _check_together(raws, seen)
                yield Chunk(index, format, raws)
                index, raws = index + 1, []
            raws.append(raw)
        if raws:
            seen = _check_together(raws, seen)
            yield Chunk(index, format, raws)
            index += 1


def _check_together(raws: Sequence[Raw], seen: np.ndarray) -> np.ndarray:
    """Adds the questions to those seen before; raises UserError where one comes back.

    8 bytes a question are held. Two of n questions share a hash by chance with probability
    n^2 / 2^65, or 1e-7 for two million.
    """
    firsts = [raw for i, raw in enumerate(raws) if i == 0 or raw.question != raws[i - 1].question]
    hashes = np.array([_hash(raw.question) for raw in firsts], np.uint64)
    values, first_places = np.unique(hashes, return_index=True)
    # `seen` is in order: what sorts it again for every chunk takes longer the more there are.
    at = np.searchsorted(seen, values)
    again = np.isin(hashes, seen[at[at < len(seen)]])
    again[np.setdiff1d(np.arange(len(hashes)), first_places)] = True
    if again.any():
        raw = firsts[int(np.argmax(again))]
        name = raw.question.decode(errors="replace")
        raise UserError(
            f"{raw.place}: question {name!r} again, after other questions",
            "all chains of a question together",
            "run `cot-flax teach merge FILES --out TOGETHER.jsonl.gz` first",
        )
    return np.insert(seen, at, values)


def _hash(question: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(question, digest_size=8).digest())


def stop_if_too_many_rejected(total: Tally, max_rejected: float, parts: str) -> None:
    """Raises UserError where more than this share of the records could not be read."""
    rejected = total.rejected.total()
    if rejected > max_rejected * total.read:
        raise UserError(
            f"{rejected:,} of {total.read:,} records that cannot be read ({dict(total.rejected)})",
            f"at most {max_rejected:.1%}",
            f"repair the input ({parts}/*.{layout.REJECTED} name the lines) "
            "or raise --max-rejected",
        )
    unreadable = total.fates[UNREADABLE_GOLD]
    if unreadable > max_rejected * total.read:
        shown = {e["gold_answer"] for e in total.dropped_examples if e["reason"] == UNREADABLE_GOLD}
        likely = sorted({kind_of_gold(gold) for gold in shown})
        raise UserError(
            f"{unreadable:,} of {total.read:,} gold answers that are none of the kind of --task, "
            f"such as {', '.join(map(repr, sorted(shown)))}, which look like {', '.join(likely)}",
            f"at most {max_rejected:.1%}",
            "take a --task of their kind, pass --answer-kind (gold: of each its own), or raise "
            "--max-rejected",
        )


def stop_if_too_many_unknown(total: Tally, max_unknown_chains: float) -> None:
    """Raises UserError where more than this share of the chains has unknown characters.

    Or of the questions.
    """
    for sides, share, unknown in (
        ("chains", total.unknown_share, total.unknown + total.unknown_dropped),
        ("questions", total.unknown_questions_share, total.unknown_in_questions),
    ):
        if share > max_unknown_chains:
            raise UserError(
                f"{share:.1%} of the {sides} with characters that the student's vocabulary lacks: "
                f"{most(unknown)}",
                f"at most {max_unknown_chains:.1%}",
                f"{OTHER_STUDENTS}, or raise --max-unknown-chains",
            )


def stop_if_unlikely(total: Tally, max_nats: float, min_likeliest: float) -> None:
    """Raises UserError where a teacher's log-probabilities cannot be those of its text.

    The default bounds lie between what is right and what is shifted by a place. Right: on its own
    chains code-davinci-002 has 0.33 nats a token and 92% likeliest ones; SmolLM2-135M has 1.32 and
    67% on human chains, 2.50 and 44% in the worst of 256; drawn at temperature 2 from its top 5,
    58% would be the likeliest. Shifted: llama-cpp-python's echo has 9.3 to 12.7 nats and 7%; with
    the rows of the place behind, SmolLM2 would have 3% and code-davinci-002 none.
    """
    if unlikely := total.unlikely(max_nats, min_likeliest):
        raise UserError(
            unlikely,
            f"at most {max_nats:g} nats and at least {min_likeliest:.0%}: these may be of other "
            "places than the text's",
            "score the chains with another server (`cot-flax teach rescore`), or change --max-nats "
            "or --min-likeliest",
        )


def stop_if_nothing_kept(total: Tally, parts: str) -> None:
    """Raises UserError where no record was kept."""
    if not total.kept:
        raise UserError(
            f"no usable chain ({dict(total.fates + total.rejected)})",
            "at least one that passes the filters",
            f"look at {parts}/*.{layout.DROPPED} and *.{layout.REJECTED}, or choose other --rules",
        )


def _write_part(parts: Path, index: int, outcome: Outcome, stored: layout.StoredIds) -> None:
    records = _part(parts, index, "tfrecord")
    with tf.io.TFRecordWriter(str(records)) as writer:
        for record in outcome.kept:
            writer.write(layout.serialize(record, stored))
    with gzip_writer(_part(parts, index, layout.DROPPED)) as file:
        file.writelines(to_line(sample, reason=reason) for reason, sample in outcome.dropped)
    lines = [{"reason": e.reason, "error": str(e)} for e in outcome.rejected]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    _part(parts, index, layout.REJECTED).write_text(text)
    write_whole(_part(parts, index, "json"), json.dumps(outcome.tally.to_json()))


def _finish(folder: Path, parts_done: int, total: Tally, plan: dict) -> None:
    """Moves the parts into the layout; may be repeated after a kill."""
    parts = folder / PARTS
    for index in range(parts_done):
        part = _part(parts, index, "tfrecord")
        if part.exists():
            os.replace(part, folder / layout.shard_name(index, parts_done))
    for name in (layout.DROPPED, layout.REJECTED):
        with open(folder / name, "wb") as whole:
            for index in range(parts_done):
                whole.write(_part(parts, index, name).read_bytes())
    layout.write_layout(folder, shards=parts_done, tally=total, plan=plan)
    shutil.rmtree(parts)


def _part(parts: Path, index: int, suffix: str) -> Path:
    return parts / f"{index:05d}.{suffix}"
