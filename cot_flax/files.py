"""Paths on this machine and in buckets by one interface; what is there whole or not at all."""

import bz2
import errno
import filecmp
import functools
import gzip
import io
import lzma
import os
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from etils import epath

from cot_flax.errors import UserError

_BUCKET = "gs://"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_PATIENCE = 10.0  # seconds

CUT_OFF = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a packed file raises where it is broken or ends too early."""


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether it is a path as `gs://bucket/path`."""
    return os.fspath(path).startswith(_BUCKET)


def path_at(path: str | os.PathLike) -> Path | epath.Path:
    """A path that a user gave, absolute and without `..`, `~` being the home folder.

    For one in a bucket it is epath's Path, which has pathlib's methods.
    """
    if is_bucket(path):
        return epath.Path(path)
    place = Path(path).expanduser()
    # tensorstore refuses `..`; a path without it keeps the links that it goes through.
    return place.resolve() if ".." in place.parts else place.absolute()


def unreachable(place: str | None = None) -> str:
    """Why nobody answers there, "" where somebody does; asks once, for ten seconds at most.

    The clients that fetch what lies there, TensorFlow's and TFDS's, try for minutes.

    Args:
        place: of the web; None is where buckets are.
    """
    return _silence(
        place or os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    )


@functools.cache
def _silence(place: str) -> str:
    try:
        # `urlopen` would keep the proxies of its first call for the whole process.
        urllib.request.build_opener().open(place, timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return ""  # somebody did
    except OSError as error:
        return f"no answer from {place}: {getattr(error, 'reason', error)}"
    return ""


def cache() -> Path:
    """COT_FLAX_CACHE, or else a folder of ours among the user's caches."""
    return Path(os.environ.get("COT_FLAX_CACHE", "~/.cache/cot-flax")).expanduser()


def work_path(path: str | os.PathLike) -> Path:
    """Where what becomes `path` grows on this machine and survives a kill: `path`, if it is here.

    What becomes `gs://bucket/path` grows at `buckets/bucket/path` in the cache. `~` is the home
    folder; a relative path stays one.
    """
    if is_bucket(path):
        return cache() / "buckets" / os.fspath(path).removeprefix(_BUCKET)
    return Path(path).expanduser()


@contextmanager
def open_unpacked(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for reading, unpacked if its first bytes are those of gzip, bzip2, xz or zstd.

    What breaks off raises one of `CUT_OFF` where it does, when what comes before has been read.
    """
    with path_at(path).open("rb") as file:
        unpack = _unpacker(file)
        if unpack is None:
            yield file
            return
        with unpack(file) as unpacked:
            yield unpacked


def head(path: str | os.PathLike, size: int) -> bytes:
    """About the first `size` bytes of a file, unpacked; of one that breaks off, what there is."""
    found = b""
    with path_at(path).open("rb") as file:
        unpack = _unpacker(file)
        if unpack is None:
            return file.read(size)
        with unpack(file) as unpacked:
            try:
                # By lines, for a larger read loses what was unpacked before an error.
                while len(found) < size and (line := unpacked.readline(size)):
                    found += line
            except CUT_OFF:
                if not found:
                    raise
    return found


def _unpacker(file: IO[bytes]) -> Callable[[IO[bytes]], Any] | None:
    start = file.read(6)
    file.seek(0)
    return next((unpack for magic, unpack in _UNPACK.items() if start.startswith(magic)), None)


class _Zstd(io.RawIOBase):
    """Unpacks frames; says so where the last one breaks off, as the library's reader does not."""

    def __init__(self, file: IO[bytes]):
        self._file, self._rest, self._unpacked = file, b"", memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        import zstandard  # a machine that only trains or measures need not have it

        while not self._unpacked:
            block, self._rest = self._rest or self._file.read(2**17), b""
            if not block:
                if self._frame:
                    raise EOFError("zstd data that ends before its end mark")
                return 0
            frame = self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                self._unpacked = memoryview(frame.decompress(block))
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            if frame.eof:
                self._rest, self._frame = frame.unused_data, None
        size = min(len(buffer), len(self._unpacked))
        buffer[:size] = self._unpacked[:size]
        self._unpacked = self._unpacked[size:]
        return size


_UNPACK: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: io.BufferedReader(_Zstd(file)),
}


def file_version(path: str | os.PathLike) -> tuple[str, int, int]:
    """Path, bytes and time of the last change, which stay the same while a file does."""
    if is_bucket(path):
        there = epath.Path(path).stat()
        return os.fspath(path), there.length, there.mtime
    here = Path(path).expanduser().stat()
    return str(Path(path).expanduser().resolve()), here.st_size, here.st_mtime_ns


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder and those below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_folder(path: str | os.PathLike) -> Path | epath.Path:
    """Makes a folder to write to, and those above it; raises UserError where that cannot be."""
    if is_bucket(path) and (why := unreachable()):
        raise _unwritable(path, OSError(why), "a folder")
    folder = path_at(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error, "a folder") from error
    return folder


def _unwritable(path: str | os.PathLike, error: OSError, kind: str) -> UserError:
    reason = error.strerror or str(error).splitlines()[0]
    remedy = "check its name, your permissions and the room; in a bucket, network and `gcloud auth`"
    return UserError(f"{os.fspath(path)} ({reason})", f"{kind} to write to", remedy)


@contextmanager
def cleared_on_error(
    path: str | os.PathLike, whole: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Where the block fails, removes the folders on the way to `path` that it made for nothing.

    Args:
        whole: says whether what is in a new folder `path` goes, too; else an empty one alone does.
    """
    place = path_at(path)
    new = [] if is_bucket(path) else [p for p in (place, *place.parents) if not p.exists()]
    try:
        yield
    except BaseException:
        if place in new and whole():
            shutil.rmtree(place, ignore_errors=True)
        for folder in new:
            with suppress(OSError):  # it holds something, or was not made
                folder.rmdir()
        raise


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to that becomes `path` when the block ends without an error.

    Folders on the way are made. On this machine the file grows beside its final name and is
    renamed over it; one that says the same as before keeps its time, by which what was made of it
    knows it. In a bucket, whose objects are there whole or not at all, it grows under a
    temporary name on this machine and is uploaded at the end.

    Raises:
        UserError: its folder cannot be made, or there is a folder of this name.
    """
    path = path_at(path)
    with cleared_on_error(path.parent):
        make_folder(path.parent)
        if is_bucket(path):
            with TemporaryDirectory() as draft:
                partial = Path(draft) / path.name
                yield partial
                path.write_bytes(partial.read_bytes())
            return
        if path.is_dir():
            raise UserError(f"{path}, which is a folder", "a file to write", "add a file's name")
        partial = path.with_name(path.name + ".partial")
        try:
            yield partial
            if not (path.exists() and filecmp.cmp(partial, path, shallow=False)):
                os.replace(partial, path)
        except OSError as error:
            if error.errno in _FULL or error.filename == os.fspath(partial):  # not what is read
                raise _unwritable(path, error, "a file") from error
            raise
        finally:
            with suppress(OSError):
                partial.unlink()


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file whole or not at all, text as UTF-8; see `new_file`."""
    with new_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """Yields a folder on this machine that becomes `out` when the block ends without an error.

    It grows beside `out` and is renamed. For one in a bucket, where no folder can be renamed, it
    grows under a temporary name and its files are uploaded at the end; if that fails, those that
    were uploaded are deleted again, but a process that is killed meanwhile leaves them.

    Raises:
        UserError: there is something at `out`.
    """
    out = path_at(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}, which is not empty", "a new folder", "choose another --out")
    if is_bucket(out):
        with TemporaryDirectory() as draft:
            yield Path(draft)
            upload(Path(draft), out)
        return
    with cleared_on_error(out.parent):
        try:
            beside = TemporaryDirectory(prefix=f".{out.name}.", dir=make_folder(out.parent))
        except OSError as error:
            raise _unwritable(out, error, "a folder") from error
        with beside:
            folder = Path(beside.name) / out.name
            folder.mkdir()
            yield folder
            folder.rename(out)


def upload(folder: Path, out: epath.Path, last: str = "") -> None:
    """Copies a folder's files into a bucket; if that fails, deletes those that it copied.

    Args:
        last: the name of the file that says that all are there.
    """
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    copied = []
    try:
        for name in sorted(files, key=lambda name: (name.name == last, name)):
            place = out / name.as_posix()
            place.parent.mkdir(parents=True, exist_ok=True)
            copied.append(place)
            with (folder / name).open("rb") as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, 2**24)
    except BaseException:
        for place in copied:
            place.unlink(missing_ok=True)
        raise
