"""`cot-flax train` and `evaluate` as two real processes of one run, and as one alone."""

import json
import os
import socket
import subprocess
import sys

import pytest

from cot_flax import run_folder

# A minute; tests/training/hosts_test.py has what one host and several must have in common.
pytestmark = pytest.mark.slow

TRAIN = ["train", "--gin_file=experiments/world_cot_ce.gin", "--gin.TRAIN_STEPS=3"]
TRAIN += ["--gin.BATCH_SIZE=4", "--gin.LOG_PERIOD=1", "--gin.MESH_DATA=0", "--gin.DATA_SHARDS=2"]
TRAIN += ["--gin.WARMUP_STEPS=0", "--gin.EVAL_PERIOD=3"]
TRAIN += ["--gin.evaluators.AccuracyEvaluator.max_examples=4"]
TRAIN += [f"--gin.t5.T5Config.num_{side}coder_layers=1" for side in ("en", "de")]
TASK = "--gin.MIXTURE_OR_TASK_NAME='stories_zero_shot_cot'"
EVALUATE = ["evaluate", "--gin_file=experiments/world_evaluate.gin", "--gin.MESH_DATA=0"]
EVALUATE += ["--gin.DECODE_BATCH_SIZE=3", "--gin.MAX_EXAMPLES=5", "--gin.NUM_SAMPLES=2"]
EVALUATE += ["--gin.TEMPERATURE=0.5"]
SMALL = [f"--gin.stories.size.{split}=20" for split in ("train", "validation", "test")]


def start(command, out, *flags, devices):
    words = [*command, TASK, *SMALL, *flags]
    words.append(f"--gin.{'MODEL_DIR' if command is TRAIN else 'EVAL_OUTPUT_DIR'}='{out}'")
    count = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", "from cot_flax.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",  # the last one counts
            "COT_FLAX_CACHE": f"{out.parent}/cache",
        },
    )


def run(command, folder, *flags):
    """Alone in folder/one, with two devices; as two processes of one device in folder/two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    company = f"--coordinator_address={address}", "--process_count=2"
    started = [start(command, folder / "one", *flags, devices=2)]
    for index in range(2):
        flag = f"--process_index={index}"
        started.append(start(command, folder / "two", *flags, *company, flag, devices=1))
    found = [(*process.communicate(timeout=200), process.returncode) for process in started]
    for _, err, code in found:
        assert code == 0, err
    return [out for out, _, _ in found]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(TRAIN, folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, run(EVALUATE, folder, f"--gin.CHECKPOINT_PATH='{trained / 'two'}'")


def test_training_and_the_accuracy_in_its_middle_are_the_same(trained):
    one, two = (run_folder.read_metrics(str(trained / name)) for name in ("one", "two"))
    assert [row["kind"] for row in two] == ["train"] * 3 + ["eval"]
    for row, other in zip(one[:3], two[:3], strict=True):
        for name in ("loss", "gradient_norm", "token_accuracy"):
            assert other[name] == pytest.approx(row[name], rel=1e-5)
    assert one[3] == two[3]
    assert one[3].keys() > {"stories_zero_shot_cot/accuracy"}
    assert (trained / "two" / "config.gin").read_text().count("DATA_SHARDS = 2") == 1


def test_evaluation_is_the_same(evaluated):
    folder, _ = evaluated
    one, two = ((folder / n / "predictions.jsonl").read_text() for n in ("one", "two"))
    assert one == two
    assert len(one.splitlines()) == 10
    assert len({json.loads(line)["text"] for line in one.splitlines()}) > 5
    one, two = (json.loads((folder / n / "results.json").read_text()) for n in ("one", "two"))
    assert one | {"date": ""} == two | {"date": ""}


def test_one_process_prints_the_results(evaluated):
    _, (alone, first, second) = evaluated
    assert "stories zero-shot CoT" in first
    assert first.splitlines()[-3:] == alone.splitlines()[-3:]
    assert "stories" not in second
