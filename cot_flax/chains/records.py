"""Files of records, one at a time: JSON Lines, a JSON list or object, CSV, TSV, Parquet, Arrow.

They lie here, in a bucket or on the Hugging Face hub (see `file_names`) and may be packed (see
`files.open_unpacked`). The first bytes say what a file is; its name decides only where they do not.
At the border of all such files: records with their place, fields with their type, named reasons.
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import ijson

from cot_flax.chains import file_names
from cot_flax.errors import UserError
from cot_flax.files import CUT_OFF, head, is_bucket, open_unpacked

_UNREADABLE = (FileNotFoundError, IsADirectoryError, PermissionError)
_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**16  # bytes that are read at once, and by which a file is recognised
_READ = (
    "JSON Lines, JSON, CSV, TSV, Parquet or Arrow, which gzip, bzip2, xz or zstd may have packed"
)
_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
_ROWS = 1024  # of a columnar file that are made records at once
_NOT_READ = {
    b"PK\x03\x04": "a ZIP archive (.zip, .xlsx)",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"\x80\x04\x95": "a Python pickle",
    b"SQLite format 3": "an SQLite database",
    b"\xff\xfe": "a text in UTF-16",
    b"\xfe\xff": "a text in UTF-16",
}
_FIRST_VALUE_IS_OBJECT = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')


class BadRecord(UserError):
    """One record that cannot be used.

    Attributes:
        reason: its short name, by which such records are counted.
    """

    def __init__(self, reason: str, place: str, got: str, expected: str):
        super().__init__(f"{place}: {got}", expected, "repair or remove this line")
        self.reason = reason


Placed = tuple[str, dict[str, Any] | BadRecord]


@dataclass(frozen=True)
class Container:
    """A kind of file.

    Attributes:
        name: what it is called.
        read: yields (place, record) in order, holding one at a time; in place of a record that
            cannot be read, why not, and of a file that breaks off, what came before.
    """

    name: str
    read: Callable[[str | os.PathLike], Iterator[Placed]]


def records(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, record) for each record of a file; place names the file and the line.

    Raises:
        UserError: the file is missing, empty or of another kind; BadRecord at the first record that
            cannot be read.
    """
    for place, record in find_container(path).read(path):
        if isinstance(record, BadRecord):
            raise record
        yield place, record


def find_container(path: str | os.PathLike) -> Container:
    """The kind of a file.

    Raises:
        UserError: the file is missing, empty, or of a kind that is not read, which is named.
    """
    start = _start(path)
    for magic, name in _NOT_READ.items():
        if start.startswith(magic):
            raise UserError(f"{path}, {name}", _READ, "convert it")
    if start.startswith(b"PAR1"):
        return PARQUET
    if start.startswith((_ARROW_FILE, _ARROW_STREAM)):
        return ARROW
    text, suffix = start.lstrip(), file_names.divided_name(path)[1]
    if suffix in file_names.TABLES:
        return TABLE
    if text.startswith(b"["):
        return LIST
    if suffix in file_names.LINES:
        _check_lines(path, text)
        return LINES
    if suffix == ".json" or text.startswith(b"{"):
        return ENTRIES if _is_one_object(text, suffix) else LINES
    if b"\t" in text.partition(b"\n")[0]:
        return TABLE
    raise UserError(f"{path}, a file of unknown format", _READ, "convert it, or correct its name")


def raw_lines(path: str | os.PathLike) -> Iterator[tuple[str, bytes]]:
    """Yields (place, line) of a text file, without a byte order mark and without blank lines.

    Raises:
        UserError: the file is missing or empty.
        BadRecord: it cannot be read to its end; reason "truncated_file".
    """
    number = 0
    try:
        with open_unpacked(path) as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if text.strip(b" \r\n"):
                    yield f"{path}, line {number}", text
    except CUT_OFF as error:
        raise _broken(error, path, f"after line {number}") from error
    if number == 0:
        raise _empty(path)


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


def rows(path: str | os.PathLike) -> Iterator[tuple[str, list[str] | BadRecord]]:
    """Yields (place, cells) of a CSV or TSV file, that of the column names first.

    Cells are divided by tabs where the first line has one, else by the commoner of comma and
    semicolon. Quotes may hold line breaks.

    Raises:
        UserError: the file is missing or empty.
    """
    divider = _divider(_start(path))
    csv.field_size_limit(sys.maxsize)
    number, place = 0, f"{path}, line 1"
    try:
        with open_unpacked(path) as file:
            found = csv.reader(_texts(file), delimiter=divider, strict=True)
            while True:
                number, place = found.line_num, f"{path}, line {found.line_num + 1}"
                try:
                    cells = next(found)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield place, BadRecord("bad_csv", place, f"no row ({error})", "closed quotes")
                    continue
                if any(map(str.strip, cells)) or len(cells) > 1:
                    yield place, cells
    except CUT_OFF as error:
        yield place, _broken(error, path, f"after line {number}")


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


def _start(path: str | os.PathLike) -> bytes:
    """The first bytes, without a byte order mark."""
    try:
        start = head(path, _BLOCK)
    except CUT_OFF as error:
        raise _broken(error, path, "at its start") from error
    start = start.removeprefix(_BOM)
    if not start.strip():
        raise _empty(path)
    return start


def _broken(error: BaseException, path: str | os.PathLike, where: str) -> BadRecord:
    """What stands for the rest of a file that breaks off; raises UserError where none is there."""
    if isinstance(error, _UNREADABLE):
        reason = getattr(error, "strerror", None) or "No such file"
        raise UserError(f"{path}: {reason}", "a readable file", "check the path") from error
    got = (str(error) or type(error).__name__).splitlines()[0]
    return BadRecord("truncated_file", f"{path}, {where}", got, "a file that is whole")


def _empty(path: str | os.PathLike) -> UserError:
    return UserError(f"{path}: an empty file", "one record a line", "make the file again")


def _no_records(path: str | os.PathLike) -> UserError:
    return UserError(f"{path}: no records", "at least one", "make the file again")


def _or_why_not(make: Callable[[Any, str], dict], value: Any, place: str) -> Placed:
    try:
        return place, make(value, place)
    except BadRecord as error:
        return place, error


def _check_lines(path: str | os.PathLike, text: bytes) -> None:
    """Raises UserError where a file with the name of JSON Lines is plainly of another kind."""
    first, _, rest = text.partition(b"\n")
    if not text.startswith(b"{") and not rest.lstrip().startswith(b"{"):
        shown = first.decode(errors="replace").strip()[:60]
        is_table = any(divider in first for divider in b",;\t")
        raise UserError(
            f"{path}, whose first line {shown!r} is no JSON" + ", but may be CSV" * is_table,
            "one JSON object a line, as its name says",
            "name a table .csv or .tsv, or write JSON Lines",
        )
    if first.strip() in (b"{", b""):
        raise UserError(
            f"{path}, one JSON value over several lines",
            "one JSON object a line, as its name says",
            "write JSON Lines, or a JSON list of the records in a .json file",
        )


def _is_one_object(text: bytes, suffix: str) -> bool:
    """Whether it is one object whose values are the records, as the CoT Collection's file is."""
    first, _, rest = text.partition(b"\n")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        # It goes on in the next lines, or it is longer than what was looked at.
        is_long = not rest and len(text) > _BLOCK // 2
        return bool(_FIRST_VALUE_IS_OBJECT.match(text)) or (suffix == ".json" and not is_long)
    if rest.strip() or not isinstance(record, dict):
        return False
    return all(isinstance(value, dict) for value in record.values())


def _divider(start: bytes) -> str:
    first = start.partition(b"\n")[0]
    if b"\t" in first:
        return "\t"
    return ";" if first.count(b";") > first.count(b",") else ","


def _texts(file: Iterator[bytes]) -> Iterator[str]:
    for i, line in enumerate(file):
        yield (line if i else line.removeprefix(_BOM)).decode(errors="surrogateescape")


def _read_lines(path: str | os.PathLike) -> Iterator[Placed]:
    try:
        for place, line in raw_lines(path):
            yield _or_why_not(json_object, line, place)
    except BadRecord as error:
        yield os.fspath(path), error


def _blocks(path: str | os.PathLike) -> Iterator[bytes]:
    with open_unpacked(path) as file:
        block = file.read(_BLOCK).removeprefix(_BOM)
        while block:
            yield block
            block = file.read(_BLOCK)


def _read_json(path: str | os.PathLike, unit: str, parsed: Callable[[Any], Iterator]) -> Iterator:
    """The records of one JSON value, read as a stream."""
    place = None
    try:
        for name, record in parsed(ijson.from_iter(_blocks(path))):
            place = f"{path}, {unit} {name}"
            if not isinstance(record, dict):
                got = f"JSON of type {type(record).__name__}"
                record = BadRecord("wrong_type", place, got, "an object")
            yield place, record
    except (ijson.JSONError, UnicodeDecodeError, *CUT_OFF) as error:
        yield os.fspath(path), _broken(error, path, "behind the last record that was read")
    else:
        if place is None:
            raise _no_records(path)


def _read_list(path: str | os.PathLike) -> Iterator[Placed]:
    def parsed(file):
        return enumerate(ijson.items(file, "item", use_float=True), 1)

    return _read_json(path, "item", parsed)


def _read_entries(path: str | os.PathLike) -> Iterator[Placed]:
    return _read_json(path, "entry", lambda file: ijson.kvitems(file, "", use_float=True))


def _read_table(path: str | os.PathLike) -> Iterator[Placed]:
    found = rows(path)
    place, names = next(found)
    if isinstance(names, BadRecord):
        raise names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        reject("columns", place, f"columns {twice} twice", "columns of different names")
    place = None
    for place, cells in found:
        yield _or_why_not(lambda cells, place: _named(names, cells, place), cells, place)
    if place is None:
        raise _no_records(path)


def _named(names: list[str], cells: list[str] | BadRecord, place: str) -> dict[str, str]:
    if isinstance(cells, BadRecord):
        raise cells
    if len(cells) != len(names):
        reject("columns", place, f"{len(cells)} cells", f"{len(names)}, as columns are named")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        reject("bad_text", place, "bytes that are no text", "UTF-8")
    return dict(zip(names, cells, strict=True))


def _read_parquet(path: str | os.PathLike) -> Iterator[Placed]:
    """Reads a row group after the other."""

    def batches(file):
        from pyarrow import parquet

        return parquet.ParquetFile(_seekable(file, path)).iter_batches(_ROWS)

    return _read_columns(path, batches)


def _read_arrow(path: str | os.PathLike) -> Iterator[Placed]:
    """Reads a record batch after the other, of a file or a stream."""

    def batches(file):
        from pyarrow import ipc

        if head(path, len(_ARROW_FILE)).startswith(_ARROW_FILE):
            opened = ipc.open_file(_seekable(file, path))
            found = map(opened.get_batch, range(opened.num_record_batches))
        else:
            found = iter(ipc.open_stream(file))
        for batch in found:
            yield from (batch.slice(i, _ROWS) for i in range(0, batch.num_rows, _ROWS))

    return _read_columns(path, batches)


def _read_columns(path: str | os.PathLike, batches: Callable[[Any], Iterable]) -> Iterator[Placed]:
    import pyarrow

    number = 0
    try:
        with open_unpacked(path) as file:
            for batch in batches(file):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, *CUT_OFF) as error:
        yield os.fspath(path), _broken(error, path, f"after row {number}")
    else:
        if not number:
            raise _no_records(path)


def _seekable(file: Any, path: str | os.PathLike) -> Any:
    """The file itself where it lies here unpacked; else all of it in memory."""
    import pyarrow

    if isinstance(getattr(file, "raw", None), io.FileIO) and not is_bucket(path):
        return file
    return pyarrow.BufferReader(file.read())


LINES = Container("JSON Lines", _read_lines)
LIST = Container("a JSON list", _read_list)
ENTRIES = Container("one JSON object of records", _read_entries)
TABLE = Container("CSV or TSV", _read_table)
PARQUET = Container("Parquet", _read_parquet)
ARROW = Container("Arrow", _read_arrow)
