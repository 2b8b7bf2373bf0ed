"""Files and arrays through tensorstore: the same for local folders and `gs://` buckets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tensorstore as ts

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.run_folder import CHECKPOINTS
from cot_flax.students.parameters import Index, Tensor

_BUCKET = "gs://"
_PATIENCE = 60.0  # seconds for a file or a list of names
# By default tensorstore asks an unreachable bucket again for a quarter of an hour.
_FIRST = ts.Context(
    {"gcs_request_retries": {"max_retries": 3, "initial_delay": "250ms", "max_delay": "2s"}}
)
_RETRIES = {"gcs_request_retries": {"max_retries": 8, "initial_delay": "1s", "max_delay": "16s"}}
_THEN = ts.Context(_RETRIES)
# Devices that split an array ask for parts of the same chunks: these are unpacked once.
_PARTS = ts.Context(_RETRIES | {"cache_pool": {"total_bytes_limit": 2**28}})
_CHUNK = 64 * 2**20  # bytes, at most
_HOLDS_STEPS = re.compile(rf"{CHECKPOINTS}|(checkpoint_)?\d+|state")
_DEPTH = 4  # parts of a name in a listing: checkpoints, a step, state, a file
_ZARR = "/.zarray"  # ends the name of the file that tells an array's shape
_NOISE = re.compile(r"\s*\[(source locations|tensorstore_spec)=.*", re.DOTALL)


@dataclass(frozen=True)
class Listing:
    """What lay in a folder when it was listed.

    Attributes:
        place: the folder, absolute, on this machine or in a bucket.
        names: of its files and folders, and of those in its steps as `checkpoints/3/metadata`.
    """

    place: str
    names: frozenset[str]

    def path(self, name: str) -> str:
        """The path of one of the names; of "" the place."""
        return f"{self.place}/{name}" if name else self.place


def read(place: str, name: str) -> bytes | None:
    """Reads one file of a folder; None where there is none.

    Args:
        place: a local folder or `gs://bucket/path`.

    Raises:
        UserError: the place cannot be reached or read.
    """
    with explained(place):
        store = ts.KvStore.open(_store(place), context=_FIRST).result(_PATIENCE)
        found = store.read(name).result(_PATIENCE)
    return found.value if found.state == "value" else None


def listing(place: str) -> Listing:
    """Lists a folder that may hold checkpoints, and of those within it what tells their kind.

    A bucket is asked once for all names; on this machine no folder of a tensor is looked into.

    Args:
        place: a local folder or `gs://bucket/path`; one that is not there holds nothing.

    Raises:
        UserError: the place cannot be reached.
    """
    place = absolute(place)
    if not is_bucket(place):
        return Listing(place, frozenset(_local_names(Path(place))))
    with explained(place):
        keys = [key.split("/")[:_DEPTH] for key in _keys(_store(place), "")]
    return Listing(
        place, frozenset("/".join(key[:n]) for key in keys for n in range(1, len(key) + 1))
    )


def _local_names(folder: Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir() if folder.is_dir() else ():
        yield prefix + path.name
        if _HOLDS_STEPS.fullmatch(path.name):
            yield from _local_names(path, f"{prefix}{path.name}/")


def zarr(place: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """The zarr array in the folder `name` of `place`, which is opened when it is first read.

    Raises (when read):
        UserError: it is not there, is of another shape, or parts of it are missing or broken.
    """

    @cache
    def opened(context: ts.Context) -> ts.TensorStore:
        with explained(place):
            array = _open(_below(_store(place), name), context).result()
        if array.shape != shape:
            raise UserError(
                f"{place}/{name} of shape {list(array.shape)}",
                f"{list(shape)}, as the checkpoint's index says",
                "copy the checkpoint again",
            )
        return array

    def part(index: Index) -> np.ndarray:
        whole = all(s.indices(n) == (0, n, 1) for s, n in zip(index, shape, strict=True))
        return _part(opened(_THEN if whole else _PARTS), index, place)

    return Tensor(shape, dtype, part)


def orbax(place: str, prefix: str) -> dict[str, Tensor]:
    """The arrays that orbax wrote to a folder (zarr in OCDBT), by their names after `prefix`.

    Raises:
        UserError: the folder cannot be read.
    """
    store = {"driver": "ocdbt", "base": _store(place)}
    with explained(place):
        found = (key.partition(_ZARR) for key in _keys(store, prefix))
        opening = {name: _open(_below(store, name)) for name, zarr, _ in found if zarr}
        arrays = {name: future.result() for name, future in opening.items()}

    def tensor(array) -> Tensor:
        read = lambda index: _part(array, index, place)  # noqa: E731
        return Tensor(array.shape, array.dtype.numpy_dtype, read)

    return {name.removeprefix(prefix): tensor(array) for name, array in arrays.items()}


def write_zarr(folder: Path, name: str, array: np.ndarray) -> dict:
    """Writes an array to `folder/name`; returns its spec, with a path that begins at `folder`."""
    # Float parameters hardly compress. A chunk is a part of the rows, so that hosts read theirs.
    row = max(1, array[:1].nbytes)
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": {
            "shape": list(array.shape),
            "chunks": [min(len(array), max(1, _CHUNK // row)), *array.shape[1:]],
            "compressor": None,
        },
    }
    stored = spec | {"kvstore": _below(_store(str(folder)), name)}
    ts.open(stored, create=True, context=_THEN).result().write(array).result()
    return spec


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turns what tensorstore raises into a UserError."""
    try:
        yield
    except (ValueError, TimeoutError) as error:
        cause = _NOISE.sub("", str(error)) or "no answer"
        remedy = "copy the checkpoint again"
        if is_bucket(place):
            remedy = (
                "check the network and your permissions, or copy it where there is a network with"
                f" `gcloud storage cp -r {place} .` and give the local folder"
            )
        raise UserError(
            f"{place}, which cannot be read ({cause})", "a complete checkpoint", remedy
        ) from error


def absolute(place: str) -> str:
    """The same place, whatever folder one works in later."""
    return place.rstrip("/") if is_bucket(place) else str(path_at(place))


def _store(place: str) -> dict:
    if is_bucket(place):
        bucket, _, path = place.removeprefix(_BUCKET).rstrip("/").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{path}/" if path else ""}
    return {"driver": "file", "path": f"{path_at(place)}/"}


def _below(store: dict, name: str) -> dict:
    return store | {"path": f"{store.get('path', '')}{name}/"}


def _keys(store: dict, prefix: str) -> list[str]:
    after = prefix and prefix[:-1] + chr(ord(prefix[-1]) + 1)
    span = ts.KvStore.KeyRange(inclusive_min=prefix, exclusive_max=after)
    opened = ts.KvStore.open(store, context=_FIRST).result(_PATIENCE)
    return [key.decode() for key in opened.list(span).result(_PATIENCE)]


def _open(store: dict, context: ts.Context = _THEN) -> ts.Future:
    spec = {
        "driver": "zarr",
        "kvstore": store,
        # By default chunks that are not there (an interrupted copy) would be read as zeros.
        "fill_missing_data_reads": False,
        "recheck_cached_data": "open",
    }
    return ts.open(spec, open=True, read=True, context=context)


def _part(array: ts.TensorStore, index: Index, place: str) -> np.ndarray:
    # Unlike NumPy, tensorstore refuses slices that go over the end.
    inside = tuple(slice(*s.indices(n)) for s, n in zip(index, array.shape, strict=True))
    with explained(place):
        return np.asarray(array[inside].read().result())
