"""safetensors files, read a slice and written a tensor at a time."""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor

NAME = "model.safetensors"
_DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; only its header is read now.

    Raises:
        UserError: the file is no safetensors file, is shorter or longer than its header says, or
            holds other numbers than floats.
    """
    return {name: _tensor(path, name, entry) for name, entry in _header(path).items()}


def write(path: Path, tensors: Mapping[str, Tensor], dtype: np.dtype) -> None:
    """Writes tensors in one dtype; one of them is in memory at a time.

    `safetensors.numpy.save_file` would need them all. The format: the header's length in 8 bytes,
    the header as JSON, padded with spaces to a multiple of 8, and the tensors end to end.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _size(tensor, dtype)
        entry = {"dtype": _CODES[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.whole(), dtype).view(np.uint8).data)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], dtype: np.dtype, limit: int) -> None:
    """Writes one file, or several of at most `limit` bytes each (or one tensor) and their index."""
    shards = _shards(tensors, dtype, limit)
    if len(shards) == 1:
        return write(folder / NAME, tensors, dtype)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write(folder / name, shard, dtype)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(_size(tensor, dtype) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{NAME}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Tensor], dtype: np.dtype, limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = _size(tensor, dtype)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def _size(tensor: Tensor, dtype: np.dtype) -> int:
    return math.prod(tensor.shape) * dtype.itemsize


def _header(path: Path) -> dict[str, dict]:
    whole = path.stat().st_size
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        text = file.read(start - 8) if start <= whole else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        expected = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if expected == whole:
            with safe_open(path, framework="numpy"):  # checks the rest
                return header
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{path} ({whole:,} bytes), which has no header of a safetensors file",
            "a whole file of safetensors",
            "download it again (with `git lfs pull` if it is a pointer of a few lines)",
        ) from error
    raise UserError(
        f"{path} of {whole:,} bytes",
        f"{expected:,} bytes, as its header says",
        "the file was cut short or written over: download it again",
    )


def _tensor(path: Path, name: str, entry: dict) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        raise UserError(
            f"{name} in {path} as {entry['dtype']}",
            f"one of {list(_DTYPES)}",
            "give the model before it was quantized",
        )
    shape = tuple(entry["shape"])
    return Tensor(shape, _DTYPES[entry["dtype"]], partial(_read, path, name, shape))


def _read(path: Path, name: str, shape: tuple[int, ...], index) -> np.ndarray:
    # A slice may end behind the tensor in NumPy, not in safetensors.
    part = tuple(slice(*one.indices(n)) for one, n in zip(index, shape, strict=True))
    # Opened for every reading: a mapping kept open would count every page once read as memory.
    with safe_open(path, framework="numpy") as file:
        return file.get_slice(name)[part]
