"""SeqIO's own tools on every task that the modules of `cot_flax.tasks` register.

A family whose data are files is tested with those that `FILES` makes for it; without them it skips.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from support.data import write_cache

import cot_flax.tasks
from cot_flax import hub
from cot_flax.data.converter import DistillationFeatureConverter
from cot_flax.data.features import TEACHER_FEATURES
from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import registered
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

for module in pkgutil.iter_modules(cot_flax.tasks.__path__):
    importlib.import_module(f"cot_flax.tasks.{module.name}")
ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"inputs": 8192, "targets": 256}  # a scenario shows its instruction and all exemplars
# One of each data set with exemplars, if it has that format: the formats differ in prompts alone.
CARDS = {card.dataset: card for card in registered()} | {
    card.dataset: card for card in registered() if card.format == "few_shot_cot"
}


def gsm8k(folder):
    for file, count in (("train", 516), ("test", 12)):  # 500 are the validation split
        pairs = [
            {"question": f"{file} {n} + {n}?", "answer": f"{n}\n#### {n}"} for n in range(count)
        ]
        (folder / f"{file}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


# Data sets of cot_flax/tasks/abilities.py as word_sorting is: they wait for --slow.
ALIKE = ("boolean_expressions", "calculation", "object_tracking", "retelling")
FILES = {"gsm8k": gsm8k, "scenario": lambda folder: ROOT / "examples" / "triage"}


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """Made data of a few questions, T5's vocabulary by the world's, and no hub."""
    for split in ("train", "validation", "test"):
        gin.bind_parameter(f"cot_flax.tasks.stories.size.{split}", 12)
    gin.bind_parameter("cot_flax.data.registration.prompting.shots", 1)
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    for family, make in FILES.items():
        (tmp_path / family).mkdir()
        path = str(make(tmp_path / family))
        gin.bind_parameter(f"cot_flax.tasks.{family}.data.directory", path)

    def unreachable(name, **_):
        raise UserError(f"no network for {name}", "one", "bring the files")

    monkeypatch.setattr(hub, "data_files", unreachable)
    before = list(seqio.utils.get_global_cache_dirs())
    seqio.set_global_cache_dirs([str(tmp_path / "cache")])
    yield
    seqio.set_global_cache_dirs(before)


def task_of(dataset, bound_store):
    """The data set's task; skips where its data are no files of a test."""
    task = find_task(CARDS[dataset].name)
    try:
        next(iter(task.source.get_dataset(task.splits[0], shuffle=False)), None)
    except (UserError, OSError, tf.errors.OpError) as error:
        pytest.skip(f"no data of {dataset} in a test: {str(error).splitlines()[0][:80]}")
    return task


def held_out(task):
    return next((split for split in ("test", "validation") if split in task.splits), "train")


def read(task, split, **settings):
    dataset = task.get_dataset(None, split, shuffle=False, **settings)
    return list(dataset.as_numpy_iterator())


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for name in ("inputs", "targets", "answer", "question"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param(dataset, marks=[pytest.mark.slow] if dataset in ALIKE else [])
        for dataset in CARDS
    ],
)
def test_seqios_tools_take_every_data_set(dataset, bound_store, tmp_path):
    task = task_of(dataset, bound_store)
    split = held_out(task)
    whole = read(task, split)
    assert_same(read(task, f"{split}[:3]"), whole[:3])
    assert_same(read(task, f"{split}[3:5]"), whole[3:5]) if len(whole) > 4 else None
    converters = {
        seqio.EncDecFeatureConverter: LENGTHS,
        seqio.PrefixLMFeatureConverter: LENGTHS,
        seqio.LMFeatureConverter: {"targets": 512},
    }
    for converter, lengths in converters.items():
        converted = seqio.get_dataset(
            task.name, lengths, converter(pack=False), dataset_split=split, shuffle=False
        )
        (row,) = converted.take(1).as_numpy_iterator()
        target = whole[0]["targets"].tolist()
        found = row["decoder_target_tokens"].tolist()
        start = len(whole[0]["inputs"]) * (converter is seqio.PrefixLMFeatureConverter)
        assert found[start : start + len(target)] == target
    if TEACHER_FEATURES[0] not in task.output_features:  # a store is a cache itself
        write_cache(task, split, tmp_path / "cache")
        fresh = [e for e in read(task, split) if len(e["inputs"])]
        assert_same(read(task, split, use_cached=True), fresh)


@pytest.mark.parametrize("dataset", CARDS)
def test_seqios_evaluator_finds_gold_answers_right(dataset, bound_store):
    """A student that writes the targets of the data has every answer right."""
    task = task_of(dataset, bound_store)
    taught = TEACHER_FEATURES[0] in task.output_features  # SeqIO's own knows no such features
    converter = DistillationFeatureConverter if taught else seqio.EncDecFeatureConverter
    evaluator = seqio.Evaluator(
        task.name,
        converter(pack=False),
        eval_split=held_out(task),
        num_examples=3,
        sequence_length=None,
    )

    def targets(dataset):
        return [(int(n), row["decoder_target_tokens"]) for n, row in dataset.as_numpy_iterator()]

    metrics, *_ = evaluator.evaluate(
        compute_metrics=True, predict_fn=targets, score_fn=None, predict_with_aux_fn=None
    )
    assert metrics.result()[task.name] == {"accuracy": 1.0, "parse_failures": 0.0}


@pytest.mark.slow
def test_seqio_cache_tasks_writes_what_use_cached_reads(tmp_path):
    """Its own script, on Beam, in a process of its own: it has flags of its own."""
    pytest.importorskip("apache_beam", reason="pip install cot-flax[beam]")
    (tmp_path / "small.py").write_text(
        "import gin\nfrom cot_flax.tasks import stories\n"
        "for split in ('train', 'validation', 'test'):\n"
        "    gin.bind_parameter(f'cot_flax.tasks.stories.size.{split}', 12)\n"
    )
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=small"]
    command += ["--tasks=stories_zero_shot_cot", f"--output_cache_dir={cache}"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    task = find_task("stories_zero_shot_cot")
    assert (cache / "stories_zero_shot_cot" / "COMPLETED").exists()

    def by_id(examples):
        return sorted(examples, key=lambda example: example["id"])

    fresh = by_id(read(task, "train"))
    gin.bind_parameter("cot_flax.tasks.stories.size.train", 99)  # of which the cache knows nothing
    assert_same(by_id(read(task, "train", use_cached=True)), fresh)
