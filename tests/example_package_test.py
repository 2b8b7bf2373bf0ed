"""The example package as another team would use it: by gin alone, under both hosts."""

import ast
import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import gin
import jax
import numpy as np
import pytest
import seqio

from cot_flax import cli, run_folder
from cot_flax.chains.samples import Logprobs, Sample, write_samples
from cot_flax.configuration import gin_root
from cot_flax.run_folder import PREDICTIONS, RESULTS
from cot_flax.text.answers import extract_answer

HOME = Path(__file__).with_name("example_package")
PACKAGE = HOME / "river_tasks"
ROOT = HOME.parents[1]
# What docs/add_your_own.md names for a data set of one's own.
PUBLIC = {
    "cot_flax.data.mixtures",
    "cot_flax.data.registration",
    "cot_flax.data.sources",
    "cot_flax.tasks",
    "cot_flax.text.answers",
}
TINY = {
    "t5.T5Config.num_encoder_layers": 1,
    "t5.T5Config.num_decoder_layers": 1,
    "stories.size.train": 8,
    "stories.size.validation": 2,
}
SHORT = "ferries_zero_shot_answer"


@pytest.fixture(scope="module", autouse=True)
def _package_on_the_path(tmp_path_factory):
    """As PYTHONPATH does. What the commands set is set for good, as in their own process."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    filters, level = list(logging.getLogger().filters), logging.getLogger("absl").level
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOME)
        patch.setenv("COT_FLAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    for name, value in (before | {"jax_disable_most_optimizations": False}).items():
        jax.config.update(name, value)
    logging.getLogger().filters[:] = filters
    logging.getLogger("absl").setLevel(level)
    gin.clear_config()


def call(verb, *files, **macros):
    """Runs a command with gin files and macros; returns the exit code."""
    arguments = [f"--gin_search_paths={PACKAGE / 'gin'}", *(f"--gin_file={f}" for f in files)]
    arguments += [f"--gin.{name}={value!r}" for name, value in macros.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cot-flax", verb, *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


def train(folder, *files, **macros):
    shared = {"MODEL_DIR": str(folder), "MESH_DATA": 1, "LOG_PERIOD": 1}
    return call("train", "river.gin", *files, **TINY | shared | macros)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two steps on the mixture: the first command, so gin alone has found the package."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    assert "river_tasks" not in sys.modules
    assert train(folder, TRAIN_STEPS=2, BATCH_SIZE=2) == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(mixed, tmp_path_factory):
    """A student that knows the six ferries of the validation split by heart, and its evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    macros = {"MIXTURE_OR_TASK_NAME": SHORT, "BATCH_SIZE": 6, "PACK": False, "TRAIN_STEPS": 80}
    macros |= {"TASK_FEATURE_LENGTHS": {"inputs": 112, "targets": 12}, "LOG_PERIOD": 40}
    assert train(folder, **macros, **{"batches.TaskBatches.split": "validation"}) == 0
    macros = {"CHECKPOINT_PATH": str(folder), "EVAL_OUTPUT_DIR": str(folder / "test")}
    macros |= {"MIXTURE_OR_TASK_NAME": SHORT, "SPLIT": "validation", "DECODE_BATCH_SIZE": 6}
    assert call("evaluate", "river_evaluate.gin", **macros, MAX_DECODE_LENGTH=12, MESH_DATA=1) == 0
    return folder


# The package --------------------------------------------------------------------------------------


def imports(tree):
    """(module, name) of every import; the name is "" where a whole module is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), a.name) for a in node.names)


def test_it_uses_public_names_only():
    used = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for module, name in imports(tree):
            assert not any(part.startswith("_") for part in (*module.split("."), name)), path
            used |= {module} if module.startswith("cot_flax") else set()
        attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert not [name for name in attributes if name.startswith("_")], path
    assert used == PUBLIC


def test_its_gin_files_use_public_names_only():
    for path in PACKAGE.rglob("*.gin"):
        lines = re.findall(r"^(?:from|import) (.*)", path.read_text(), re.MULTILINE)
        assert lines[0] == "__gin__ import dynamic_registration"
        assert not [line for line in lines[1:] if re.search(r"\b_", line)], path


def test_cot_flax_does_not_know_it():
    folders = ("cot_flax", "tasks", "gin", "launch", "benchmarks")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    assert len(files) > 100
    assert not [path for path in files if b"river_tasks" in path.read_bytes()]


def gold_time(answer):
    """Python's own reading of the data's two notations."""
    notation = "%I:%M %p" if answer.endswith("m") else "%H:%M"
    return datetime.strptime(answer, notation).strftime("%H:%M")


def test_its_data_and_its_answer_kind_agree(mixed):
    notations = set()
    for path in (PACKAGE / "data").glob("*.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()):
            time = gold_time(record["answer"])
            notations.add(record["answer"][-2:] if record["answer"].endswith("m") else "24 h")
            for text in (record["answer"], record["rationale"]):
                assert extract_answer(text, kind="time", mode="flexible") == time, record["id"]
    assert notations == {"am", "pm", "24 h"}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("10:45 and 70 minutes is 11:55.\nThe answer is 11:55", "11:55", "11:55"),
        ("The answer is 3:35 p.m., not 4:05.", "15:35", "15:35"),
        ("The answer is 12:05 AM", "00:05", "00:05"),
        ("The answer is 12:05 pm", "12:05", "12:05"),
        ("It leaves at 9:10 and is there at 9:50.", None, "09:50"),
        ("The answer is 25:10", None, None),
        ("The answer is 13:10 pm", None, None),
        ("The answer is 9 or 09:5", None, None),
        ("12:30:15", None, None),
    ],
)
def test_its_answer_kind_reads_times(mixed, text, strict, flexible):
    assert extract_answer(text, kind="time", mode="strict") == strict
    assert extract_answer(text, kind="time", mode="flexible") == flexible


def test_few_shot_prompts_show_its_own_exemplars(mixed):
    rows = (PACKAGE / "data" / "exemplars.jsonl").read_text().splitlines()
    known = {json.loads(row)["question"] for row in rows}
    task = seqio.TaskRegistry.get("ferries_few_shot_cot")
    dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False, num_epochs=1)
    for example in dataset.as_numpy_iterator():
        prompt, own = example["inputs_pretokenized"].decode(), example["question"].decode()
        shown = re.findall(r"Q: (.*)\nLet's think", prompt)
        assert shown[-1] == own and len(shown) > 1 and set(shown[:-1]) <= known


# Our trainer --------------------------------------------------------------------------------------


def test_the_mixture_is_trained(mixed):
    assert [np.isfinite(row["loss"]) for row in run_folder.read_metrics(str(mixed))] == [True, True]
    assert "import river_tasks.tasks" in (mixed / "config.gin").read_text()
    mixture = seqio.MixtureRegistry.get("river_mix")
    rates = {task.name: mixture.get_rate(task) / mixture.total_rate for task in mixture.tasks}
    # 2 to 1; within the ferries 0.4 : 0.2 : 0.1 : 0.1, of which river.gin bound the 0.2.
    expected = {"stories_zero_shot_cot": 1 / 3, "ferries_zero_shot_cot": 2 / 3 * 0.4 / 0.8}
    expected |= {"ferries_few_shot_cot": 2 / 3 * 0.2 / 0.8}
    expected |= {f"ferries_{n}_shot_answer": 2 / 3 * 0.1 / 0.8 for n in ("zero", "few")}
    assert rates == pytest.approx(expected)


def test_its_answers_are_counted(evaluated):
    rows = [
        json.loads(line) for line in (evaluated / "test" / PREDICTIONS).read_text().splitlines()
    ]
    assert [row["extracted"] for row in rows] == [gold_time(row["gold"]) for row in rows]
    assert {"15:35", "10:55"} < {row["extracted"] for row in rows}  # of `3:35 pm` and `10:55 am`
    results = json.loads((evaluated / "test" / RESULTS).read_text())["tasks"]
    assert (results[SHORT]["accuracy"], results[SHORT]["count"]) == (1.0, 6)


def test_its_task_is_in_the_report(evaluated, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    monkeypatch.setattr(sys, "argv", ["cot-flax", "report", str(evaluated), "--out", str(out)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    page = out.read_text()
    # The card's role is "train": it stands under reasoning, and not under what that cost.
    assert ">Reasoning<" in page and ">ferries<" in page and "General ability" not in page


def chain(record, dataset="ferries", split="train"):
    """A teacher's sample of a record: its rationale, every word nine times of ten."""
    text = f"{record['rationale']} The answer is {record['answer']}"
    words = re.findall(r"\s*\S+", text)
    logprobs = Logprobs(
        tuple(words), (math.log(0.9),) * len(words), tuple({w: math.log(0.9)} for w in words)
    )
    return Sample(
        id=record["id"],
        dataset=dataset,
        split=split,
        question=record["question"],
        gold_answer=record["answer"],
        format="zero_shot_cot",
        prompt_hash="",
        teacher={"model": "nobody", "params": {}},
        sample=0,
        text=text,
        logprobs=logprobs,
        finish_reason="stop",
    )


def test_kl_on_its_own_data_beside_stories(tmp_path, mixed, caplog):
    """By river_prepare.gin and river_kl.gin; a chain on a held-out ferry is left out, and said."""
    rows = [
        json.loads((PACKAGE / "data" / f"{split}.jsonl").read_text().splitlines()[n])
        for split, n in [*(("train", n) for n in range(4)), ("validation", 0), ("test", 0)]
    ]
    write_samples(tmp_path / "samples.jsonl", [chain(row) for row in rows])
    store = str(tmp_path / "store")
    macros = {"SAMPLES_FILE": str(tmp_path / "samples.jsonl"), "TEACHER_STORE": store}
    macros |= {"STORE_TASK": "ferries_teacher_zero_shot_cot", "PREPARE_WORKERS": 1}
    assert call("prepare", "river_prepare.gin", **macros) == 0
    folder = tmp_path / "kl"
    macros = {"MODEL_DIR": str(folder), "TEACHER_STORE": store, "LOG_PERIOD": 1, "MESH_DATA": 1}
    assert call("train", "river_kl.gin", **TINY | macros, TRAIN_STEPS=3, BATCH_SIZE=4) == 0
    rows = run_folder.read_metrics(str(folder))
    assert min(row["teacher_fraction"] for row in rows) < 1
    assert max(row["teacher_fraction"] for row in rows) > 0 and rows[-1]["kl"] > 0
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == [f"left out 2 of 6 chains of {store}: their questions are held out"]


# T5X ----------------------------------------------------------------------------------------------

T5X = ("t5x", "airio", "jestimator", "tensorboard")
# What `python -m t5x.train` does, which asks for fiddle too.
LAUNCH = """
import json, sys, gin
from t5x import gin_utils
from t5x.train import train
gin_utils.parse_gin_flags(*json.loads(sys.argv[1]))
gin.get_configurable(train)()
"""


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, T5X)),
    reason="T5X is not on PyPI: bash launch/setup_t5x.sh makes it importable",
)
def test_t5x_trains_and_scores_by_the_same_file(tmp_path):
    folder = tmp_path / "t5x"
    macros = {"MODEL_DIR": str(folder), "TRAIN_STEPS": 2, "CHECKPOINT_PERIOD": 2, "LOG_PERIOD": 1}
    macros |= {"BATCH_SIZE": 2, "EVAL_STEPS": 1, "evaluation.Decoding.max_tokens": 4}
    bindings = [f"{name} = {value!r}" for name, value in (TINY | macros).items()]
    paths = [str(PACKAGE / "gin"), str(gin_root())]
    arguments = json.dumps([paths, ["river.gin", "t5x/train.gin"], bindings])
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["XLA_FLAGS"] = ""  # one device
    command = [sys.executable, "-c", LAUNCH, arguments]
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (folder / "checkpoint_2").is_dir()
    (metrics,) = (folder / "inference_eval").glob("ferries_zero_shot_cot-metrics.jsonl")
    line = json.loads(metrics.read_text())
    assert line["step"] == 2 and {"accuracy", "parse_failures"} <= line.keys()


def test_seqios_metric_counts_its_answers(mixed):
    """The one that T5X logs."""
    task = seqio.TaskRegistry.get(SHORT)
    dataset = task.get_dataset(sequence_length=None, split="validation", shuffle=False)
    examples = list(dataset.as_numpy_iterator())
    golds = ["11:55", "09:25", "11:55", "12:10", "3:35 pm", "10:55 am"]
    assert [example["answer"].decode() for example in examples] == golds
    written = ["11:55 am", "9:25", "12:55", "12 o'clock", "15:35", "10:55"]
    vocabulary = task.output_features["targets"].vocabulary
    tokens = [[*vocabulary.encode(f"The answer is {text}"), 1] for text in written]
    output = np.array([row + [0] * (24 - len(row)) for row in tokens])
    (metric,) = task.metric_objs
    filled = metric.from_model_output(examples, output, task.output_features)
    values, _ = filled.actual_compute(examples, task.output_features)
    assert values == {"accuracy": 4 / 6, "parse_failures": 1 / 6}


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "macros", "message"),
    [
        ("import river_taks.tasks", {}, "No module named 'river_taks'"),
        ("import river_tasks.task", {}, "No module named 'river_tasks.task'"),
        ("", {"MIXTURE_OR_TASK_NAME": "rivermix"}, "'rivermix'; .* river_mix"),
        ("include 'objectives/topk_kl.gin'", {}, "no teacher log-probabilities in river_mix"),
    ],
)
def test_a_mistake_gets_one_line(mixed, tmp_path, capfd, text, macros, message):
    (tmp_path / "mistake.gin").write_text(f"from __gin__ import dynamic_registration\n{text}\n")
    capfd.readouterr()
    arguments = {"TRAIN_STEPS": 1, "BATCH_SIZE": 2} | macros
    assert train(tmp_path / "run", str(tmp_path / "mistake.gin"), **arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("cot-flax: got ") and re.search(message, line)
