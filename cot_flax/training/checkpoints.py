"""Checkpoints through orbax: state, data position, and what the parameters belong to."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import jax
import orbax.checkpoint as ocp

from cot_flax.errors import UserError
from cot_flax.files import path_at, write_whole
from cot_flax.run_folder import CHECKPOINTS
from cot_flax.students.student import from_json, to_json
from cot_flax.training import hosts
from cot_flax.training.selection import Selection
from cot_flax.training.state import TrainState
from cot_flax.weights.native import METADATA, Metadata
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, load


class Checkpointer:
    """Saves a run's state under `model_dir/checkpoints`, in the background.

    The newest `keep` steps stay (None: all), and those that `Metadata.selection` of the newest one
    calls the best.
    """

    def __init__(self, model_dir: str, *, period: int, keep: int | None):
        self._folder, self._period = path_at(model_dir) / CHECKPOINTS, period
        self._kept = _NewestAndBest(keep, set())

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made when it is needed: it makes the folder."""
        # Orbax's default policy would also save the very first step.
        policies = ocp.checkpoint_managers
        due = [policies.FixedIntervalPolicy(self._period), policies.PreemptionCheckpointingPolicy()]
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policies.AnySavePolicy(due), preservation_policy=self._kept
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step() if self._folder.is_dir() else None

    def is_due(self, step: int) -> bool:
        return self._manager.should_save(step)

    def save(self, state: TrainState, metadata: Metadata, *, step: int):
        """Saves, due or not; a step that is already there takes the new metadata alone."""
        self._kept.best = Selection.from_json(metadata.selection).steps
        if step in self._manager.all_steps():
            self._manager.wait_until_finished()
            if hosts.is_first():
                file = self._folder / str(step) / METADATA
                write_whole(file, json.dumps(dataclasses.asdict(metadata)))
            return
        # What is no longer kept is deleted when the new step is whole: a kill leaves one too many.
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                metadata=ocp.args.JsonSave(dataclasses.asdict(metadata)),
            ),
            force=True,
        )

    def restore(self, state: TrainState, metadata: Metadata) -> tuple[TrainState, Metadata]:
        """Restores the latest step into the shapes and shardings of `state`.

        Raises:
            UserError: the checkpoint is of another model or vocabulary than `metadata`, its data
                were read in other shards, or its optimizer kept another state.
        """
        step = self.latest_step
        place = str(self._manager.directory / str(step))
        stored = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )
        stored = Metadata.from_json(stored["metadata"])
        check_fits(stored, metadata, place)
        if stored.shards != metadata.shards:
            raise UserError(
                f"data in {metadata.shards} shards for the run at {place}",
                f"{stored.shards}, in which it has read the first {step:,} batches",
                f"set DATA_SHARDS={stored.shards}",
            )
        self._check_optimizer(step, state, place)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored["state"], stored

    def close(self):
        """Waits for what is being written."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_optimizer(self, step, state, place):
        saved = ocp.StandardCheckpointHandler().metadata(self._folder / str(step) / "state")
        stored = _shapes(saved.tree["opt_state"])
        wanted = _shapes(jax.tree.map(ocp.utils.to_shape_dtype_struct, state).opt_state)
        if stored != wanted:
            raise UserError(
                f"an optimizer's state of {len(stored)} arrays at {place}, of which "
                f"{len(stored.items() & wanted.items())} are the run's",
                f"the state of the run's OPTIMIZER, of {len(wanted)} arrays",
                "set the OPTIMIZER that it was begun with (Adafactor's before version 0.1.0 kept "
                "another state, which does not go on), or start anew from its parameters: another "
                f"MODEL_DIR with INITIAL_CHECKPOINT_PATH={place}",
            )


@dataclasses.dataclass
class _NewestAndBest:
    """Which checkpoints orbax preserves: the newest ones, and those of the steps in `best`."""

    newest: int | None
    best: set[int]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Asked with all checkpoints in the order of their steps, the one being saved included."""
        del context
        first = 0 if self.newest is None else len(checkpoints) - self.newest
        return [i >= first or found.step in self.best for i, found in enumerate(checkpoints)]


def _shapes(tree) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes by path, whatever the containers are: orbax gives tuples back as lists or dicts."""

    def name(key):
        return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


def save_vocabulary(model_dir: str, files: Mapping[str, bytes]) -> None:
    """Writes the vocabulary's files beside the checkpoints, so that an export finds them."""
    if files and hosts.is_first():
        for name, content in files.items():
            write_whole(path_at(model_dir) / name, content)


def load_initial(path: str, params, metadata: Metadata, access: Access):
    """Loads the parameters that a run starts from into the shapes and shardings of `params`.

    Args:
        path: anything that `weights.opening.open_source` takes.
        params: arrays or abstract ones; layers scanned or not. Adapters stay what they are.
        metadata: of the run.

    Raises:
        UserError: no checkpoint, or one of another model or vocabulary than `metadata`.
    """
    source = open_source(path, access)
    stored = Metadata(to_json(source.student), source.vocabulary, 0)
    check_fits(stored, metadata, source.place, flexible=("scan_layers", "lora"))
    return load(source, params)


def check_fits(
    stored: Metadata, wanted: Metadata, place: str, flexible: Sequence[str] = ()
) -> None:
    """Raises UserError where a checkpoint is of another vocabulary or another shape.

    Args:
        flexible: fields of the config that may differ, beside those that the family names.
    """
    if stored.vocabulary and wanted.vocabulary and stored.vocabulary != wanted.vocabulary:
        raise UserError(
            f"a checkpoint with vocabulary {stored.vocabulary} at {place}",
            f"the run's vocabulary {wanted.vocabulary}",
            "train with the tasks' vocabulary that the checkpoint was made with",
        )
    students = [from_json(metadata.model, place) for metadata in (stored, wanted)]
    allowed = {*flexible, *students[1].flexible}
    old, new = map(to_json, students)
    different = {k: (old.get(k), new[k]) for k in new if k not in allowed and old.get(k) != new[k]}
    if different:
        listed = ", ".join(f"{k} {a}, not {b}" for k, (a, b) in different.items())
        raise UserError(
            f"a checkpoint of another model at {place}: {listed}",
            "the run's config",
            "include the checkpoint's gin/models file, or choose another checkpoint",
        )
