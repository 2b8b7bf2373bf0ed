import gzip
import pickle

import pytest

from cot_flax.chains.records import BadRecord, json_lines, json_object, raw_lines, reject, require
from cot_flax.errors import UserError


def test_lines_come_with_their_place(tmp_path):
    for name, content in (("a.txt", b"one\n\ntwo"), ("a.gz", gzip.compress(b"one\n\ntwo"))):
        path = tmp_path / name
        path.write_bytes(content)
        lines = list(raw_lines(path))
        assert lines == [
            (f"{path}, line 1", b"one\n"),
            (f"{path}, line 2", b"\n"),
            (f"{path}, line 3", b"two"),
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


def test_what_is_not_gzipped_is_named(tmp_path):
    (tmp_path / "a.gz").write_text("plain")
    with pytest.raises(BadRecord, match="after line 0: Not a gzipped file") as caught:
        list(raw_lines(tmp_path / "a.gz"))
    assert caught.value.reason == "truncated_file"


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


def test_objects_are_decoded(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": "\\u00e9"}\n')
    assert [record for _, record in json_lines(tmp_path / "a.jsonl")] == [{"a": 1}, {"b": "é"}]


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
