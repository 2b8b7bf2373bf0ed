"""Paths on this machine and in buckets, by one interface."""

import os
from pathlib import Path

from etils import epath

from cot_flax.errors import UserError


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether it is a path as `gs://bucket/path`."""
    return os.fspath(path).startswith("gs://")


def path_at(path: str | os.PathLike) -> Path | epath.Path:
    """The path, absolute; for one in a bucket, epath's Path, which has pathlib's methods."""
    return epath.Path(path) if is_bucket(path) else Path(path).expanduser().absolute()


def make_folder(path: str | os.PathLike) -> Path | epath.Path:
    """Makes a folder to write to, and those above it; raises UserError where that cannot be."""
    folder = path_at(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error).splitlines()[0]
        remedy = "check its name and your permissions; for a bucket, the network and `gcloud auth`"
        raise UserError(f"{path} ({reason})", "a folder to write to", remedy) from error
    return folder
