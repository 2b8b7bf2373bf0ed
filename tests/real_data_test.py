"""Flan-T5 small's shape on real GSM8K and the real Codex chains, through the command line."""

import json

import pytest

from cot_flax import cli, run_folder

pytestmark = pytest.mark.slow

STEPS = 20


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory):
    """One run from the Codex dump to results on 50 test questions; returns its folder."""
    folder = tmp_path_factory.mktemp("real")
    vocabulary = shared_data / "t5_vocab" / "spiece.model"
    local = [
        f"--gin.GSM8K_DIRECTORY='{shared_data / 'gsm8k'}'",
        f"--gin.T5_VOCABULARY_FILE='{vocabulary}'",
    ]
    _cot_flax(
        "teach",
        "import-codex",
        shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl",
        "--out",
        folder / "samples.jsonl",
    )
    _cot_flax(
        "prepare",
        folder / "samples.jsonl",
        "--out",
        folder / "store",
        "--task=gsm8k_teacher_zero_shot_cot",
        f"--gin.cot_flax.data.features.t5_vocabulary_file.path='{vocabulary}'",
    )
    _cot_flax(
        "train",
        "--gin_file=experiments/gsm8k_teacher_kl.gin",
        "--gin_file=models/t5_1_1_small.gin",
        "--gin.INITIAL_CHECKPOINT_PATH=None",
        f"--gin.MODEL_DIR='{folder / 'run'}'",
        f"--gin.TEACHER_STORE='{folder / 'store'}'",
        "--gin.MIXTURE_OR_TASK_NAME='gsm8k_teacher_zero_shot_cot'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 112, 'targets': 80}",
        f"--gin.TRAIN_STEPS={STEPS}",
        "--gin.BATCH_SIZE=4",
        "--gin.PACK=False",
        "--gin.EVALUATORS=()",
        "--gin.MESH_DATA=1",
        *local,
    )
    _cot_flax(
        "evaluate",
        "--gin_file=experiments/gsm8k_evaluate.gin",
        f"--gin.CHECKPOINT_PATH='{folder / 'run'}'",
        f"--gin.EVAL_OUTPUT_DIR='{folder / 'test'}'",
        "--gin.MIXTURE_OR_TASK_NAME='gsm8k_zero_shot_cot'",
        "--gin.MAX_EXAMPLES=50",
        "--gin.DECODE_BATCH_SIZE=50",
        "--gin.MAX_DECODE_LENGTH=64",
        "--gin.MESH_DATA=1",
        *local,
    )
    return folder


def _cot_flax(*arguments):
    cli.app([str(argument) for argument in arguments], standalone_mode=False)


def test_the_store_keeps_the_chains_that_pass_the_gate_and_are_no_copies(run):
    manifest = json.loads((run / "store" / "manifest.json").read_text())
    assert manifest["tally"]["fates"] == {"kept": 47, "repeated": 4, "malformed": 1}


def test_the_loss_falls_on_soft_targets(run):
    rows = [row for row in run_folder.read_metrics(run / "run") if row["kind"] == "train"]
    first, last = rows[0], rows[-1]
    assert last["step"] == STEPS
    assert last["loss"] < 0.7 * first["loss"]
    assert last["kl"] < 0.7 * first["kl"]
    assert last["teacher_fraction"] == 1.0


def test_fifty_test_questions_are_decoded_and_scored(run):
    results = json.loads((run / "test" / "results.json").read_text())
    assert results["tasks"]["gsm8k_zero_shot_cot"]["count"] == 50
    rows = [
        json.loads(line) for line in (run / "test" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == [f"gsm8k-test-{i}" for i in range(50)]
    assert rows[0]["gold"] == "18"
    assert all(row["prompt"].startswith("Q: ") for row in rows)
