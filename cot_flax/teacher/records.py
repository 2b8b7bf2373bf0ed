"""JSON Lines at the border: objects with their place, fields with their type."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from cot_flax.errors import UserError


def json_lines(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) for each line of a JSON Lines file; place names file and line.

    A name that ends in .gz says that the file is gzipped.

    Raises:
        UserError: the file is missing, unreadable or empty, or a line is no JSON object.
    """
    path, number = Path(path), 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path}, line {number}"
                yield place, _object(line, place)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}, after line {number}: {error}",
            "a readable JSON Lines file (gzipped if its name ends in .gz)",
            "check the path, or make the file again",
        ) from error
    if number == 0:
        raise UserError(f"{path}: an empty file", "one JSON object a line", "make the file again")


def require(record: Mapping[str, Any], name: str, kind: Any, place: str) -> Any:
    """Returns record[name], which must be there and be of the type (or union) `kind`.

    Raises:
        UserError: it is missing or of another type; the message names `place`.
    """
    wanted = f"field {name!r} of type {getattr(kind, '__name__', kind)}"
    if name not in record:
        reject(place, f"no field {name!r}", wanted)
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        reject(place, f"{name!r} of type {type(value).__name__}", wanted)
    return value


def reject(place: str, got: str, expected: str) -> NoReturn:
    """Raises the UserError of a line that cannot be used."""
    raise UserError(f"{place}: {got}", expected, "repair or remove this line")


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        reject(place, f"no JSON ({error})", "one JSON object a line")
    if not isinstance(record, dict):
        reject(place, f"JSON of type {type(record).__name__}", "one JSON object a line")
    return record
