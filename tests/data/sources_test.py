import json
import re

import pytest
import seqio

from cot_flax.data.sources import read_fields, records_source
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


def ids(source, split):
    return [e["id"].decode() for e in source.get_dataset(split, shuffle=False).as_numpy_iterator()]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test", ["test-0", "test-1"]),
        ("train[:2]", ["train-0", "train-1"]),
        ("train[-2:]", ["train-3", "train-4"]),
        ("train[20%:60%]", ["train-1", "train-2"]),
        ("train[:30%]", ["train-0", "train-1"]),  # 1.5 records, to the closest even one
        ("test[1:] + train[4:]", ["test-1", "train-4"]),
    ],
)
def test_a_slice_of_a_split_is_what_tfds_takes_it_for(sums_source, split, expected):
    assert ids(sums_source, split) == [f"sums-{name}" for name in expected]
    assert sums_source.num_input_examples(split) == len(expected)


@pytest.mark.parametrize(
    "split",
    ["tset", "all", "", "test[:3]", "test[1]", "test[1shard:]", "dev[:1]", "test[:10", "x+test"],
)
def test_a_split_that_is_not_there_is_refused(sums_source, split):
    """It would be the training questions, to a task that takes every other name for them."""
    message = re.escape(f"split {split!r}") + ".*expected one of .*'test'.*or a slice"
    with pytest.raises(UserError, match=message):
        sums_source.get_dataset(split, shuffle=False)
    with pytest.raises(UserError, match=message):
        sums_source.num_input_examples(split)


def test_seqio_knows_how_many_examples_there_are(add_sums):
    add_sums()
    task = seqio.TaskRegistry.get("sums_zero_shot_cot")
    assert (task.num_input_examples("train"), task.num_input_examples("test")) == (5, 2)
    assert seqio.mixing_rate_num_examples(task, maximum=4) == 4
    assert seqio.MixtureRegistry.get("sums_cot_mix").num_input_examples("train") == 4 * 5
