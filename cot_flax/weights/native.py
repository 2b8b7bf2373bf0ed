"""Checkpoints of cot-flax: where they lie, what they belong to, and their parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.run_folder import CHECKPOINTS
from cot_flax.students.lora import Lora, is_adapter
from cot_flax.students.parameters import Index, Tensor, is_stacked, layer_names
from cot_flax.students.student import from_json
from cot_flax.weights.files import tensorstore as files
from cot_flax.weights.source import Source

_KERNEL = "kernel"


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint was trained with, beside its arrays.

    Attributes:
        model: its student, as `students.student.to_json` gives it.
        vocabulary: the fingerprint of its vocabulary; "" where unknown.
        batches: batches of the data that were consumed.
        shards: parts that the data were read in; the batches depend on it.
    """

    model: dict
    vocabulary: str
    batches: int
    shards: int = 1


def looks_like_one(path: str) -> bool:
    """Whether a folder is a model directory of cot-flax or a step of one."""
    return _latest(path) is not None


def find(path: str) -> Path | epath.Path:
    """Returns the folder of one step, from it or from a model directory (then the latest step).

    Raises:
        UserError: there is no checkpoint.
    """
    found = _latest(files.absolute(path))
    if found is None:
        raise UserError(
            f"no checkpoint at {path}",
            "a model directory of cot-flax, or one step of its checkpoints",
            "check INITIAL_CHECKPOINT_PATH or CHECKPOINT_PATH",
        )
    return path_at(found)


def read_metadata(path: str) -> Metadata:
    """Reads what the checkpoint at `path` (as in `find`) was trained with."""
    text = files.read(str(find(path)), "metadata/metadata")
    if text is None:
        raise UserError(f"no metadata in {path}", "a checkpoint of cot-flax", "train again")
    return Metadata(**json.loads(text))


def open_checkpoint(path: str) -> Source:
    """Opens a checkpoint at `path` (as in `find`): layers unrolled, adapters merged when read.

    Raises:
        UserError: there is none, or it is broken.
    """
    folder = find(path)
    metadata = read_metadata(path)
    student = from_json(metadata.model, str(folder))
    tensors = files.orbax(str(folder / "state"), "params.")
    if student.lora:
        tensors = _merged(tensors, student.lora)
    return Source(
        place=str(folder),
        student=student.for_decoding({})[0],
        tensors=_unrolled(tensors),
        vocabulary=metadata.vocabulary,
        folder=folder.parent.parent if folder.parent.name == CHECKPOINTS else None,
        stacks={name: tensor for name, tensor in tensors.items() if is_stacked(name)},
    )


def _latest(path: str) -> str | None:
    for place in (path, f"{path}/{CHECKPOINTS}"):
        names = files.entries(place)
        if "metadata" in names:
            return place
        steps = [int(name) for name in names if name.isdigit() and _is_whole(f"{place}/{name}")]
        if steps:
            return f"{place}/{max(steps)}"
    return None


def _is_whole(step: str) -> bool:
    """Whether orbax has finished it: in a bucket a mark says so, elsewhere its name."""
    return not is_bucket(step) or files.read(step, "commit_success.txt") is not None


def _merged(stored: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Kernels with their adapters added, all others as they are; layers may be scanned."""
    merged = {name: tensor for name, tensor in stored.items() if not is_adapter(name)}
    for name in merged:
        module = name.removesuffix(_KERNEL)
        if f"{module}lora_a" in stored:
            a, b = stored[f"{module}lora_a"], stored[f"{module}lora_b"]
            merged[name] = _with_adapter(stored[name], a, b, lora.scale)
    return merged


def _with_adapter(kernel: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale A B, of which only the rows and columns that are asked for are read."""

    def read(index: Index) -> np.ndarray:
        *layers, rows, columns = index
        every = slice(None)
        delta = a.read((*layers, rows, every)) @ b.read((*layers, every, columns))
        return kernel.read(index) + np.float32(scale) * delta

    return Tensor(kernel.shape, kernel.dtype, read)


def _unrolled(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each layer of a scanned stack by itself.

    Orbax writes a device's part of a whole stack as one chunk. The chunk that was read last is
    kept, so that reading its layers one after the other reads it once.
    """
    last: dict[tuple[str, str], np.ndarray] = {}

    def layer(name: str, i: int) -> Tensor:
        stack = stored[name]

        def read(index: Index) -> np.ndarray:
            key = (name, str(index))
            if key not in last:
                last.clear()
                last[key] = stack.read((slice(None), *index))
            return last[key][i].copy()  # a view would keep the whole stack alive

        return Tensor(stack.shape[1:], stack.dtype, read)

    tensors = {}
    for name, tensor in stored.items():
        if is_stacked(name):
            for i, unrolled in enumerate(layer_names(name, tensor.shape[0])):
                tensors[unrolled] = layer(name, i)
        else:
            tensors[name] = tensor
    return tensors
