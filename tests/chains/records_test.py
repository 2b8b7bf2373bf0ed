"""Files of records: the same records in every kind of file and packing that is read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import random
import sys

import gin
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from cot_flax.chains.records import (
    BadRecord,
    find_container,
    json_object,
    raw_lines,
    records,
    reject,
    require,
)
from cot_flax.errors import UserError

ROWS = [
    {"question": "Ein Käse,\n zwei?", "answer": 'Zwei "Käse".'},
    {"question": "[1]?", "answer": "1;\t2"},
]
BOM = b"\xef\xbb\xbf"


def as_lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(divider, end="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=divider, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet():
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), content)
    return content.getvalue()


def as_arrow(new_writer):
    content, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with new_writer(content, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return content.getvalue()


KINDS = {
    "a.jsonl": as_lines(),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "list.jsonl": json.dumps(ROWS).encode(),
    "lines.json": as_lines(),
    "lines": as_lines(),
    "a.csv": as_table(","),
    "windows.csv": as_table(";", "\r\n"),
    "a.tsv": as_table("\t"),
    "table": as_table("\t"),
    "a.parquet": as_parquet(),
    "parquet.jsonl": as_parquet(),
    "a.arrow": as_arrow(pa.ipc.new_file),
    "stream.arrow": as_arrow(pa.ipc.new_stream),
    "entries.json": json.dumps({"0": ROWS[0], "b c": ROWS[1]}).encode(),
    "entries": json.dumps({"0": ROWS[0], "1": ROWS[1]}, indent=2).encode(),
}
BINARY = {"parquet", "arrow"}
PACKINGS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", PACKINGS)
@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_give_the_same_records(tmp_path, name, suffix):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKINGS[suffix](KINDS[name]))
    assert [record for _, record in records(path)] == ROWS
    misnamed = path.rename(tmp_path / name)
    assert [record for _, record in records(misnamed)] == ROWS


@pytest.mark.parametrize(
    "name", [name for name in KINDS if "parquet" not in name and "arrow" not in name]
)
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    (tmp_path / name).write_bytes(BOM + KINDS[name])
    assert [record for _, record in records(tmp_path / name)] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "lines"])
def test_blank_lines_are_no_records(tmp_path, name):
    first, _, rest = KINDS[name].partition(b"\n")
    (tmp_path / name).write_bytes(b"%s\n\n%s\n  \n\n" % (first, rest))
    assert [record for _, record in records(tmp_path / name)] == ROWS


def test_records_have_their_place(tmp_path):
    rows = {"a.jsonl": "line 2", "a.csv": "line 4", "a.json": "item 2", "a.parquet": "row 2"}
    rows |= {"a.arrow": "row 2", "stream.arrow": "row 2"}
    for name, place in rows.items():
        (tmp_path / name).write_bytes(KINDS[name])
        assert [found for found, _ in records(tmp_path / name)][1] == f"{tmp_path / name}, {place}"
    (tmp_path / "entries.json").write_bytes(KINDS["entries.json"])
    assert [place for place, _ in records(tmp_path / "entries.json")] == [
        f"{tmp_path}/entries.json, entry {name}" for name in ("0", "b c")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK\x03\x04rest", "a ZIP archive"),
        ("a.csv", "question".encode("utf-16"), "a text in UTF-16"),
        ("a.jsonl", b"Obj\x01rest", "an Avro file"),
        ("a.pkl", pickle.dumps({"question": 1}), "a Python pickle"),
        ("a.txt", b"Hello, reader.", "a file of unknown format"),
        ("a.jsonl", b"", "an empty file"),
        ("a.jsonl", BOM, "an empty file"),
        ("a.json", b"[]", "no records"),
        ("a.json", b"{}", "no records"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(records(tmp_path / name))
    assert name in str(caught.value)
    assert not isinstance(caught.value, BadRecord)


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    from cot_flax.errors import missing_extra

    (tmp_path / "a.parquet").write_bytes(as_parquet())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        list(records(tmp_path / "a.parquet"))
    assert 'pip install "cot-flax[teach]"' in str(missing_extra(caught.value))


def read(path):
    """Records and reasons in their order."""
    found = (record for _, record in find_container(path).read(path))
    return [r.reason if isinstance(r, BadRecord) else r for r in found]


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_what_breaks_off_gives_the_records_before(tmp_path, name, packing):
    numbers = random.Random(0)
    rows = [{"n": str(numbers.random())} for _ in range(60_000)]
    content = {
        "a.jsonl": as_lines(rows),
        "a.json": json.dumps(rows).encode(),
        "a.csv": b"n\n" + b"".join(f"{row['n']}\n".encode() for row in rows),
    }[name]
    packed = PACKINGS[packing](content)
    (tmp_path / f"{name}{packing}").write_bytes(packed[: len(packed) * 9 // 10])
    *found, last = read(tmp_path / f"{name}{packing}")
    assert last == "truncated_file"
    assert found == rows[: len(found)]
    assert len(found) > 1000


@pytest.mark.parametrize("new_writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_that_breaks_off_is_named(tmp_path, new_writer):
    path = tmp_path / "a.arrow"
    content = as_arrow(new_writer)
    path.write_bytes(content[: len(content) * 8 // 10])
    *found, last = read(path)
    assert last == "truncated_file"
    assert found == ROWS[: len(found)]
    assert len(found) == (new_writer is pa.ipc.new_stream)


def test_a_columnar_file_without_rows_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"question": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match=r"a\.parquet: no records"):
        read(path)


def test_a_file_that_breaks_off_in_its_first_block_is_named(tmp_path):
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(as_lines())[:40])
    with pytest.raises(BadRecord, match=r"a\.jsonl\.bz2, at its start: ") as caught:
        list(records(tmp_path / "a.jsonl.bz2"))
    assert caught.value.reason == "truncated_file"


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_a_first_line_may_be_long(tmp_path, name):
    rows = [{"question": "a" * 200_000}, {"question": "b"}]
    (tmp_path / name).write_bytes(as_lines(rows))
    assert read(tmp_path / name) == rows
    (tmp_path / name).write_bytes(json.dumps({"0": rows[0], "1": rows[1]}).encode())
    assert read(tmp_path / name) == rows


def test_of_several_zstd_frames_each_is_read(tmp_path):
    first, second = as_lines(ROWS[:1]), as_lines(ROWS[1:])
    (tmp_path / "a.jsonl").write_bytes(PACKINGS[".zst"](first) + PACKINGS[".zst"](second))
    assert read(tmp_path / "a.jsonl") == ROWS


def test_rows_that_are_wrong_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,2\n1\n\xff,2\n"1"x,2\n3,4\n5,"6\n')
    assert read(path) == [
        {"a": "1", "b": "2"},
        "columns",
        "bad_text",
        "bad_csv",
        {"a": "3", "b": "4"},
        "bad_csv",
    ]
    path.write_bytes(b"a,a\n1,2\n")
    with pytest.raises(UserError, match=r"columns \['a'\] twice"):
        read(path)


def test_lines_come_with_their_place(tmp_path):
    text = b"\xef\xbb\xbfone\n \r\n\ntwo\n\n"
    for name, content in (("a.txt", text), ("a.gz", gzip.compress(text))):
        path = tmp_path / name
        path.write_bytes(content)
        lines = list(raw_lines(path))
        assert lines == [
            (f"{path}, line 1", b"one\n"),
            (f"{path}, line 4", b"two\n"),
        ]


def test_what_is_missing_or_empty_stops(tmp_path):
    (tmp_path / "empty").touch()
    for name, message in {
        "none": "No such file",
        ".": "Is a directory",
        "empty": "an empty",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            list(raw_lines(tmp_path / name))
        assert not isinstance(caught.value, BadRecord)


@pytest.mark.parametrize("cut", [slice(0, -9), slice(0, 30)])
def test_a_gzip_file_that_breaks_off_gives_what_came_before(tmp_path, cut):
    path = tmp_path / "a.gz"
    noise = b"".join(f"{i * i * 7919 % 10007} ".encode() * 2 + b"\n" for i in range(3000))
    path.write_bytes(gzip.compress(noise)[cut])
    found = []
    with pytest.raises(BadRecord, match=f"{path}, after line {'2999|3000' if cut.stop < 0 else 0}"):
        for _, line in raw_lines(path):
            found.append(line)
    assert b"".join(found) == noise[: len(b"".join(found))]


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b"", "no JSON"),
        (b'{"a": ', "no JSON"),
        (b'{"a": "\xff"}', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "JSON of type list"),
        (b"null", "JSON of type NoneType"),
    ],
)
def test_what_is_no_object_is_bad_json(line, got):
    with pytest.raises(BadRecord, match=f"file, line 3: {got}") as caught:
        json_object(line, "file, line 3")
    assert caught.value.reason == "bad_json"


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (1, int, None),
        (None, dict | None, None),
        ("a", str, None),
        ("1", int, "wrong_type"),
        (True, int, "wrong_type"),
        (1.0, int, "wrong_type"),
        (None, str, "wrong_type"),
    ],
)
def test_fields_have_a_type(value, kind, reason):
    if reason is None:
        assert require({"x": value}, "x", kind, "here") == value
        return
    with pytest.raises(BadRecord, match="here: 'x' of type") as caught:
        require({"x": value}, "x", kind, "here")
    assert caught.value.reason == reason
    with pytest.raises(BadRecord, match="here: no field 'y'") as caught:
        require({"x": value}, "y", kind, "here")
    assert caught.value.reason == "missing_field"


@gin.configurable
def _refuses():
    raise UserError("a cat", "a dog", "fetch it")


@gin.configurable
def _takes(value):
    return value


def test_an_error_that_gin_has_added_to_comes_back_from_another_process():
    """It is of a class that gin made, which no other process has."""
    gin.parse_config("_takes.value = @_refuses()")
    with pytest.raises(UserError) as caught:
        _takes()
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is UserError
    assert str(again) == str(caught.value)
    assert str(again).splitlines()[0] == "got a cat; expected a dog; fetch it"


def test_errors_come_back_whole_from_another_process():
    """Their constructors take other arguments than the message that they keep."""
    plain = UserError("a cat", "a dog", "fetch\nit")
    with pytest.raises(BadRecord) as caught:
        reject("bad_json", "f, line 3", "no JSON", "JSON")
    for error in (plain, caught.value):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert str(plain) == "got a cat; expected a dog; fetch it"
    assert again.reason == "bad_json"
    assert str(again) == "got f, line 3: no JSON; expected JSON; repair or remove this line"
