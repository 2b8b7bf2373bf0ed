import json
import re

import pytest

from cot_flax.data.sources import questions, read_fields, records_source
from cot_flax.errors import UserError

LINES = [{"question": "One?", "answer": "1", "more": [2]}, {"question": "Two?", "answer": "2"}]


def write(tmp_path, *lines):
    (tmp_path / "train.jsonl").write_text("".join(line + "\n" for line in lines))


def test_reads_the_wanted_fields(tmp_path):
    write(tmp_path, *map(json.dumps, LINES))
    assert read_fields(str(tmp_path), "train", ("question", "answer")) == [
        {"question": "One?", "answer": "1"},
        {"question": "Two?", "answer": "2"},
    ]


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/none/train.jsonl.*No such file"):
        read_fields(str(tmp_path / "none"), "train", ("question",))


def test_an_empty_file_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl: an empty file"):
        read_fields(str(tmp_path), "train", ("question",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": ', "no JSON"),
        ('["One?"]', "JSON of type list"),
        ('{"answer": "1"}', "no field 'question'"),
        ('{"question": 1, "answer": "1"}', "'question' of type int"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    write(tmp_path, json.dumps(LINES[0]), line)
    with pytest.raises(UserError, match=re.escape(f"train.jsonl, line 2: {message}")):
        read_fields(str(tmp_path), "train", ("question", "answer"))


def test_records_keep_their_order_and_types(sums_source, sums):
    found = list(sums_source.get_dataset("train", shuffle=False).as_numpy_iterator())
    assert [record["id"].decode() for record in found] == [r["id"] for r in sums["train"]]
    source = records_source(lambda split: [{"id": split, "steps": 3}], ["train"])
    (record,) = source.get_dataset("train", shuffle=False).as_numpy_iterator()
    assert (record["id"], record["steps"]) == (b"train", 3)


def test_a_split_without_records_is_an_error():
    source = records_source(lambda split: [], ["train"])
    with pytest.raises(UserError, match="no records in split 'train'"):
        source.get_dataset("train", shuffle=False)


def test_questions_of_a_split(sums_source):
    assert list(questions(sums_source, "test")) == ["Five and one?", "Five and two?"]
