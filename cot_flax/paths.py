"""Paths on this machine and in buckets, by one interface."""

import os
from pathlib import Path

from etils import epath


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether it is a path as `gs://bucket/path`."""
    return os.fspath(path).startswith("gs://")


def path_at(path: str | os.PathLike) -> Path | epath.Path:
    """The path, absolute; for one in a bucket, epath's Path, which has pathlib's methods."""
    return epath.Path(path) if is_bucket(path) else Path(path).expanduser().absolute()
