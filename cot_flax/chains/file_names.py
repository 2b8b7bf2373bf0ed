"""Which files a name stands for: on this machine, in a bucket or on the Hugging Face hub."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath, PurePosixPath

from cot_flax import hub
from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at

LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
"""Suffixes by which a file is known that its first bytes do not tell."""
_SUFFIXES = (*LINES, ".json", *TABLES, ".parquet", ".arrow")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_SHARD = re.compile(r"(-\d+-of-\d+)?")  # as the Hugging Face hub names Parquet files
_PATTERN = re.compile(r"[*?[]")


def files_of(named: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """The files that a user names, in order.

    Args:
        named: one or several of: a file; a pattern of files, such as `data/*.parquet`; a folder,
            of which all files are taken that have a suffix that is read; a data set on the Hugging
            Face hub, such as `openai/gsm8k`, or a part of it at a revision, such as
            `hf://datasets/openai/gsm8k@main/socratic/*.parquet`.

    Raises:
        UserError: a pattern or folder without files, a file that is named twice, or what
            `hub.data_files` raises. Whether a single file is there shows when it is read.
    """
    several = [named] if isinstance(named, str | os.PathLike) else list(named)
    found = [file for one in several for file in _files_of(os.fspath(one))]
    if twice := [file for file in dict.fromkeys(found) if found.count(file) > 1]:
        raise UserError(f"{twice[0]} twice", "each file once", "name it once")
    return found


def _files_of(named: str) -> list[str]:
    if hub.is_url(named):
        return hub.url_files(named)
    place = path_at(named)
    if place.is_dir():
        wanted = f"files with {', '.join(_SUFFIXES)} ({', '.join(_PACKED)})"
        return _some(filter(_is_data, place.rglob("*")), f"{named}, a folder without any", wanted)
    if place.exists() or (is_bucket(named) and not _PATTERN.search(named)):
        return [named]
    if _PATTERN.search(named):
        return _some(_matching(named), f"no file {named}", "a pattern that files match")
    if "/" in named and hub.is_name(named) and divided_name(named)[1] not in _SUFFIXES:
        return hub.data_files(named)
    return [named]


def _matching(pattern: str) -> Iterator[PurePath]:
    """What matches a pattern, in whose last parts alone `*`, `?` and `[...]` stand."""
    fixed = _PATTERN.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    root = "/" if pattern.startswith("/") and not fixed else fixed or "."
    return path_at(root).glob(pattern.removeprefix(fixed).lstrip("/"))


def _some(paths: Iterable[PurePath], got: str, expected: str) -> list[str]:
    found = sorted(os.fspath(path) for path in paths)
    if not found:
        raise UserError(got, expected, "check the name")
    return found


def _is_data(path: PurePath) -> bool:
    hidden = path.name.startswith((".", "_")) or path.name in hub.ABOUT_DATA
    return divided_name(path)[1] in _SUFFIXES and not hidden


def record_files(folder: str | os.PathLike, name: str) -> list[str]:
    """The file of a folder with this name and a suffix that is read, or its Parquet shards.

    For `train` it may be `train.jsonl`, `train.csv.gz`, or all `train-*-of-00002.parquet`.

    Raises:
        UserError: there is none, or more than one.
    """
    found: dict[tuple[bool, str], list[str]] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(path_at(folder).iterdir()):
            stem, suffix = divided_name(path)
            rest = stem.removeprefix(name)
            if suffix in _SUFFIXES and stem != rest and _SHARD.fullmatch(rest):
                found.setdefault((stem == name, path.name[len(stem) :]), []).append(os.fspath(path))
    if not found:
        missing = f"{os.fspath(folder).rstrip('/')}/{name}.jsonl: No such file"
        wanted = f"this file, or {name} with {', '.join(_SUFFIXES[1:])} ({', '.join(_PACKED)})"
        raise UserError(missing, wanted, "check the folder")
    if len(found) > 1:
        names = ", ".join(path.rpartition("/")[2] for paths in found.values() for path in paths)
        raise UserError(f"{names} in {folder}", f"one file {name}", "remove the others")
    return next(iter(found.values()))


def divided_name(path: str | os.PathLike) -> tuple[str, str]:
    """A file's name without suffixes, and its suffix but for one that says how it is packed."""
    whole = PurePosixPath(os.fspath(path))
    inner = PurePosixPath(whole.stem) if whole.suffix in _PACKED else PurePosixPath(whole.name)
    return inner.stem, inner.suffix
