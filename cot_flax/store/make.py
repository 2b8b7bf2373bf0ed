"""The stage `prepare`: a store for a task of the student, on this machine or on Apache Beam."""

import contextlib
import itertools
import sys
from collections.abc import Sequence

from cot_flax.chains.file_names import files_of
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import SAMPLES, find_format
from cot_flax.chains.records import BadRecord
from cot_flax.chains.tally import Tally, most
from cot_flax.data.cards import TaskCard
from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import cot_task, layout_of, registered
from cot_flax.errors import UserError
from cot_flax.store.prepare import prepare
from cot_flax.text.templates import Template


def store(
    *,
    samples: str | Sequence[str],
    out: str,
    task: str,
    settings: Preparation,
    workers: int | None = None,
    max_rejected: float = 0.05,
    max_unknown_chains: float = 0.1,
    max_nats: float = 6.0,
    min_likeliest: float = 0.15,
    overwrite: bool = False,
    beam_runner: str | None = None,
    beam_flags: Sequence[str] = (),
) -> str:
    """Makes a store of samples files; says what became of the records.

    Args:
        samples: files that `chains.readers` knows, as `file_names.files_of` takes them.
        out: the store's folder.
        task: has the student's vocabulary.
        settings: what is kept and how it is aligned.
        workers: processes; by default one a core.
        max_rejected: the share of unreadable records at which it stops.
        max_unknown_chains: the share of chains with unknown characters at which it stops.
        max_nats: as in `store.prepare.prepare`.
        min_likeliest: as in `store.prepare.prepare`.
        overwrite: replace a finished store of other inputs or settings.
        beam_runner: of Apache Beam, such as "DataflowRunner"; None is this machine, without Beam.
        beam_flags: Beam's, such as "--region=europe-west4".

    Raises:
        UserError: see `store.prepare.prepare`; no such task; samples of a data set that has tasks
            of its own.
    """
    provider, card = find_task(task, "--task"), cot_task(task)
    files = files_of(samples)
    for file in files:
        _refuse_another(file, card)
    options = {
        "vocabulary": provider.output_features["targets"].vocabulary,
        "settings": settings,
        "max_rejected": max_rejected,
        "max_unknown_chains": max_unknown_chains,
        "max_nats": max_nats,
        "min_likeliest": min_likeliest,
        "overwrite": overwrite,
    }
    if beam_runner:
        from cot_flax.store import beam

        flags = [f"--runner={beam_runner}", *beam_flags]
        tally = beam.prepare(files, out, flags=flags, **options)
    else:
        tally = prepare(files, out, workers=workers, progress=_show, **options)
    others = tally.datasets.keys() - _own_names(card)
    named = f"\nkept by data set: {most(tally.datasets)}" if others else ""
    return tally.summary() + named


def answer_kind(task: str, kind: str | None = None) -> str:
    """By which kind of answers chains are judged; see `filtering.Filters`.

    Args:
        task: whose kind it is where `kind` is None.
        kind: another one.
    """
    find_task(task, "--task")
    return kind or cot_task(task).answer_kind


def template(task: str) -> Template:
    """The template of a task's targets, with the words of their closing."""
    find_task(task, "--task")
    return layout_of(task).template


def _own_names(card: TaskCard) -> set[str]:
    """What samples for a task call their data set; a teacher's tasks are called after its own."""
    return {card.dataset, card.dataset.removesuffix("_teacher")}


def _refuse_another(file: str, card: TaskCard) -> None:
    """Raises UserError where the first sample of a file is of another registered data set."""
    found, own = _first_dataset(file), _own_names(card)
    others = [other for other in registered() if found in _own_names(other)]
    if not others or found in own:
        return
    near = [other for other in others if other.format == card.format] or others
    raise UserError(
        f"{file} with samples of {found} for {card.name}",
        f"samples of {min(own)}, whose answer kind and exemplars the task has",
        f"give --task {near[-1].name}, or other samples",
    )


def _first_dataset(file: str) -> str | None:
    """What a samples file says of its first sample; None where it does not, or cannot be read."""
    try:
        if find_format(file) is SAMPLES:
            for raw in itertools.islice(SAMPLES.read(file), 100):
                with contextlib.suppress(BadRecord):
                    return SAMPLES.parse(raw).dataset
    except UserError:  # `prepare` says why
        pass
    return None


def _show(tally: Tally) -> None:
    print(f"  {tally.read:,} records, {tally.kept:,} kept", file=sys.stderr)
