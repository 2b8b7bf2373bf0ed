"""What a plan needs to know of a run; the trainer's own settings, without its data."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.planning.targets import Target
from cot_flax.students.layouts import Shapes
from cot_flax.students.products import Product
from cot_flax.students.student import Student, build
from cot_flax.training import sharding, state, white_box
from cot_flax.training.optimizers import Optimizer

AXES = ("data", "model")
REMATS = ("none", "minimal", "full")
TOP_K = 5
"""Of a teacher's row in the store that `cot-flax prepare` makes by default."""
TRAINER_ARGUMENTS = (
    *("model", "objective", "optimizer", "total_steps", "mesh", "microbatches", "teacher"),
)
DATA_ARGUMENTS = ("feature_lengths", "batch_size", "pack")
"""What `of_run` reads of the arguments of `loop.train` and of its data."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run.

    Attributes:
        model: the config of a student.
        batch_size: rows of a batch, over all chips.
        inputs, targets: TASK_FEATURE_LENGTHS, in tokens.
        packed: whether a row holds several examples.
        top_k: entries of a teacher's row.
        steps: TRAIN_STEPS.
        teacher: of a white-box objective; of its checkpoint the shapes alone are read.
    """

    model: Any
    objective: Objective
    optimizer: Optimizer
    batch_size: int
    inputs: int
    targets: int
    steps: int
    mesh: sharding.MeshConfig = sharding.MeshConfig()  # noqa: RUF009 (frozen)
    microbatches: int = 1
    packed: bool = True
    top_k: int = TOP_K
    teacher: white_box.Teacher | None = None

    @functools.cached_property
    def student(self) -> Student:
        """The model, with what is trained beside it."""
        return white_box.trained(build(self.model), self.objective, self.their_student)

    @functools.cached_property
    def their_student(self) -> Student | None:
        """The teacher that runs beside the student, if one does."""
        found = white_box.beside(self.teacher, self.objective, build(self.model), "")
        return found and found[1]

    @property
    def lengths(self) -> dict[str, int]:
        return {"inputs": self.inputs, "targets": self.targets}

    @property
    def tokens(self) -> int:
        """Positions of a batch on all sides, padding included."""
        return self.batch_size * sum(self.student.layout.capacity(self.lengths))

    @property
    def batch_shapes(self) -> Shapes:
        """Shapes and types of a batch."""
        top_k = self.top_k if self.objective.uses_teacher else 0
        layout = self.student.layout
        return layout.shapes(self.batch_size, self.lengths, top_k=top_k, packed=self.packed)

    @property
    def rows(self) -> int:
        """Of one micro-batch on one chip."""
        return self.batch_size // self.mesh.data // self.microbatches

    def products(self, platform: str) -> list[Product]:
        """Of a forward pass over the whole batch."""
        return self.student.products(self.batch_size, self.inputs, self.targets, platform)

    def chip_products(self, platform: str) -> list[Product]:
        """Of a forward pass over the rows that a chip has in work, the model axis unsplit."""
        return self.student.products(self.rows, self.inputs, self.targets, platform)

    @property
    def split_sizes(self) -> set[int]:
        """What a mesh's model axis splits, and so has to divide: heads, and sides of weights."""
        matrices = [p for p in self.products("cpu") if p.kind != "attention"]
        sides = {p.inner if p.split == "inner" else p.columns for p in matrices}
        return sides | {self.student.cache_shape.heads}

    @property
    def remats(self) -> tuple[str, ...]:
        """The values that REMAT can take; one where the student's family fixes it."""
        varies = any(field.name == "remat" for field in dataclasses.fields(self.model))
        return REMATS if varies else (self.model.remat,)

    def with_remat(self, remat: str) -> "Experiment":
        if remat == self.model.remat:
            return self
        return dataclasses.replace(self, model=dataclasses.replace(self.model, remat=remat))


def of_run(trainer: Mapping[str, Any], data: Mapping[str, Any], top_k: int = TOP_K) -> Experiment:
    """The experiment that a trainer's arguments make.

    Args:
        trainer: those of TRAINER_ARGUMENTS that `loop.train` is given.
        data: those of DATA_ARGUMENTS that its data are given.
        top_k: of a teacher's row in the store.

    Raises:
        UserError: there is no model, or there are no lengths.
    """
    if "model" not in trainer or "feature_lengths" not in data:
        raise UserError(
            "gin files without loop.train", "a training experiment", "correct --gin_file"
        )
    settings, lengths = dict(trainer), data["feature_lengths"]
    return Experiment(
        steps=settings.pop("total_steps"),
        batch_size=data["batch_size"],
        packed=data.get("pack", False),
        top_k=top_k,
        inputs=lengths["inputs"],
        targets=lengths["targets"],
        **settings,
    )


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


def abstract_teacher(experiment: Experiment, mesh) -> list:
    """The parameters of the teacher that runs beside the student, as shapes; none without one."""
    if experiment.their_student is None:
        return []
    return [white_box.abstract_params(experiment.their_student, mesh, experiment.mesh.rules())]


def abstract_state(experiment: Experiment, mesh) -> state.TrainState:
    """The trainer's state as shapes, types and shardings on a mesh, which may be abstract."""
    plain = experiment.with_remat(experiment.remats[0])  # which changes no shape
    return _abstract_state(plain.student, plain.optimizer, mesh, plain.mesh)


@functools.lru_cache(maxsize=64)
def _abstract_state(student, optimizer, mesh, mesh_config):
    return state.abstract(student, optimizer, mesh, mesh_config.rules())
