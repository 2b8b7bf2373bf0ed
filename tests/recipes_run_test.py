"""Recipes from teach to report at tiny size, as `cot-flax distill` runs them; minutes."""

import json
import os
import subprocess
import sys

import pytest
from support.story_server import STORIES, StoryServer

from cot_flax import run_folder
from cot_flax.lab.world.teacher import reference_rationale
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

WORKED = [  # of which the server knows no story
    {"id": "a", "question": "What is 2 + 3?", "rationale": "2 + 3 = 5.", "answer": "5"},
    {"id": "b", "question": "What is 9 - 4?", "rationale": "9 - 4 = 5.", "answer": "5"},
]
TINY = {
    "INITIAL_CHECKPOINT_PATH": None,
    "T5_VOCABULARY_FILE": str(VOCABULARY_PATH),
    "GSM8K_DIRECTORY": "gsm8k",
    "TASK_FEATURE_LENGTHS": {"inputs": 640, "targets": 96},
    "EPOCHS": None,
    "TRAIN_STEPS": 12,  # after the warm-up
    "BATCH_SIZE": 4,
    "MICROBATCHES": 2,
    "MESH_DATA": 1,
    "MAX_UNKNOWN": 1.0,
    "MAX_UNKNOWN_CHAINS": 1.0,
    "MAX_UNKNOWN_PIECES": 1.0,
    "MAX_EXAMPLES": 2,
    "MAX_DECODE_LENGTH": 4,
    "PREPARE_WORKERS": 1,
    "gsm8k.validation.questions": "last_500",  # the paper's 200 are of the whole file
    "t5.T5Config.vocab_size": 384,  # the world's pieces and T5's extra ids
}
ASKED = {
    "QUESTIONS_FILE": "gsm8k/train.jsonl",
    "TEACHER_MODEL": "story",
    "TEACHER_PROBE": False,
    "TEACHER_CONCURRENCY": 2,
}
SHOWN = {"EXEMPLARS_FILE": "worked.jsonl", "TEACH_SHOTS": 2}
RECIPES = {
    "fu2023_flan_t5_base": SHOWN | {"TEACH_SAMPLES": 2},
    "fu2023_flan_t5_xl_match_sample": SHOWN | {"TEACH_SAMPLES": 2},
    "magister2022_t5_small": SHOWN | {"DATASET": "gsm8k"},
}


@pytest.fixture
def folder(tmp_path):
    """Stories in GSM8K's files, and 500 questions that are the validation split."""
    (tmp_path / "gsm8k").mkdir()
    lines = [
        json.dumps({"question": s.question, "answer": f"{reference_rationale(s)}\n#### {s.answer}"})
        for s in STORIES
    ]
    held_out = [
        json.dumps({"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"})
        for n in range(500)
    ]
    (tmp_path / "gsm8k" / "train.jsonl").write_text("\n".join([*lines[:30], *held_out]) + "\n")
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(lines[30:]) + "\n")
    (tmp_path / "worked.jsonl").write_text("".join(json.dumps(item) + "\n" for item in WORKED))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_from_teach_to_report(name, folder):
    with StoryServer() as server:
        flags = TINY | ASKED | {"TEACHER_URL": server.url, "OUT": "out"} | RECIPES[name]
        done = subprocess.run(
            [sys.executable, "-m", "cot_flax.cli", "distill", f"--gin_file=recipes/{name}.gin"]
            + ["--gin_file=models/world.gin"]
            + [f"--gin.{key}={value!r}" for key, value in flags.items()],
            cwd=folder, env=os.environ | {"COT_FLAX_CACHE": str(folder / "cache")},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = run_folder.read_results(folder / "out" / "student" / "test")
    assert results and (folder / "out" / "report.html").exists()
