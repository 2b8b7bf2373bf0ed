"""A teacher of the student's vocabulary that runs beside it in every step, and is not trained.

Letters: D width of the student, E width of the teacher.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen.partitioning import AxisMetadata

from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.students.lora import PROJECTION
from cot_flax.students.student import Params, Student, build
from cot_flax.training import state
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, Source


@dataclass(frozen=True)
class Teacher:
    """Where the teacher of a white-box objective comes from.

    Attributes:
        checkpoint_path: anything that INITIAL_CHECKPOINT_PATH takes.
        dtype: of its parameters and of its products.
        access: what reading it may do.
    """

    checkpoint_path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    access: Access = Access()  # noqa: RUF009 (frozen)

    @property
    def source(self) -> Source:
        return open_source(self.checkpoint_path, self.access)


@dataclass(frozen=True)
class Projecting:
    """A student with a learned projection of its hidden states, [D, E], among its parameters.

    The projection is trained and saved with a run; as an adapter of LoRA it is no part of the
    model: nothing that loads or exports the student reads it.
    """

    student: Student
    width: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.student, name)

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        drawn = unfreeze(dict(self.student.init(key)))
        D = self.student.config.emb_dim
        kernel_DE = jax.random.normal(jax.random.fold_in(key, D), (D, self.width)) / D**0.5
        drawn["params"][PROJECTION] = {PROJECTION: kernel_DE}
        drawn["params_axes"][PROJECTION] = {f"{PROJECTION}_axes": AxisMetadata(("embed", "kv"))}
        return drawn


def beside(
    teacher: Teacher | None, objective: Objective, student: Student, vocabulary: str
) -> tuple[Source, Student] | None:
    """Opens the teacher that an objective needs; None where it needs none.

    Args:
        vocabulary: the fingerprint of the student's; "" where unknown.

    Returns:
        Its parameters, still unread, and the teacher as it runs: in its dtype, and scanned as the
        student is.

    Raises:
        UserError: there is none, or one of another vocabulary or layout.
    """
    if objective.white_box is None:
        return None
    if teacher is None:
        raise UserError(
            f"the objective {objective.white_box.loss} without a teacher",
            "a teacher beside the student",
            "set WHITE_BOX_TEACHER and include the file of objectives/ that has it",
        )
    source = teacher.source
    theirs = source.student
    if type(theirs.layout) is not type(student.layout):
        raise UserError(
            f"a teacher of family {theirs.family} at {source.place}",
            f"one that reads batches as the student's family {student.family} does",
            "set another WHITE_BOX_TEACHER, or MODEL",
        )
    ours = (vocabulary, student.config.vocab_size, student.special_ids)
    found = (source.vocabulary or vocabulary, theirs.config.vocab_size, theirs.special_ids)
    if (vocabulary and found != ours) or found[1:] != ours[1:]:
        raise UserError(
            f"a teacher with vocabulary {_shown(*found)} at {source.place}",
            f"the student's, {_shown(*ours)}",
            "take a teacher of the same vocabulary, or prepare a store of its chains and top-k",
        )
    settings = {"dtype": teacher.dtype, "remat": "none", "lora": None}
    settings["scan_layers"] = student.config.scan_layers
    names = {field.name for field in dataclasses.fields(theirs.config)}
    changes = {name: value for name, value in settings.items() if name in names}
    config = dataclasses.replace(theirs.config, **changes)
    return source, build(config, theirs.special_ids)


def trained(student: Student, objective: Objective, teacher: Student | None) -> Student:
    """The student with what a run trains beside it."""
    if teacher is None or objective.white_box is None or objective.white_box.reads_logits:
        return student
    return Projecting(student, teacher.config.emb_dim)  # type: ignore[return-value]


def abstract_params(teacher: Student, mesh, rules) -> Params:
    """The teacher's parameters as shapes in its dtype, sharded as a student's are."""
    dtype = jnp.dtype(teacher.config.dtype)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        state.abstract_params(teacher, mesh, rules),
    )


def _shown(vocabulary: str, rows: int, special_ids) -> str:
    ids = ", ".join(f"{name} {id}" for name, id in special_ids._asdict().items())
    return f"{vocabulary or 'unknown'} of {rows:,} rows ({ids})"
