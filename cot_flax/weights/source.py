"""What every format of parameters offers, and how parameters get from there to their devices."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from cot_flax.errors import UserError
from cot_flax.students.lora import is_adapter
from cot_flax.students.parameters import (
    Shapes,
    Tensor,
    flatten,
    is_stacked,
    layer_names,
    nest,
    unrolled_shapes,
)
from cot_flax.students.student import Student

_LISTED = 3


@dataclass(frozen=True)
class Access:
    """What reading a checkpoint may do.

    Attributes:
        allow_pickle: read PyTorch's `.bin` files, by a reader that makes tensors and nothing else.
        local_files_only: take what the Hugging Face hub holds from its cache; ask no network.
    """

    allow_pickle: bool = False
    local_files_only: bool = False


@dataclass(frozen=True)
class Source:
    """The parameters of one student, wherever they lie. Nothing is read before it is asked for.

    Attributes:
        place: where that is, for messages.
        student: the model; its layers are not scanned and it has no adapters.
        tensors: by our names, such as `decoder.layers_0.mlp.wo.kernel`.
        vocabulary: the fingerprint of its vocabulary; "" where unknown.
        stacks: those that lie in the file with all layers in one, by their scanned names, such as
            `decoder.layers.mlp.wo.kernel`; they stand in `tensors` too, a layer each.
        folder: the model directory of cot-flax or the folder of Hugging Face's files that it is
            part of; None where there is none on this machine.
    """

    place: str
    student: Student
    tensors: Mapping[str, Tensor]
    vocabulary: str = ""
    folder: Path | None = None
    stacks: Mapping[str, Tensor] = field(default_factory=dict)


def check_tensors(found: Shapes, expected: Shapes, place: str) -> None:
    """Raises UserError, with the first few of each kind, where parameters differ from a model's."""
    both = [name for name in expected if name in found]
    problems = {
        "missing": [
            f"{name} {list(shape)}" for name, shape in expected.items() if name not in found
        ],
        "not of this model": [
            f"{name} {list(shape)}" for name, shape in found.items() if name not in expected
        ],
        "of another shape": [
            f"{name} {list(found[name])}, not {list(expected[name])}"
            for name in both
            if tuple(found[name]) != tuple(expected[name])
        ],
    }
    listed = [f"{len(some)} {kind} ({_first(some)})" for kind, some in problems.items() if some]
    if listed:
        raise UserError(
            f"parameters at {place} that do not fit the model: {'; '.join(listed)}",
            f"the {len(expected)} parameters of its config",
            "copy the checkpoint again, parameters and config from one place",
        )


def load(source: Source, params):
    """Reads parameters into the shapes, dtypes and shardings of `params`.

    Every device's part is read by itself: beside the model, at most one tensor is in memory.

    Args:
        params: a tree of arrays or `ShapeDtypeStruct`s, layers scanned or not. Adapters stay what
            they are.

    Raises:
        UserError: parameters that are missing, unknown or of another shape.
    """
    leaves = flatten(params)
    wanted = {name: leaf for name, leaf in leaves.items() if not is_adapter(name)}
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    check_tensors(found, unrolled_shapes(wanted), source.place)
    # The largest first, while little else is in memory.
    order = sorted(reading_order(wanted), key=lambda name: -math.prod(wanted[name].shape))
    loaded = {n: _shard(_tensor(source, n, wanted[n].shape), wanted[n]) for n in order}
    return nest(leaves | loaded)


def reading_order(names: Iterable[str]) -> list[str]:
    """The layers of one parameter in a row: of a scanned stack, a file holds them as one chunk."""
    return sorted(names, key=lambda name: re.sub(r"layers_\d+", "layers", name))


def _tensor(source: Source, name: str, shape) -> Tensor:
    if not is_stacked(name):
        return source.tensors[name]
    if name in source.stacks:
        return source.stacks[name]
    layers = [source.tensors[layer] for layer in layer_names(name, shape[0])]

    def read(index):
        return np.stack([layer.read(index[1:]) for layer in layers[index[0]]])

    return Tensor(shape, layers[0].dtype, read)


def _shard(tensor: Tensor, leaf) -> jax.Array:
    parts: dict = {}  # devices that hold the same part share one reading of it

    def read(index):
        key = str(index)
        if key not in parts:
            parts[key] = np.ascontiguousarray(tensor.read(index), leaf.dtype)
        return parts[key]

    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, read)


def _first(listed: list[str]) -> str:
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")
