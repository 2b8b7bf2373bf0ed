"""Recipes from teach to report at tiny size, as `cot-flax distill` runs them; minutes."""

import json
import logging
import os
import re
import subprocess
import sys

import gin
import jax
import pytest
from support.story_server import STORIES, StoryServer

from cot_flax import cli, run_folder
from cot_flax.lab.world.teacher import reference_rationale
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

WORKED = [  # of which the server knows no story
    {"id": "a", "question": "What is 2 + 3?", "rationale": "2 + 3 = 5.", "answer": "5"},
    {"id": "b", "question": "What is 9 - 4?", "rationale": "9 - 4 = 5.", "answer": "5"},
]
TINY = {
    "INITIAL_CHECKPOINT_PATH": None,
    "T5_VOCABULARY_FILE": str(VOCABULARY_PATH),
    "EPOCHS": None,
    "BATCH_SIZE": 4,
    "MICROBATCHES": 2,
    "MESH_DATA": 1,
    "MAX_UNKNOWN_PIECES": 1.0,
    "MAX_EXAMPLES": 2,
    "MAX_DECODE_LENGTH": 4,
    "SCAN_LAYERS": False,
    "t5.T5Config.vocab_size": 384,  # the world's pieces and T5's extra ids
    "t5.T5Config.emb_dim": 16,
    "t5.T5Config.num_heads": 2,
    "t5.T5Config.num_encoder_layers": 1,
    "t5.T5Config.num_decoder_layers": 1,
    "t5.T5Config.head_dim": 8,
    "t5.T5Config.mlp_dim": 32,
}
ASKED = {
    "TRAIN_STEPS": 12,  # after fu2023's warm-up
    "TASK_FEATURE_LENGTHS": {"inputs": 640, "targets": 96},
    "OUT": "out",
    "TEACHER_MODEL": "story",
    "TEACHER_PROBE": False,
    "TEACHER_CONCURRENCY": 2,
    "PREPARE_WORKERS": 1,
    "MAX_UNKNOWN": 1.0,
    "MAX_UNKNOWN_CHAINS": 1.0,
}
ON_GSM8K = {
    "QUESTIONS_FILE": "gsm8k/train.jsonl",
    "GSM8K_DIRECTORY": "gsm8k",
    "EXEMPLARS_FILE": "worked.jsonl",
    "TEACH_SHOTS": 2,
}
FU = {
    "TEACH_SAMPLES": 2,
    "gsm8k.validation.questions": "last_500",  # theirs are of the whole file
    "EVAL_PERIOD": 6,
    "evaluators.AccuracyEvaluator.max_examples": 2,
}
TAUGHT = {
    "fu2023_flan_t5_base": ON_GSM8K | FU,
    "fu2023_flan_t5_xl_match_sample": ON_GSM8K | FU,
    "magister2022_t5_small": ON_GSM8K | {"DATASET": "gsm8k"},
    "ho2022_flan_t5_small": {
        "D": 2,
        "DATASET": "multiarith",
        "QUESTIONS_FILE": "ho2022/dataset/multiarith.json",
        "HO2022_DIRECTORY": "ho2022",
    },
}
STAGE1 = {
    "TRAIN_STEPS": 2,
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 64},
    "COT_COLLECTION_DIRECTORY": "collection.json",
    "BBH_DIRECTORY": "bbh",
    "TEST_TASKS": ("bbh_navigate_zero_shot_cot",),
    "MIN_NEW_TOKENS": 2,
}
STAGE2 = {
    "TRAIN_STEPS": 2,
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 64},
    "DATA": {"train": "notes.jsonl", "test": "notes_test.jsonl"},
    "MIN_NEW_TOKENS": 2,
    "OUT": "out",
}


@pytest.fixture
def folder(tmp_path):
    """All files that the recipes read, in a few lines each."""

    def lines(name, records):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    def whole(name, found):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(found))

    solved = [
        {"question": s.question, "answer": f"{reference_rationale(s)}\n#### {s.answer}"}
        for s in STORIES
    ]
    held_out = [  # the validation split
        {"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(500)
    ]
    lines("gsm8k/train.jsonl", [*solved[:30], *held_out])
    lines("gsm8k/test.jsonl", solved[30:])
    lines("worked.jsonl", WORKED)
    stories = [{"question": s.question, "answer": str(s.answer)} for s in STORIES]
    whole("ho2022/dataset/multiarith.json", stories)
    entries = [
        {"source": f"What is {n} + 1?", "rationale": f"{n} + 1 = {n + 1}.", "target": str(n + 1)}
        for n in range(20)
    ]
    whole("collection.json", {str(n): entry for n, entry in enumerate(entries)})
    asked = [{"input": f"Turn around {n} times. Are you back?", "target": "Yes"} for n in range(4)]
    whole("bbh/bbh/navigate.json", {"examples": asked})
    (tmp_path / "bbh" / "cot-prompts").mkdir()
    prompt = "Are you back?\n\nQ: One turn?\nA: Let's think step by step.\nSo the answer is No."
    (tmp_path / "bbh" / "cot-prompts" / "navigate.txt").write_text(prompt)
    labels = ("entailment", "neutral", "contradiction")
    notes = [
        {"question": f"Note {n}?", "rationale": f"It says {n}.", "answer": labels[n % 3]}
        for n in range(90)
    ]
    lines("notes.jsonl", notes[:80])
    lines("notes_test.jsonl", notes[80:])
    return tmp_path


def distill(name, folder, *options, tiny=TINY, **flags):
    """Runs a recipe whole, and returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "cot_flax.cli", "distill", f"--gin_file=recipes/{name}.gin"]
        + [f"--gin.{key}={value!r}" for key, value in (tiny | flags).items()]
        + [*options],
        cwd=folder, env=os.environ | {"COT_FLAX_CACHE": str(folder / "cache")},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(out):
    results = run_folder.read_results(out / "student" / "test")
    assert results and (out / "report.html").exists() and (out / "export").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_a_recipe_goes_from_teach_to_report(name, folder):
    with StoryServer() as server:
        distill(name, folder, **ASKED | {"TEACHER_URL": server.url} | TAUGHT[name])
    check(folder / "out")


DATA = {
    "fu2023_flan_t5_xxl": ON_GSM8K | {"gsm8k.validation.questions": "last_500"},
    "magister2022_t5_11b": TAUGHT["magister2022_t5_small"],
    "ho2022_t5_large": TAUGHT["ho2022_flan_t5_small"],
    "kim2023_stage1_xl": {"COT_COLLECTION_DIRECTORY": "collection.json", "BBH_DIRECTORY": "bbh"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_a_dry_run_says_what_a_recipe_takes_before_any_chain_is_there(name, folder):
    flags = {"T5_VOCABULARY_FILE": str(VOCABULARY_PATH)} | DATA[name]
    if "QUESTIONS_FILE" in flags:
        flags |= {"TEACHER_MODEL": "story", "TEACHER_URL": "http://127.0.0.1:9/v1"}
    printed = distill(name, folder, "--dry-run", tiny={}, **flags)
    assert re.search(
        r"training: ([\d,]{9,} parameters, [\d,]+ steps of |EPOCHS \d+ of a )", printed
    )


@pytest.fixture
def called(folder, monkeypatch):
    """Calls a verb in this process, which is then left as it was found."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    level, environment = logging.getLogger("absl").level, dict(os.environ)
    monkeypatch.setenv("COT_FLAX_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["cot-flax", *words])
        gin.clear_config()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    yield call
    for name, value in before.items():
        jax.config.update(name, value)
    logging.getLogger("absl").setLevel(level)
    os.environ.clear()
    os.environ.update(environment)
    gin.clear_config()


def test_the_verb_of_each_stage_takes_a_recipe(folder, called):
    name = "kim2023_stage1_xl"
    recipe = f"--gin_file=recipes/{name}.gin"
    flags = [f"--gin.{key}={value!r}" for key, value in (TINY | STAGE1).items()]
    assert called("train", recipe, *flags) == called("evaluate", recipe, *flags) == 0
    out = f"runs/{name}"
    assert called("report", f"{out}/student", "--out", f"{out}/report.html") == 0
    assert run_folder.read_results(folder / out / "student" / "test")
    assert (folder / out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
def test_stage_2_starts_from_the_student_of_stage_1(how, folder):
    distill("kim2023_stage1_xl", folder, **STAGE1)
    printed = distill(f"kim2023_stage2_mednli_{how}", folder, **STAGE2)
    assert "64 questions (TRAIN_QUESTIONS) were drawn by the seed" in printed
    check(folder / "runs" / "kim2023_stage1_xl")
    check(folder / "out")
    first = folder / "runs" / "kim2023_stage1_xl" / "student"
    facts = run_folder.read_facts(folder / "out" / "student")
    assert facts["started_from"] == str(first.relative_to(folder))
