"""A data set of sums, a store of the world's teacher, and registries that are left as found."""

import json

import gin
import pytest
import seqio
import tensorflow as tf

from cot_flax.chains.preparation import Preparation
from cot_flax.chains.samples import Logprobs, Sample, write_samples
from cot_flax.data import registration
from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.store.prepare import prepare
from cot_flax.tasks.stories import VOCABULARY

SUMS = {
    "train": [("One and one?", "1 + 1 = 2.", "2"), ("One and two?", "1 + 2 = 3.", "3"),
              ("Two and two?", "2 + 2 = 4.", "4"), ("Two and three?", "2 + 3 = 5.", "5"),
              ("Three and three?", "3 + 3 = 6.", "6")],
    "validation": [("Four and four?", "4 + 4 = 8.", "8")],
    "test": [("Five and one?", "5 + 1 = 6.", "6"), ("Five and two?", "5 + 2 = 7.", "7")],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _leave_no_trace():
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [set(registry.names()) for registry in registries]
    gin.clear_config()
    yield
    gin.clear_config()
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry.names()) - names:
            registry.remove(name)
            registration._REGISTERED.pop(name, None)


@pytest.fixture(scope="session")
def sums() -> dict[str, list[dict]]:
    """Records by split."""
    return {
        split: [
            {"id": f"sums-{split}-{i}", "question": q, "rationale": r, "answer": a}
            for i, (q, r, a) in enumerate(items)
        ]
        for split, items in SUMS.items()
    }


@pytest.fixture(scope="session")
def sums_source(sums):
    return records_source(sums.__getitem__, sums)


@pytest.fixture
def add_sums(sums_source):
    """Registers the sums under a name, with the world's vocabulary."""

    def add(name="sums", **settings):
        add_cot_task(name, sums_source, **{"vocabulary": VOCABULARY} | settings)

    return add


@pytest.fixture(scope="session")
def samples():
    return list(make_samples(make_stories(12, split="train"), samples=2))


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """Makes a store of samples in a new folder, which it returns."""

    def make(samples, *, vocabulary=VOCABULARY, records_per_shard=2048, **settings) -> str:
        folder = tmp_path_factory.mktemp("prepared")
        write_samples(folder / "samples.jsonl", samples)
        prepare(
            [str(folder / "samples.jsonl")],
            str(folder / "store"),
            vocabulary=vocabulary,
            settings=Preparation(**settings),
            workers=1,
            records_per_shard=records_per_shard,
        )
        return str(folder / "store")

    return make


@pytest.fixture(scope="session")
def make_sample():
    """Makes a teacher's sample; `tokens` are (token, logprob, top) triples."""

    def make(text, gold="2", *, tokens=(), **fields):
        logprobs = Logprobs(*map(tuple, zip(*tokens, strict=True))) if tokens else None
        values = {
            "id": "sums-0",
            "dataset": "sums",
            "split": "train",
            "question": "One and one?",
            "gold_answer": gold,
            "format": "zero_shot_cot",
            "prompt_hash": "",
            "teacher": {"model": "nobody", "params": {}},
            "sample": 0,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": "stop",
        }
        return Sample(**values | fields)

    return make


@pytest.fixture(scope="session")
def world_store(samples, make_store) -> str:
    """A store of the samples for the world's vocabulary, in several shards."""
    return make_store(samples, records_per_shard=8)


@pytest.fixture
def bound_store(world_store) -> str:
    """The store, where the tasks `stories_teacher_*` look for it."""
    gin.bind_parameter("cot_flax.tasks.stories.teacher_store.directory", world_store)
    return world_store


@pytest.fixture(scope="session")
def vocabulary():
    return VOCABULARY


def write_cache(task, split, cache):
    """What `seqio_cache_tasks` writes of a split of a task; read by SeqIO alone."""
    dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
    folder = cache / seqio.get_task_dir_from_name(task.name)
    folder.mkdir(parents=True)
    examples = list(dataset.as_numpy_iterator())
    with tf.io.TFRecordWriter(str(folder / f"{split}.tfrecord-00000-of-00001")) as writer:
        for example in examples:
            writer.write(seqio.dict_to_tfexample(example).SerializeToString())
    features = {
        name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
        for name, spec in dataset.element_spec.items()
    }
    info = {"num_shards": 1, "features": features}
    (folder / f"info.{split}.json").write_text(json.dumps(info))
    (folder / f"stats.{split}.json").write_text(json.dumps({"examples": len(examples)}))
    (folder / "COMPLETED").touch()
