"""The stage `prepare`: a store for a task of the student, on this machine or on Apache Beam."""

import sys
from collections.abc import Mapping, Sequence

import tensorflow as tf

from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import find_format
from cot_flax.chains.tally import Tally
from cot_flax.data.batches import find_task
from cot_flax.data.registration import cot_task
from cot_flax.store.prepare import prepare


def store(
    *,
    samples: str | Sequence[str],
    out: str,
    task: str,
    settings: Preparation,
    workers: int | None = None,
    max_rejected: float = 0.05,
    max_unknown_chains: float = 0.1,
    beam_runner: str | None = None,
    beam_flags: Sequence[str] = (),
) -> str:
    """Makes a store of samples files; says what became of the records.

    Args:
        samples: files that `chains.readers` knows.
        out: the store's folder.
        task: has the student's vocabulary.
        settings: what is kept and how it is aligned.
        workers: processes; by default one a core.
        max_rejected: the share of unreadable records at which it stops.
        max_unknown_chains: the share of chains with unknown characters at which it stops.
        beam_runner: of Apache Beam, such as "DataflowRunner"; None is this machine, without Beam.
        beam_flags: Beam's, such as "--region=europe-west4".

    Raises:
        UserError: see `store.prepare.prepare`; no such task.
    """
    options = {
        "vocabulary": find_task(task).output_features["targets"].vocabulary,
        "settings": settings,
        "max_rejected": max_rejected,
        "max_unknown_chains": max_unknown_chains,
    }
    if beam_runner:
        from cot_flax.store import beam

        flags = [f"--runner={beam_runner}", *beam_flags]
        tally = beam.prepare(_files(samples), out, flags=flags, **options)
    else:
        tally = prepare(_files(samples), out, workers=workers, progress=_show, **options)
    return tally.summary()


def own_rules(samples: str | Sequence[str], columns: Mapping[str, str] | None = None) -> str:
    """The rules of the first file's format: given rationales are not judged."""
    first = _files(samples)[0]
    matching = sorted(tf.io.gfile.glob(first)) if set("*?[") & set(first) else []
    return find_format((matching or [first])[0], columns).rules


def answer_kind(task: str) -> str:
    """The kind of a task's answers, by which its chains are judged."""
    return cot_task(task).answer_kind


def _files(samples: str | Sequence[str]) -> list[str]:
    return [samples] if isinstance(samples, str) else list(samples)


def _show(tally: Tally) -> None:
    print(f"  {tally.read:,} records, {tally.kept:,} kept", file=sys.stderr)
