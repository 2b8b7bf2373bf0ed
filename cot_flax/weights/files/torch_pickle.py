"""PyTorch's `.bin` files without PyTorch, by an unpickler that makes tensors and nothing else."""

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "HalfStorage": np.dtype(np.float16),
    "DoubleStorage": np.dtype(np.float64),
}
_OLD_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6 wrote no zip
_CONVERT = "convert it with PyTorch: safetensors.torch.save_file(torch.load(...), ...)"
_DAMAGE = (  # what a zip file or a pickle with wrong bytes in it raises
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class _Storage:
    """Numbers of one dtype that lie at an offset of a file."""

    path: Path
    offset: int
    dtype: np.dtype
    count: int


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name; only the pickle in it is read now.

    Raises:
        UserError: an older format, a damaged file, or a pickle that asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            state = _Unpickler(path, archive).load()
    except _DAMAGE as error:
        raise _unreadable(path) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path}, which is no state dict", "tensors by name", _CONVERT)
    return dict(state)


class _Unpickler(pickle.Unpickler):
    """Knows the four things that a state dict is made of."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        (name,) = [name for name in archive.namelist() if re.fullmatch("[^/]+/data.pkl", name)]
        super().__init__(io.BytesIO(archive.read(name)))
        self._path, self._archive, self._root = path, archive, name.removesuffix("data.pkl")
        if f"{self._root}byteorder" in archive.namelist():
            _check_little(path, archive.read(f"{self._root}byteorder"))

    def find_class(self, module: str, name: str):
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        } | {("torch", storage): storage for storage in _DTYPES}
        if (module, name) not in known:
            raise UserError(
                f"{self._path}, whose pickle asks for {module}.{name}",
                f"tensors of {list(_DTYPES)} only",
                f"it may be unsafe; if you trust it, {_CONVERT}",
            )
        return known[module, name]

    def persistent_load(self, pid):
        _, storage, key, _, count = pid
        dtype = _DTYPES[storage]
        info = self._archive.getinfo(f"{self._root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key}")
        return _Storage(self._path, self._data_offset(info), dtype, count)

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """A local header has 30 bytes, the last four of them the lengths of what comes behind."""
        with open(self._path, "rb") as file:
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return info.header_offset + 30 + name + extra

    def _tensor(self, storage: _Storage, offset: int, shape, strides, *_) -> Tensor:
        end = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        numbers = (offset, *shape, *strides)
        if min(numbers) < 0 or (math.prod(shape) and end > storage.count):
            raise ValueError(f"a tensor of shape {shape} behind the end of its storage")
        return Tensor(tuple(shape), storage.dtype, partial(_read, storage, offset, shape, strides))


def _read(storage: _Storage, offset: int, shape, strides, index) -> np.ndarray:
    flat = np.memmap(storage.path, storage.dtype, "r", storage.offset, (storage.count,))
    steps = [stride * storage.dtype.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
    return np.array(view[index])


def _check_little(path: Path, order: bytes) -> None:
    if order != b"little":
        raise UserError(f"{path} in {order.decode()}-endian order", "little-endian", _CONVERT)


def _unreadable(path: Path) -> UserError:
    with open(path, "rb") as file:
        old = file.read(len(_OLD_MAGIC)) == _OLD_MAGIC
    if old:
        return UserError(f"{path} in the format of PyTorch before 1.6", "its zip format", _CONVERT)
    return UserError(
        f"{path} ({path.stat().st_size:,} bytes), which is no whole file of PyTorch",
        "a zip file with data.pkl and the storages of its tensors",
        "download it again",
    )
