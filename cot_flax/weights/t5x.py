"""T5X's checkpoints, without T5X: its legacy format (the public ones) and its orbax format."""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from cot_flax.errors import UserError
from cot_flax.files import new_folder, size_of
from cot_flax.students.parameters import Shapes, Tensor, dotted, is_stacked, nest
from cot_flax.students.student import Student, families
from cot_flax.weights.files import tensorstore as files
from cot_flax.weights.files.tensorstore import Listing
from cot_flax.weights.native import unrolled
from cot_flax.weights.source import Source, check_tensors, reading_order

INDEX = "checkpoint"
_STATE = "state/manifest.ocdbt"
_VERSION = 3  # of the format; from 3 on bfloat16 is stored as such
_FACTORED_FROM = 128  # Adafactor factors a matrix with at least that many rows and columns
_STEP = re.compile(r"checkpoint_(\d+)")


def find_legacy(found: Listing) -> str | None:
    """The folder of the step that is listed, or of the last `checkpoint_<N>`; None without index.

    Args:
        found: of a step or of a model directory.
    """
    return _find(found, INDEX)


def find_orbax(found: Listing) -> str | None:
    """The same for T5X's orbax format."""
    return _find(found, _STATE)


def open_legacy(folder: str) -> Source:
    """Opens a checkpoint of a msgpack index and one zarr array a parameter.

    Args:
        folder: of the step, local or `gs://bucket/path`.

    Raises:
        UserError: it cannot be reached, is broken, or is of another kind of model.
    """
    target = _target(folder)
    leaves = jax.tree_util.tree_leaves_with_path(target, is_leaf=_is_spec)
    try:
        tensors = {dotted(path): _tensor(folder, leaf) for path, leaf in leaves}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _broken(folder) from error
    return _source(folder, tensors)


def open_orbax(folder: str) -> Source:
    """Opens a checkpoint that T5X wrote through orbax; arguments and errors as `open_legacy`."""
    return _source(folder, files.orbax(f"{folder}/state", "target."))


def write(source: Source, out: Path, *, dtype, step: int = 0) -> int:
    """Writes `out/checkpoint_<step>` in the legacy format, which every T5X restores.

    T5X restores a checkpoint to train on only with its optimizer's state. So Adafactor's, as it is
    before the first step, is written along; inference leaves it.

    Args:
        source: where the parameters lie; one of them is in memory at a time.
        out: a folder that does not exist, or an empty one.
        dtype: of the parameters, float32 or bfloat16.
        step: the optimizer step from which T5X counts on.

    Returns:
        The bytes of the files.

    Raises:
        UserError: `out` holds something, the source cannot be read, or T5X has no such model, as
            of umT5's position bias in every layer. Nothing is left at `out`.
    """
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    check_tensors(found, source.student.parameter_shapes(), source.place)
    source.student.from_t5x(found, source.place)  # what nobody could read there is not written
    with new_folder(out) as growing:
        folder = growing / f"checkpoint_{step}"
        folder.mkdir()
        index = _write_arrays(source, folder, jnp.dtype(dtype))
        slots = {name: _fresh_slots(tensor.shape) for name, tensor in source.tensors.items()}
        state = {"step": np.int32(step), "param_states": nest(slots)}
        content = {"version": _VERSION, "optimizer": {"target": nest(index), "state": state}}
        (folder / INDEX).write_bytes(serialization.msgpack_serialize(content))
        return size_of(growing)


def _write_arrays(source: Source, folder: Path, dtype: np.dtype) -> dict[str, dict]:
    """Writes all parameters; returns what the index says of each."""
    return {
        name: files.write_zarr(
            folder, f"target.{name}", source.tensors[name].whole().astype(dtype, copy=False)
        )
        for name in reading_order(source.tensors)
    }


def _fresh_slots(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The state that T5X's Adafactor has of a parameter before its first step."""
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    slots = dict.fromkeys(("m", "v", "v_row", "v_col"), zeros(1))
    if len(shape) == 2 and min(shape) >= _FACTORED_FROM:
        return slots | {"v_row": zeros(min(shape)), "v_col": zeros(max(shape))}
    return slots | {"v": zeros(*shape)}


def _find(found: Listing, file: str) -> str | None:
    steps = [int(match[1]) for match in map(_STEP.fullmatch, found.names) if match]
    step = f"checkpoint_{max(steps)}" if steps else ""
    return found.path(step) if (f"{step}/{file}" if step else file) in found.names else None


def _source(folder: str, stored: Mapping[str, Tensor]) -> Source:
    """Layers unrolled: T5X stores those of our scanned student as they are, a stack in one."""
    tensors = unrolled(stored)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stacks = {name: tensor for name, tensor in stored.items() if is_stacked(name)}
    return Source(folder, _student(shapes, folder), tensors, stacks=stacks)


def _student(shapes: Shapes, place: str) -> Student:
    """The student of the family that T5X has with such parameters."""
    found = (family.from_t5x(shapes, place) for family in families().values())
    return next(student for student in found if student is not None)


def _target(folder: str) -> dict:
    raw = files.read(folder, INDEX)
    if raw is None:
        raise UserError(
            f"no T5X checkpoint at {folder}",
            "a folder with the file `checkpoint`",
            "check the path",
        )
    if raw.startswith(b"model_checkpoint_path"):
        raise UserError(
            f"a TensorFlow checkpoint at {folder}",
            "one of T5X",
            "take the same model from gs://t5-data/pretrained_models/t5x",
        )
    try:
        return serialization.msgpack_restore(raw)["optimizer"]["target"]
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(folder) from error


def _is_spec(node) -> bool:
    return isinstance(node, dict) and "kvstore" in node


def _tensor(folder: str, leaf) -> Tensor:
    """A leaf of the index: a small array, or where a larger one lies."""
    if not _is_spec(leaf):
        array = _bfloat16(np.asarray(leaf))
        return Tensor(array.shape, array.dtype, lambda index: array[index])
    # Whatever driver and folder it was written with, the array lies beside the index.
    path = leaf["kvstore"].get("path") or leaf["path"]
    name = path.rstrip("/").rpartition("/")[2]
    dtype = jnp.dtype(leaf.get("dtype") or leaf["metadata"]["dtype"])
    stored = files.zarr(folder, name, tuple(leaf["metadata"]["shape"]), dtype)
    return Tensor(
        stored.shape,
        _bfloat16(np.empty(0, dtype)).dtype,
        lambda index: _bfloat16(stored.read(index)),
    )


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """Version 2 of the format stored bfloat16 as uint16."""
    return array.view(jnp.bfloat16) if array.dtype == np.uint16 else array


def _broken(folder: str) -> UserError:
    return UserError(
        f"a broken index {folder}/{INDEX}",
        "the msgpack index of a T5X checkpoint",
        "copy the checkpoint again",
    )
