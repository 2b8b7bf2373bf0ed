"""How the mesh of `jax.set_mesh` splits logical axes, by flax's axis rules."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
from flax.linen import partitioning
from flax.linen.partitioning import with_sharding_constraint


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes of several devices that split the logical axis `name`; () without a mesh."""
    (axis,) = partitioning.logical_to_mesh_axes((name,)) or (None,)
    mesh = jax.sharding.get_abstract_mesh().shape
    return tuple(a for a in (axis if isinstance(axis, tuple) else (axis,)) if mesh.get(a, 1) > 1)


def axis_size(*axes: str) -> int:
    """In how many parts these mesh axes split."""
    mesh = jax.sharding.get_abstract_mesh().shape
    return math.prod(mesh[axis] for axis in axes)


@jax.jit
def all_gather(array: jax.Array) -> jax.Array:
    """The array whole on every device of the mesh, so that every process can read it."""
    return with_sharding_constraint(array, (None,) * array.ndim)


class MeshRules(NamedTuple):
    """The devices, and which of their axes split a logical one."""

    mesh: jax.sharding.Mesh
    rules: Sequence[tuple[str, str | tuple[str, ...] | None]]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it, programs see the mesh and the rules."""
        with jax.set_mesh(self.mesh), partitioning.axis_rules(self.rules):
            yield
