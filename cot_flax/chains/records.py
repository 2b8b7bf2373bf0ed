"""Records at the border: lines with their place, fields with their type, named reasons."""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

from etils import epath

from cot_flax.errors import UserError

UNREADABLE = (FileNotFoundError, IsADirectoryError, PermissionError)
CUT_OFF = (OSError, EOFError, zlib.error)
"""What reading a file raises: one that cannot be opened, and one that ends too early."""


class BadRecord(UserError):
    """One record that cannot be used.

    Attributes:
        reason: its short name, by which such records are counted.
    """

    def __init__(self, reason: str, place: str, got: str, expected: str):
        super().__init__(f"{place}: {got}", expected, "repair or remove this line")
        self.reason = reason


def raw_lines(path: str | os.PathLike) -> Iterator[tuple[str, bytes]]:
    """Yields (place, line) of a text file; place names file and line.

    A name that ends in .gz says that the file is gzipped.

    Raises:
        UserError: the file is missing or empty.
        BadRecord: it cannot be read to its end; reason "truncated_file".
    """
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                yield f"{path}, line {number}", line
    except CUT_OFF as error:
        wanted = "a readable file (gzipped if its name ends in .gz)"
        if isinstance(error, UNREADABLE):
            raise UserError(f"{path}: {error.strerror}", wanted, "check the path") from error
        place = f"{path}, after line {number}"
        raise BadRecord("truncated_file", place, str(error), wanted) from error
    if number == 0:
        raise UserError(f"{path}: an empty file", "one record a line", "make the file again")


@contextlib.contextmanager
def open_text(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for reading, here or in a bucket, gzipped if its name ends in .gz."""
    path = epath.Path(path)
    with path.open("rb") as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.open(file) as unpacked:
            yield unpacked


def json_lines(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) for each line of a JSON Lines file, gzipped if it ends in .gz.

    Raises:
        UserError: the file is missing, unreadable or empty, or a line is no JSON object.
    """
    for place, line in raw_lines(path):
        yield place, json_object(line, place)


def require(record: Mapping[str, Any], name: str, kind: Any, place: str) -> Any:
    """Returns record[name], which must be there and be of the type (or union) `kind`.

    Raises:
        UserError: it is missing or of another type; the message names `place`.
    """
    wanted = f"field {name!r} of type {getattr(kind, '__name__', kind)}"
    if name not in record:
        reject("missing_field", place, f"no field {name!r}", wanted)
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        reject("wrong_type", place, f"{name!r} of type {type(value).__name__}", wanted)
    return value


def reject(reason: str, place: str, got: str, expected: str) -> NoReturn:
    """Raises the BadRecord of a record that cannot be used."""
    raise BadRecord(reason, place, got, expected)


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """Decodes one line; raises BadRecord "bad_json" where it holds no JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reject("bad_json", place, f"no JSON ({error})", "one JSON object a line")
    if not isinstance(record, dict):
        got = f"JSON of type {type(record).__name__}"
        reject("bad_json", place, got, "one JSON object a line")
    return record
