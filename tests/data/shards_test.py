import itertools
import json

import pytest
import seqio

from cot_flax.chains.records import reject
from cot_flax.data import shards
from cot_flax.data.shards import Recipe, ShardedSource, text_of
from cot_flax.errors import UserError

FIELDS = ("id", "question", "rationale", "answer", "task")


def entry(record, place):
    if record.get("bad"):
        reject("bad_one", place, "a bad one", "a good one")
    names = ("question", "rationale", "answer", "task")
    texts = {name: text_of(record, name, place) for name in names}
    return texts | {"id": place.rpartition(" ")[2]}


def records(count=60):
    return [
        {
            "question": f"{n} and 1?",
            "rationale": f"{n} + 1",
            "answer": n + 1,
            "task": "ab"[n % 3 > 0],
        }
        for n in range(count)
    ]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path):
    def write(found, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in found))
        return str(path)

    return write


def recipe(**settings):
    return Recipe("sums", entry, FIELDS, ("task",), **{"validation": 0.2} | settings)


def source(path, most=None, **settings):
    settings = recipe(**settings)
    given = {"most": lambda: most} if most else {}
    return ShardedSource(lambda: path, lambda: settings, **given)


def read(source, split="train", **settings):
    dataset = source.get_dataset(split, **{"shuffle": False} | settings)
    return [record["question"].decode() for record in dataset.as_numpy_iterator()]


def test_every_record_is_in_one_split_with_its_texts(write):
    found = source(write(records()))
    train, held_out = read(found), read(found, "validation")
    assert sorted(train + held_out) == sorted(r["question"] for r in records())
    assert held_out
    manifest = found.manifest()
    assert manifest["read"] == manifest["kept"] == 60
    assert found.num_input_examples("train") == len(train)
    first = next(found.get_dataset("train", shuffle=False).as_numpy_iterator())
    n = int(first["question"].split()[0])
    assert (first["rationale"], first["answer"]) == (f"{n} + 1".encode(), str(n + 1).encode())


def test_the_order_depends_on_the_texts_and_not_on_the_files(write):
    ways = [write(records(), "a.jsonl"), write(records()[::-1], "b.jsonl")]
    assert read(source(ways[0])) == read(source(ways[1])) != [r["question"] for r in records()]


def test_a_question_stands_in_one_split_however_it_is_spaced(write):
    twice = [
        r | {"question": r["question"].upper().replace(" ", "  "), "answer": 0} for r in records()
    ]
    found = source(write(records() + twice))
    sides = [{" ".join(q.casefold().split()) for q in read(found, s)} for s in shards.SPLITS]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60


def test_shards_of_a_larger_file_share_out_all_of_it(write, monkeypatch):
    monkeypatch.setattr(shards, "_BYTES", 256)
    found = source(write(records()))
    assert len(found.list_shards("train")) > 8
    parts = [
        read(found, shard_info=seqio.ShardInfo(index, 3), shuffle=True, seed=index)
        for index in range(3)
    ]
    assert all(parts)
    assert sorted(itertools.chain(*parts)) == sorted(read(found))


def test_a_seed_decides_the_order_of_the_files(write, monkeypatch):
    monkeypatch.setattr(shards, "_BYTES", 256)
    found = source(write(records()))
    orders = [read(found, shuffle=True, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_groups_are_capped_and_fewer_are_among_the_more(write):
    path = write(records())
    read_ = {
        n: set(read(source(path, lambda task, n=n: n if task == "a" else None))) for n in (3, 9)
    }
    assert read_[3] < read_[9]
    assert len(read_[9] - read_[3]) == 6
    b = {r["question"] for r in records() if r["task"] == "b"} & set(read(source(path)))
    assert b <= read_[3]
    assert len(read_[3] - b) == 3
    assert source(path, lambda task: 4).num_input_examples("train") == 8


def test_slices_count_what_is_read(write):
    found = source(write(records()), lambda task: 10)
    assert len(read(found)) == 20
    whole = read(found, "train[:100%]")
    assert sorted(whole) == sorted(read(found))
    assert read(found, "train[:5]") == whole[:5]
    assert read(found, "train[15:]+validation[:2]") == whole[15:] + read(found, "validation")[:2]
    assert found.num_input_examples("train[:5]") == 5


def test_what_cannot_be_read_is_counted_and_named(write, capsys):
    bad = [{"bad": 1}, {"question": "2?", "rationale": "", "answer": "3", "task": "a"}]
    found = source(write(records() + bad))
    assert found.manifest()["rejected"] == {"bad_one": 1, "missing_field": 1}
    assert found.manifest()["read"] == 62 == found.manifest()["kept"] + 2
    said = capsys.readouterr().err
    assert "62 read =" in said
    assert "bad_one 1, missing_field 1; first" in said
    assert "line 61" in said


def test_too_many_that_cannot_be_read_stop(write):
    with pytest.raises(UserError, match=r"4 of 64 records .*line 61.*at most 5%"):
        source(write(records() + [{"bad": 1}] * 4)).manifest()


def test_shards_are_made_once(write, monkeypatch):
    path = write(records())
    first = read(source(path))
    monkeypatch.setattr(shards, "_write", None)
    assert read(source(path)) == first
    with pytest.raises(TypeError):  # another share of the questions is another plan
        read(source(path, validation=0.5))


def test_a_folder_of_shards_is_read_where_it_lies(write, tmp_path):
    made = shards.make_shards([write(records())], recipe())
    moved = made.rename(tmp_path / "moved")
    found = ShardedSource(lambda: str(moved), recipe)
    assert len(read(found)) + len(read(found, "validation")) == 60


def test_an_empty_split_is_named(write):
    with pytest.raises(UserError, match="no records in split 'validation' of sums"):
        read(source(write(records(5)), validation=0.0), "validation")


def test_a_process_that_was_slower_takes_what_is_there(write, monkeypatch):
    path, write_ = write(records()), shards._write

    def slower(folder, *settings):
        write_(folder, *settings)
        monkeypatch.setattr(shards, "_write", write_)
        shards.make_shards([path], recipe())

    monkeypatch.setattr(shards, "_write", slower)
    assert len(read(source(path))) > 40
