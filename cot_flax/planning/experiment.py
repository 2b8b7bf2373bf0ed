"""What a plan needs to know of a run; the trainer's own settings, without its data."""

import dataclasses
import functools

import jax

from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.planning.targets import Target
from cot_flax.students.student import build
from cot_flax.students.t5 import T5Config
from cot_flax.training import sharding, state
from cot_flax.training.optimizers import Optimizer

AXES = ("data", "model")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run.

    Attributes:
        batch_size: rows of a batch, over all chips.
        inputs, targets: TASK_FEATURE_LENGTHS, in tokens.
        packed: whether a row holds several examples.
        top_k: entries of a teacher's row.
        steps: TRAIN_STEPS.
    """

    model: T5Config
    objective: Objective
    optimizer: Optimizer
    batch_size: int
    inputs: int
    targets: int
    steps: int
    mesh: sharding.MeshConfig = sharding.MeshConfig()  # noqa: RUF009 (frozen)
    microbatches: int = 1
    packed: bool = True
    top_k: int = 5

    @property
    def tokens(self) -> int:
        """Positions of a batch on both sides, padding included."""
        return self.batch_size * (self.inputs + self.targets)

    def features(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and types of a batch, as data/packing.py lays it out."""
        encoder, decoder = (self.batch_size, self.inputs), (self.batch_size, self.targets)
        found = {
            "encoder_input_tokens": (encoder, "int32"),
            "decoder_input_tokens": (decoder, "int32"),
            "decoder_target_tokens": (decoder, "int32"),
            "decoder_loss_weights": (decoder, "float32"),
        }
        if self.packed:
            for name in ("segment_ids", "positions"):
                found |= {f"encoder_{name}": (encoder, "int32")}
                found |= {f"decoder_{name}": (decoder, "int32")}
        if self.objective.uses_teacher:
            rows = (*decoder, self.top_k)
            found |= {"teacher_top_ids": (rows, "int32"), "teacher_top_logprobs": (rows, "float32")}
        return found


def resolve_mesh(experiment: Experiment, target: Target) -> Experiment:
    """The experiment with its mesh spelt out: `data=0` becomes what the target leaves for it.

    Raises:
        UserError: the target has fewer chips than the mesh, or the mesh does not divide the batch.
    """
    mesh = experiment.mesh
    data = mesh.data or target.chips // mesh.model
    if data == 0 or data * mesh.model > target.chips:
        raise UserError(
            f"a mesh of data={data} x model={mesh.model}",
            f"at most the {target.chips} chips of {target.name}",
            "lower MESH_DATA or MESH_MODEL, or take a larger target",
        )
    found = dataclasses.replace(experiment, mesh=dataclasses.replace(mesh, data=data))
    sharding.check_batch_size(found.batch_size, found.microbatches, abstract_mesh(found))
    return found


def abstract_mesh(experiment: Experiment):
    """The mesh without its devices."""
    sizes = experiment.mesh.data, experiment.mesh.model
    return jax.sharding.AbstractMesh(sizes, AXES)


def abstract_state(experiment: Experiment, mesh) -> state.TrainState:
    """The trainer's state as shapes, types and places on a mesh, which may be abstract."""
    model = dataclasses.replace(experiment.model, remat="none")  # which changes no shape
    return _abstract_state(model, experiment.optimizer, mesh, experiment.mesh)


@functools.lru_cache(maxsize=64)
def _abstract_state(model, optimizer, mesh, mesh_config):
    return state.abstract(build(model), optimizer, mesh, mesh_config.rules())
