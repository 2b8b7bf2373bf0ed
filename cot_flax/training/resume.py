"""What a run was begun with, against what it is to go on with: refused, or said in one line.

Both are facts as run.json holds them (`run_folder.write_facts`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cot_flax.errors import UserError

_NAMES = {
    "started_from": "INITIAL_CHECKPOINT_PATH",
    "taught_by": "WHITE_BOX_TEACHER",
    "data.mixture": "MIXTURE_OR_TASK_NAME",
    "data.lengths": "TASK_FEATURE_LENGTHS",
    "data.fingerprint": "the chains of TEACHER_STORE",
    "data.pack": "PACK",
    "data.by_task": "MICROBATCHES_BY_TASK",
    "data.cached": "USE_CACHED_TASKS",
    "data.examples": "the data's number of examples",
    "data.rates": "mixing rates",
    "data.seed": "RANDOM_SEED",
    "data.stores": "",
    "data.settings": "",
    "objective.kl_weight": "KL_WEIGHT",
    "objective.tail": "TAIL",
    "objective.temperature": "KL_TEMPERATURE",
    "objective.white_box.weight": "WHITE_BOX_WEIGHT",
    "objective.white_box.temperature": "KL_TEMPERATURE",
    "objective.white_box": "white-box objective",
    "objective.z_loss": "Z_LOSS",
    "objective.label_smoothing": "LABEL_SMOOTHING",
    "training.batch_size": "BATCH_SIZE",
    "training.best_metrics": "BEST_METRICS",
    "training.early_stopping": "EARLY_STOPPING",
    "training.equal_microbatches": "MICROBATCHES_BY_TASK",
    "training.learning_rate": "LEARNING_RATE",
    "training.mesh": "mesh",
    "training.microbatches": "MICROBATCHES",
    "training.optimizer": "OPTIMIZER",
    "training.schedule": "SCHEDULE",
    "training.seed": "RANDOM_SEED",
    "training.settings": "",
    "training.steps": "TRAIN_STEPS",
    "student.config": "",
}
"""What users call a fact; "" where its own parts are the names."""
_FREE = (
    "student.config",
    *(f"training.{name}" for name in ("batch_size", "learning_rate", "mesh", "microbatches")),
    *(f"training.{name}" for name in ("schedule", "settings", "steps")),
    *(f"training.{name}" for name in ("best_metrics", "early_stopping")),
)
# The checkpoint itself says these, a store's fingerprint what is in its folder.
_ELSEWHERE = (
    *("id", "versions", "resumed", "data.store", "data.shards", "data.leaks", "data.prompts"),
    *(f"student.{name}" for name in ("family", "parameters", "special_ids", "vocabulary")),
)
_BINDINGS = ("data.settings", "training.settings")
# Shown whole.
_WHOLES = ("data.by_task", "data.lengths", "data.rates", "training.best_metrics", "training.mesh")


@dataclass(frozen=True)
class Change:
    """A fact of a run that is to be another one.

    Attributes:
        path: of the fact, as `data.mixture`.
        old: its value, as JSON holds it; None for a default.
        new: likewise.
    """

    path: str
    old: Any
    new: Any

    @property
    def name(self) -> str:
        """The macro or binding that sets it, as far as there is one."""
        for path, name in _NAMES.items():
            if self.path == path or self.path.startswith(f"{path}."):
                return name or self.path.removeprefix(f"{path}.")
        return self.path

    @property
    def is_free(self) -> bool:
        """Whether the run stays what it is: it goes on exactly where it stopped, otherwise set."""
        return _within(self.path, _FREE)

    @property
    def is_of_stream(self) -> bool:
        """Whether the data come in another order, or others do."""
        return not self.is_free and (_within(self.path, ("data", "training.seed")))

    def __str__(self):
        if _within(self.path, ("data.fingerprint", "data.stores")):  # its digits say nothing
            return f"other chains in {self.name.rpartition(' ')[2]}"
        return f"{self.name} {_shown(self.old)}, not {_shown(self.new)}"


def changes(before: Mapping, now: Mapping) -> list[Change]:
    """What differs among the facts that both know; versions and paths of stores may differ."""
    return list(_changes(before, now, ""))


def check(found: list[Change], model_dir: str, *, accept: bool) -> None:
    """Raises UserError where a run would go on as another one, unless that is accepted.

    What may change freely is what only says how fast, how long and how far each step goes: steps,
    learning rate, schedule, what the optimizer is set to, batch size (the data go on by examples),
    micro-batches, mesh, dropout and precision.
    """
    fixed = [change for change in found if not change.is_free]
    if not fixed or accept:
        return
    raise UserError(
        f"a run at {model_dir} that was begun with {'; '.join(dict.fromkeys(map(str, fixed)))}",
        "the same run again",
        "set what it had, or another MODEL_DIR; --accept-changes goes on all the same, "
        "--overwrite deletes that run and begins anew",
    )


def rows_read(
    stored: int | None, before: Mapping, found: list[Change], step: int, batch_size: int
) -> int:
    """Rows of the data that a run which goes on has read; none where they are now others.

    Args:
        stored: what its checkpoint says; None where it does not.
        before: the facts of the run.
        found: what changes.
        step: at which it goes on.
        batch_size: from now on.
    """
    if any(change.is_of_stream for change in found):
        return 0
    if stored is None:
        return step * before.get("training", {}).get("batch_size", batch_size)
    return stored


def merged(before: Mapping, now: Mapping, found: list[Change], step: int) -> dict:
    """The facts of a run that goes on after a step with what changed, and a note of that."""
    if not before:
        return dict(now)
    if not found:
        return dict(before)
    note = {"after": step, "changes": {change.path: [change.old, change.new] for change in found}}
    kept = {name: before[name] for name in ("versions",) if name in before}
    return dict(now) | kept | {"resumed": [*before.get("resumed", []), note]}


def _changes(before, now, path) -> Iterator[Change]:
    for key in [*before, *(key for key in now if key not in before)]:
        here = f"{path}.{key}" if path else key
        if _within(here, _ELSEWHERE):
            continue
        if path in _BINDINGS:
            old, new = before.get(key), now.get(key)
        elif key in before and key in now:
            old, new = before[key], now[key]
        else:
            continue  # of another version of cot-flax
        if isinstance(old, Mapping) and isinstance(new, Mapping) and here not in _WHOLES:
            yield from _changes(old, new, here)
        elif old != new:
            yield Change(here, old, new)


def _within(path: str, places) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


def _shown(value: Any) -> str:
    if value is None:
        return "its default"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
        )
    return repr(value)
