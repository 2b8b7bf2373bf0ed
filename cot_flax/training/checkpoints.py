"""Checkpoints through orbax: state, data position, and what the parameters belong to."""

import dataclasses
import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from cot_flax.errors import UserError
from cot_flax.model.t5 import T5Config
from cot_flax.training.state import TrainState

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint was trained with, beside its arrays.

    Attributes:
        model: the fields of its T5Config.
        vocabulary: the fingerprint of its vocabulary; "" where unknown.
        batches: batches of the data that were consumed.
    """

    model: dict
    vocabulary: str
    batches: int


class Checkpointer:
    """Saves a run's state under `model_dir/checkpoints`, in the background."""

    def __init__(self, model_dir: str, *, period: int, keep: int | None):
        # Orbax's default policy would also save the very first step.
        policies = ocp.checkpoint_managers
        due = [policies.FixedIntervalPolicy(period), policies.PreemptionCheckpointingPolicy()]
        self._manager = ocp.CheckpointManager(
            Path(model_dir).absolute() / FOLDER,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policies.AnySavePolicy(due), max_to_keep=keep
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def is_due(self, step: int) -> bool:
        return self._manager.should_save(step)

    def save(self, state: TrainState, metadata: Metadata, *, step: int):
        """Saves, due or not; a step that is already there stays as it is."""
        if step in self._manager.all_steps():
            return
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
            UserError: the checkpoint is of another model or vocabulary than `metadata`.
        """
        step = self.latest_step
        place = str(self._manager.directory / str(step))
        stored = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )
        stored = Metadata(**stored["metadata"])
        check_fits(stored, metadata, place)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored["state"], stored

    def close(self):
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def find(path: str) -> Path:
    """Returns the folder of one step, from it or from a model directory (then the latest step).

    Raises:
        UserError: there is no checkpoint.
    """
    root = Path(path).absolute()
    for folder in (root, root / FOLDER):
        if (folder / "metadata").is_dir():
            return folder
        steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        if steps:
            return folder / str(max(steps))
    raise UserError(
        f"no checkpoint at {path}",
        "a model directory of cot-flax, or one step of its checkpoints",
        "check INITIAL_CHECKPOINT_PATH or CHECKPOINT_PATH",
    )


def read_metadata(path: str) -> Metadata:
    """Reads what the checkpoint at `path` (as in `find`) was trained with."""
    files = list((find(path) / "metadata").glob("metadata"))
    if not files:
        raise UserError(f"no metadata in {path}", "a checkpoint of cot-flax", "train again")
    return Metadata(**json.loads(files[0].read_text()))


def load_params(path: str, params, metadata: Metadata):
    """Loads only the parameters of a checkpoint into the shapes and shardings of `params`.

    Raises:
        UserError: no checkpoint, or one of another model or vocabulary than `metadata`.
    """
    folder = find(path)
    check_fits(read_metadata(path), metadata, str(folder))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, params)
    with ocp.PyTreeCheckpointer() as checkpointer:
        arguments = ocp.args.PyTreeRestore(
            {"params": abstract},
            restore_args={"params": ocp.checkpoint_utils.construct_restore_args(abstract)},
            partial_restore=True,
        )
        return checkpointer.restore(folder / "state", args=arguments)["params"]


def model_config(metadata: Metadata) -> T5Config:
    """The model that a checkpoint belongs to."""
    activations = tuple(metadata.model["mlp_activations"])
    return T5Config(**metadata.model | {"mlp_activations": activations})


def check_fits(stored: Metadata, wanted: Metadata, place: str) -> None:
    """Raises UserError where a checkpoint is of another vocabulary or another shape."""
    if stored.vocabulary and wanted.vocabulary and stored.vocabulary != wanted.vocabulary:
        raise UserError(
            f"a checkpoint with vocabulary {stored.vocabulary} at {place}",
            f"the run's vocabulary {wanted.vocabulary}",
            "train with the tasks' vocabulary that the checkpoint was made with",
        )
    flexible = ("dropout_rate", "dtype", "remat")
    old, new = (json.loads(json.dumps(m.model)) for m in (stored, wanted))
    different = {k: (old.get(k), new[k]) for k in new if k not in flexible and old.get(k) != new[k]}
    if different:
        listed = ", ".join(f"{k} {a}, not {b}" for k, (a, b) in different.items())
        raise UserError(
            f"a checkpoint of another model at {place}: {listed}",
            "the run's T5Config",
            "include the checkpoint's gin/models file, or choose another checkpoint",
        )
