"""A store behind SeqIO: our source and task over it, and SeqIO's own way of reading it."""

import json
import re
import shutil
from pathlib import Path

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from cot_flax.data.batches import TaskBatches
from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.store import layout
from cot_flax.store import tasks as store_tasks
from cot_flax.store.tasks import StoreSource, _unpacked
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.tasks.stories import SOURCE

STORE = "cot_flax.tasks.stories.teacher_store.directory"
TEMPLATE = "cot_flax.data.registration.prompting.template"
TASK = "stories_teacher_zero_shot_cot"


def ask(source):
    dataset = source.get_dataset("train", shuffle=False)
    for step in source.preprocessors():
        if not isinstance(step, seqio.CacheDatasetPlaceholder):
            dataset = step(dataset)
    return list(dataset.as_numpy_iterator())


def read(task, **settings):
    settings = {"sequence_length": None, "split": "train", "shuffle": False} | settings
    return list(seqio.get_mixture_or_task(task).get_dataset(**settings).as_numpy_iterator())


def assert_equal(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_store_is_read_from_where_it_lies_now(world_store, vocabulary):
    place = ["nowhere"]
    source = StoreSource(lambda: place[0], vocabulary=vocabulary, data=SOURCE)
    with pytest.raises(UserError, match="nowhere"):
        ask(source)
    place[0] = world_store
    assert len(ask(source)) == layout.read_manifest(world_store)["kept"]
    place[0] = None
    with pytest.raises(UserError, match=r"no teacher store.*--gin\.TEACHER_STORE"):
        ask(source)


def test_a_shard_is_files_of_its_own(world_store, vocabulary):
    source = StoreSource(lambda: world_store, vocabulary=vocabulary, data=SOURCE)
    files = source.list_shards("train")
    assert len(files) > 2
    for index, file in enumerate(files):
        shard = source.get_dataset("train", shard_info=seqio.ShardInfo(index, len(files)))
        assert len(list(shard)) == len(list(tf.data.TFRecordDataset(file))) > 0


def test_rows_are_unpacked_as_they_were_stored(world_store, vocabulary):
    source = StoreSource(lambda: world_store, vocabulary=vocabulary, data=SOURCE)
    stored = layout.dataset(world_store).as_numpy_iterator()
    for record, raw in zip(ask(source), stored, strict=True):
        ids, roots = (
            np.frombuffer(raw[f"teacher_top_{name}"], "<u2").reshape(-1, 5)
            for name in ("ids", "logprobs")
        )
        assert len(ids) == len(record["targets"])
        expected = np.where(ids == 65535, -1, ids.astype(int))
        np.testing.assert_array_equal(record["teacher_top_ids"], expected)
        expected = 2 * np.log(roots / 65535)
        np.testing.assert_allclose(record["teacher_top_logprobs"], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("manifest", "ids", "expected"),
    [
        # 16 bits without a sign: 65,534 must not become -2.
        ({"format": 2, "id_bits": 16}, np.array([65534, 65535, 0], "<u2"), [65534, -1, 0]),
        ({"format": 2, "id_bits": 32}, np.array([151_643, 2**32 - 1, 0], "<u4"), [151_643, -1, 0]),
        ({"format": 1}, np.array([65535, 0, 7], "<u2"), [65535, -1, 7]),
    ],
)
def test_ids_of_every_width_and_format_come_back(manifest, ids, expected):
    record = {
        "targets": tf.constant([1], tf.int64),
        "teacher_top_ids": tf.constant(ids.tobytes()),
        "teacher_top_logprobs": tf.constant(np.array([9, 65535, 65535], "<u2").tobytes()),
    }
    found = _unpacked(record, 3, layout.ids_of(manifest))
    assert found["teacher_top_ids"].numpy().tolist() == [expected]
    assert found["teacher_top_logprobs"].numpy()[0, 1:].tolist() == [0.0, 0.0]


def test_a_store_of_format_1_is_read_as_it_was_made(world_store, tmp_path, vocabulary):
    """The same rows, with 0 where an entry is absent, and a manifest that knows no width."""
    folder = Path(shutil.copytree(world_store, tmp_path / "old"))
    manifest = layout.read_manifest(world_store)
    for name in [name for name in manifest["files"] if ".tfrecord-" in name]:
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for raw in tf.data.TFRecordDataset(f"{world_store}/{name}").as_numpy_iterator():
                example = tf.train.Example.FromString(raw)
                (value,) = example.features.feature["teacher_top_ids"].bytes_list.value
                ids = np.frombuffer(value, "<u2")
                old = np.where(ids == 65535, 0, ids).astype("<u2").tobytes()
                example.features.feature["teacher_top_ids"].bytes_list.value[0] = old
                writer.write(example.SerializeToString())
        manifest["files"][name] = layout.checksum(folder / name)
    del manifest["id_bits"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    assert_equal(
        *(
            ask(StoreSource(lambda place=place: place, vocabulary=vocabulary, data=SOURCE))
            for place in (str(folder), world_store)
        )
    )


def held(samples):
    """A data set whose validation and test splits each hold a question of the samples."""
    questions = [sample.question for sample in samples]
    out = list(dict.fromkeys(questions))[:2]
    # However it is written: white space, case and punctuation make no other question.
    splits = {"train": questions, "validation": [f"  {out[0].upper()} "], "test": out[1:]}
    records = {
        split: [
            {"number": f"{split}-{i}", "question": text, "rationale": "1 + 1 = 2.", "answer": "2"}
            for i, text in enumerate(texts)
        ]
        for split, texts in splits.items()
    }
    return records_source(records.__getitem__, splits), out


def with_id(record):
    return {name: record[name] for name in ("question", "rationale", "answer")} | {
        "id": record["number"]
    }


@pytest.fixture
def add_held(world_store, samples, vocabulary):
    source, out = held(samples)
    add_cot_task(
        "held",
        source,
        parse=with_id,
        vocabulary=vocabulary,
        teacher_store=lambda: world_store,
    )
    return out


@pytest.mark.parametrize("use_cached", [False, True])
def test_chains_of_held_out_questions_are_left_out_and_counted(
    world_store, samples, add_held, caplog, use_cached
):
    store_tasks._report.cache_clear()
    for _ in range(2):
        examples = read("held_teacher_zero_shot_cot", use_cached=use_cached)
    kept = layout.read_manifest(world_store)["kept"]
    lost = sum(sample.question in add_held for sample in samples)
    stored = [e["question"].decode() for e in layout.dataset(world_store).as_numpy_iterator()]
    assert [e["question"].decode() for e in examples] == [q for q in stored if q not in add_held]
    assert 0 < len(examples) == kept - sum(q in add_held for q in stored) and lost > 1
    (message,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert message == (
        f"left out {kept - len(examples)} of {kept} chains of {world_store}: "
        "their questions are held out"
    )


def test_chains_of_questions_that_gin_leaves_out_of_training_are_left_out(
    world_store, samples, vocabulary
):
    out = samples[0].question
    records = [{"id": "0", "question": "A?", "rationale": "1 + 1 = 2.", "answer": "2"}]
    source = records_source(lambda split: records, ["train"], left_out=lambda: [out.upper()])
    store = StoreSource(lambda: world_store, vocabulary=vocabulary, data=source)
    stored = [e["question"].decode() for e in layout.dataset(world_store).as_numpy_iterator()]
    assert out in stored
    assert [e["question"].decode() for e in ask(store)] == [q for q in stored if q != out]


@pytest.mark.parametrize("use_cached", [False, True])
def test_held_out_splits_are_the_data_sets_own(add_held, use_cached):
    """With a rationale, and rows without an entry, so that T5X evaluates under the same name."""
    task = seqio.TaskRegistry.get("held_teacher_zero_shot_cot")
    assert sorted(task.splits) == ["test", "train", "validation"]
    for split, question in zip(("validation", "test"), add_held, strict=True):
        (e,) = read(task.name, split=split, use_cached=use_cached)
        assert e["question"].decode().strip().lower() == question.lower()
        assert e["targets_pretokenized"] == b"1 + 1 = 2.\nThe answer is 2"
        assert e["teacher_top_ids"].tolist() == [[-1] * 5] * len(e["targets"])
        assert not e["teacher_top_logprobs"].any()


@pytest.mark.parametrize("use_cached", [False, True])
def test_slices_of_the_chains_are_cut_from_what_is_trained_on(add_held, use_cached):
    whole = read("held_teacher_zero_shot_cot")
    for split, part in (("train[:3]", slice(3)), ("train[-2:]", slice(-2, None))):
        assert_equal(read("held_teacher_zero_shot_cot", split=split), whole[part])
    shards = [
        read("held_teacher_zero_shot_cot", split="train[:3]", shard_info=seqio.ShardInfo(i, 2))
        for i in range(2)
    ]
    assert_equal([e for pair in zip(*shards, strict=False) for e in pair], whole[:2])
    for split in ("tset", "train+test", "test[:2]"):
        with pytest.raises(UserError, match=re.escape(f"split {split!r}")):
            read("held_teacher_zero_shot_cot", split=split, use_cached=use_cached)


@pytest.mark.parametrize("format", ["zero_shot_cot", "zero_shot_answer", "few_shot_cot"])
def test_the_cached_task_is_the_task(bound_store, format):
    gin.bind_parameter("cot_flax.tasks.stories.size.train", 20)
    gin.bind_parameter("cot_flax.data.registration.prompting.shots", 1)
    task = f"stories_teacher_{format}"
    assert_equal(read(task, use_cached=True), read(task, use_cached=False))


def test_hosts_share_the_cached_shards(bound_store):
    hosts = [
        read(TASK, use_cached=True, shard_info=seqio.ShardInfo(index=i, num_shards=3))
        for i in range(3)
    ]
    assert all(hosts)
    ids = [e["id"] for host in hosts for e in host]
    assert sorted(ids) == sorted(e["id"] for e in read(TASK))


@pytest.fixture
def cache_dirs(tmp_path):
    before = list(seqio.utils.get_global_cache_dirs())
    seqio.add_global_cache_dirs([str(tmp_path)])
    yield tmp_path
    seqio.set_global_cache_dirs(before)


def test_plain_seqio_reads_the_folder_as_its_own_cache(world_store, cache_dirs):
    """A task that knows nothing of ours, whose name is the folder's, under SeqIO's directories."""

    def never(split, shuffle_files, seed=None):
        raise AssertionError("not from the cache")

    shutil.copytree(world_store, cache_dirs / "plain_chains")
    tokens = seqio.Feature(seqio.PassThroughVocabulary(1 << 16), add_eos=False, dtype=tf.int32)
    seqio.TaskRegistry.add(
        "plain_chains",
        source=seqio.FunctionDataSource(never, splits=["train"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": tokens},
    )
    found = read("plain_chains", use_cached=True)
    stored = list(layout.dataset(world_store).as_numpy_iterator())
    assert len(found) == len(stored) > 0
    for e, raw in zip(found, stored, strict=True):
        assert set(layout.FEATURES) <= e.keys()
        for name in layout.FEATURES:
            np.testing.assert_array_equal(e[name], raw[name], err_msg=name)
    statistics = seqio.TaskRegistry.get("plain_chains").get_cached_stats("train")
    assert statistics == {
        "examples": len(stored),
        "targets_tokens": sum(len(raw["targets"]) for raw in stored),
    }


def without_shard(folder):
    next(folder.glob("*tfrecord-00001*")).unlink()


def with_a_flipped_bit(folder):
    file = next(folder.glob("*tfrecord-00000*"))
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def without_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("use_cached", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_shard, "no file .*tfrecord-00001"),
        (with_a_flipped_bit, "tfrecord-00000.* with SHA-256"),
        (without_manifest, "no readable manifest.json"),
    ],
)
def test_damage_stops_every_way_of_reading(world_store, tmp_path, damage, message, use_cached):
    folder = Path(shutil.copytree(world_store, tmp_path / "copy"))
    damage(folder)
    gin.bind_parameter(STORE, str(folder))
    with pytest.raises(UserError, match=message):
        read(TASK, use_cached=use_cached)
    with pytest.raises(UserError, match=message):
        next(TaskBatches(TASK, {"inputs": 200, "targets": 90}, 2).batches(EncoderDecoder()))


@pytest.mark.parametrize("use_cached", [False, True])
def test_a_store_for_another_task_is_refused(make_store, make_sample, sums_source, use_cached):
    gin.bind_parameter(STORE, make_store([make_sample("The answer is 2")]))
    gin.bind_parameter(TEMPLATE, "ho2022")
    message = r"chains have cot_target .*nThe answer is {answer}' at .*'{rationale} --> {answ"
    with pytest.raises(UserError, match=message):
        read(TASK, use_cached=use_cached)
    other = seqio.ByteVocabulary()
    add_cot_task(
        "bytes",
        sums_source,
        vocabulary=other,
        teacher_store=lambda: gin.query_parameter(STORE),
    )
    with pytest.raises(UserError, match=r"a store with vocabulary .*the task's vocabulary"):
        read("bytes_teacher_zero_shot_cot", use_cached=use_cached)


@pytest.mark.parametrize("use_cached", [False, True])
def test_the_store_says_how_many_entries_a_position_has(make_store, make_sample, use_cached):
    gin.bind_parameter(STORE, make_store([make_sample("The answer is 2")], top_k=3))
    for name in (TASK, "stories_teacher_zero_shot_answer"):
        (example,) = read(name, use_cached=use_cached)
        assert example["teacher_top_ids"].shape == (len(example["targets"]), 3)
    batch = next(TaskBatches(TASK, {"inputs": 200, "targets": 90}, 1).batches(EncoderDecoder()))
    assert batch["teacher_top_ids"].shape == (1, 90, 3)


@pytest.mark.parametrize("use_cached", [False, True])
def test_without_a_folder_the_remedy_is_its_macro(use_cached):
    with pytest.raises(UserError, match=r"no teacher store.*--gin\.TEACHER_STORE"):
        read(TASK, use_cached=use_cached)
