"""A user's own scenario: `scenario_<format>`, and `scenario_teacher_<format>` from a store.

`scenario_bytes_<format>` and `scenario_bytes_teacher_<format>` are the same of bytes, for ByT5.

The folder is what `cot-flax teach scenario` asks a teacher about. Its settings say of what kind the
answers are and how prompts look: the instruction first, then in few-shot formats all exemplars in
file order, or as many drawn as the settings say. The labelled inputs of `test.jsonl`, and those
held out for validation, about which no teacher is asked, are the splits of their names.

Several scenarios train together, for students that take up another one from its exemplars: each
folder of `several.folders` has tasks `scenario_<name>_<format>`, by the name in its settings or its
own. Those with a store have `scenario_<name>_teacher_<format>` besides, and are mixed in equal
parts as `scenarios_teacher_cot_mix`; `scenarios_held_out` is the chains of the others.
"""

import functools
import re
from collections.abc import Callable, Sequence

import gin
import seqio

from cot_flax.data.registration import add_cot_task, add_tasks_on_demand
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.teacher.scenario import (
    read_exemplars,
    read_instruction,
    read_settings,
    read_test,
    read_validation,
)
from cot_flax.text.prompts import Exemplar

_COT = ("zero_shot_cot", "few_shot_cot")
_STORED, _HELD_OUT = "scenarios_teacher_cot_mix", "scenarios_held_out"


@gin.configurable(module="cot_flax.tasks.scenario")
def data(directory: str | None = None) -> str:
    """The scenario's folder."""
    if directory is None:
        raise UserError("no scenario", "its folder", "pass --gin.SCENARIO=FOLDER")
    return directory


@gin.configurable(module="cot_flax.tasks.scenario")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


@gin.configurable(module="cot_flax.tasks.scenario")
def exemplars(shots: int | None = None) -> int | None:
    """How many are drawn a prompt, 0 for all in file order; None is what the settings say."""
    return shots


@gin.configurable(module="cot_flax.tasks.scenario")
def several(
    folders: Sequence[str] = (), stores: Sequence[str | None] = ()
) -> dict[str, tuple[str, str | None]]:
    """The scenarios that train together: their folders, and in this order their stores.

    One without a store (None, or fewer stores than folders) is held out.

    Raises:
        UserError: two of one name, or more stores than folders.
    """
    if isinstance(folders, str) or isinstance(stores, str) or len(stores) > len(folders):
        raise UserError(
            f"scenarios {folders!r} with stores {stores!r}",
            "a list of folders, and a store or None for each",
            "correct SCENARIOS and TEACHER_STORES",
        )
    names = [re.sub(r"\W+", "_", read_settings(folder).dataset) for folder in folders]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"several scenarios called {min(repeated)}",
            "a name for each",
            'rename a folder, or add {"dataset": "NAME"} to its settings.json',
        )
    filled = [*stores, *[None] * (len(folders) - len(stores))]
    return dict(zip(names, zip(folders, filled, strict=True), strict=True))


def _records(folder: Callable[[], str | None], split: str) -> list[dict]:
    if split == "test":
        items = read_test(folder())
    elif split == "train":
        items = read_exemplars(folder())
    else:
        items = read_validation(folder())
    return [
        {
            "id": item.id,
            "question": item.question,
            "rationale": item.rationale,
            "answer": item.answer,
        }
        for item in items
    ]


def _add(
    name: str,
    folder: Callable[[], str | None],
    store: Callable[[], str | None],
    vocabulary: seqio.Vocabulary | None = None,
) -> seqio.DataSource:
    def settings():
        return read_settings(folder())

    def shots() -> int:
        bound = exemplars()
        return settings().shots if bound is None else bound

    def shown() -> list[Exemplar] | None:
        if shots():
            return None
        items = read_exemplars(folder())
        return [Exemplar(item.question, item.rationale, item.answer) for item in items]

    held_out = ("validation", "test")
    source = records_source(
        functools.partial(_records, folder), ("train", *held_out), optional=held_out
    )
    add_cot_task(
        name,
        source,
        fixed_exemplars=shown,
        shots=shots,
        answer_kind=lambda: settings().answer_kind,
        wording=lambda: settings().wording,
        template=lambda: settings().template,
        instruction=lambda: read_instruction(folder()) if settings().instruct else None,
        vocabulary=vocabulary,
        teacher_store=store,
    )
    return source


def _add_several(wanted: str) -> None:
    """Adds the tasks of `several` when a name like theirs is looked for."""
    if wanted and not wanted.startswith(("scenario_", "scenarios_")):
        return
    found = several()
    for name in found:
        if f"scenario_{name}_cot_mix" not in seqio.MixtureRegistry.names():
            _add(f"scenario_{name}", _current(name, 0), _current(name, 1))
    mixed = {
        _STORED: [
            f"scenario_{name}_teacher_cot_mix" for name, (_, store) in found.items() if store
        ],
        _HELD_OUT: [
            f"scenario_{name}_{format}"
            for name, (_, store) in found.items()
            for format in _COT
            if not store
        ],
    }
    if parts := mixed.get(wanted):
        seqio.MixtureRegistry.remove(wanted)  # gin may have bound other folders since
        seqio.MixtureRegistry.add(wanted, [(part, 1.0) for part in parts])


def _current(name: str, part: int) -> Callable[[], str | None]:
    """The folder, or the store, that a scenario has as gin binds it now."""
    return lambda: several()[name][part]


SOURCE = _add("scenario", data, teacher_store)
_add("scenario_bytes", data, teacher_store, seqio.ByteVocabulary())
add_tasks_on_demand(_add_several)
