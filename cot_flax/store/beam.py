"""`prepare` on Apache Beam: from samples files to a store, for inputs that want more machines.

With flags for Dataflow, Flink or Spark the steps run there; the inputs and the store then lie where
all workers reach them, and the workers have cot-flax installed. The DirectRunner holds all records
in memory: on one machine `store.prepare` is the way.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

import seqio
from etils import epath

from cot_flax.chains.file_names import files_of
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import find_format
from cot_flax.chains.tally import Tally
from cot_flax.chains.workers import Job
from cot_flax.data.features import fingerprint, tokenizer_of
from cot_flax.files import path_at
from cot_flax.store import beam_steps, layout
from cot_flax.store.prepare import (
    PARTS,
    stop_if_nothing_kept,
    stop_if_too_many_rejected,
    stop_if_too_many_unknown,
    stop_if_unlikely,
)

BYTES_PER_SHARD = 2 << 20


def prepare(
    inputs: Sequence[str],
    out: str,
    *,
    vocabulary: seqio.Vocabulary,
    settings: Preparation,
    flags: Sequence[str] = (),
    max_rejected: float = 0.05,
    max_unknown_chains: float = 0.1,
    max_nats: float = 6.0,
    min_likeliest: float = 0.15,
    overwrite: bool = False,
    bytes_per_shard: int = BYTES_PER_SHARD,
) -> Tally:
    """Filters, aligns and tokenizes samples into a store, on a Beam runner.

    The store holds the records of `store.prepare`, cut into other shards. The chains of a question
    need not stand together: they are taken in the order of the inputs, which `cot-flax teach merge`
    keeps too.

    Args:
        inputs: files that `chains.readers` knows, as `file_names.files_of` takes them.
        out: the store's folder. A finished one of the same inputs and settings is left as it is.
        vocabulary: the student's.
        settings: what is kept and how it is aligned.
        flags: Beam's, such as "--runner=DataflowRunner".
        max_rejected: the share of unreadable records that is allowed, which is known at the end.
        max_unknown_chains: likewise of chains with characters that the vocabulary lacks.
        max_nats: as in `store.prepare`.
        min_likeliest: as in `store.prepare`.
        overwrite: replace a finished store of other inputs or settings.
        bytes_per_shard: bytes of input a shard, on average.

    Returns:
        The counts, in which kept + dropped + rejected = read.

    Raises:
        UserError: a runner or an input that cannot be used, too many rejected records or unknown
            characters, or nothing kept.
    """
    job = Job(tokenizer_of(vocabulary), settings)
    folder, plan = epath.Path(path_at(out)), _plan(inputs, vocabulary, settings, bytes_per_shard)
    if tally := layout.finished(folder, plan, overwrite=overwrite):
        return tally
    pipeline = beam_steps.new_pipeline(flags)
    layout.remove(folder)
    (folder / PARTS).rmtree(missing_ok=True)
    (folder / PARTS).mkdir(parents=True)
    paths, sizes, _ = zip(*plan["inputs"], strict=True)
    shards = -(-sum(sizes) // bytes_per_shard)
    beam_steps.run(pipeline, paths, os.fspath(folder), job, layout.ids_of(plan), shards=shards)
    total = _total(folder / PARTS, max_rejected, max_unknown_chains)
    stop_if_unlikely(total, max_nats, min_likeliest)
    _finish(folder, shards, total, plan)
    return total


def _plan(inputs, vocabulary, settings, bytes_per_shard) -> dict:
    """What a store is made of; two stores of one plan are the same."""
    plan = {
        "format": layout.FORMAT,
        "inputs": [_status(path, settings.columns) for path in files_of(inputs)],
        "vocabulary": fingerprint(vocabulary),
        "id_bits": layout.id_bits(vocabulary.vocab_size),
        "settings": dataclasses.asdict(settings),
        "bytes_per_shard": bytes_per_shard,
    }
    return json.loads(json.dumps(plan))


def _status(path: str, columns: Mapping[str, str] | None) -> tuple[str, int, float]:
    """Path, bytes and time; refuses here what a worker would only meet later."""
    find_format(path, columns)
    status = epath.Path(path).stat()
    return path, status.length, status.mtime


def _total(parts: epath.Path, max_rejected: float, max_unknown_chains: float) -> Tally:
    counts = json.loads((parts / beam_steps.COUNTS).read_text())
    total = Tally.from_json(counts["tally"])
    assert counts["read"] == total.read, counts
    stop_if_too_many_rejected(total, max_rejected, str(parts))
    stop_if_too_many_unknown(total, max_unknown_chains)
    stop_if_nothing_kept(total, str(parts))
    return total


def _finish(folder: epath.Path, shards: int, total: Tally, plan: dict) -> None:
    for name in (layout.DROPPED, layout.REJECTED):
        with (folder / name).open("wb") as whole:
            for index in range(shards):
                whole.write(beam_steps.part(folder, index, name).read_bytes())
    layout.write_layout(folder, shards=shards, tally=total, plan=plan)
    (folder / PARTS).rmtree()
