"""Recipes from teach to report, in processes as a user starts them, against a real server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.story_server import STORIES, StoryServer

from cot_flax import run_folder
from cot_flax.chains.samples import read_samples
from cot_flax.distill import run, stages
from cot_flax.lab.world.teacher import reference_rationale

SHARED = """
include 'runs/recipe.gin'
include 'models/world.gin'
include 'objectives/{objective}.gin'
from cot_flax.tasks import stories
BATCH_SIZE = 4
MESH_DATA = 1
LOG_PERIOD = 1
TASK_FEATURE_LENGTHS = {{"inputs": 96, "targets": 72}}
MAX_EXAMPLES = 4
MAX_DECODE_LENGTH = 8
TEST_TASKS = "stories_zero_shot_cot"
stories.teacher_store.directory = %TEACHER_STORE
"""
FIRST = """
OUT = "first"
STAGES = ("train",)
MIXTURE_OR_TASK_NAME = "stories_zero_shot_answer"
TRAIN_STEPS = 2
"""
SECOND = """
OUT = "second"
INITIAL_RECIPE = "first.gin"
QUESTIONS_FILE = "questions.jsonl"
EXEMPLARS_FILE = "worked.jsonl"
DATASET = "stories"
RECIPE = "fu2023"
TEACH_SHOTS = 2
TEACH_SAMPLES = 2
TEACHER_MODEL = "story"
TEACHER_URL = "{url}"
TEACHER_CONCURRENCY = 2
TEACHER_PROBE = False
STORE_TASK = "stories_teacher_zero_shot_cot"
PREPARE_WORKERS = 1
MIXTURE_OR_TASK_NAME = "stories_teacher_zero_shot_cot"
TRAIN_STEPS = 20
"""
QUESTIONS = 12
WORKED = [  # of which the server knows no story
    {"id": "a", "question": "What is 2 + 3?", "rationale": "2 + 3 = 5.", "answer": "5"},
    {"id": "b", "question": "What is 9 - 4?", "rationale": "9 - 4 = 5.", "answer": "5"},
]
COMMAND = (sys.executable, "-m", "cot_flax.cli", "distill", "--gin_file=second.gin")


@pytest.fixture
def folder(tmp_path):
    stories = [
        {"id": f"s{i}", "question": s.question, "answer": str(s.answer)}
        | {"rationale": reference_rationale(s)}
        for i, s in enumerate(STORIES[:QUESTIONS])
    ]
    for name, records in (("worked", WORKED), ("questions", stories)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "first.gin").write_text(SHARED.format(objective="cross_entropy") + FIRST)
    return tmp_path


def write_second(folder, url, **macros):
    more = "".join(f"{name} = {value!r}\n" for name, value in macros.items())
    (folder / "second.gin").write_text(
        SHARED.format(objective="topk_kl") + SECOND.format(url=url) + more
    )


def start(folder, *flags):
    variables = os.environ | {"COT_FLAX_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [*COMMAND, *flags], cwd=folder, env=variables, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process):
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def wait_until(process, reached):
    deadline = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_when(process, reached):
    """Kills the command with SIGKILL once `reached()` is true; what it started ends by itself."""
    wait_until(process, reached)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def trained(folder):
    """The steps of training in metrics.jsonl, as they stand there."""
    path = folder / "second" / "student" / run_folder.METRICS
    lines = path.read_text().splitlines() if path.exists() else []
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


@pytest.mark.slow
def test_a_run_that_is_killed_twice_pays_and_trains_once(folder):
    with StoryServer(delay=0.15) as server:
        write_second(folder, server.url)
        killed_when(start(folder), lambda: server.answered.total() >= 4)
        killed_when(start(folder), lambda: len(trained(folder)) >= 4)
        steps_before = trained(folder)
        code, printed = finish(start(folder))
        assert code == 0, printed
        # What was in flight at the kill, two at most, may be asked again; nothing else.
        assert server.answered.total() <= QUESTIONS + 2
        assert len(server.answered) == QUESTIONS
    assert len(steps_before) < 20
    assert trained(folder) == list(range(1, 21))  # each step once
    assert len(list(read_samples(folder / "second" / "samples.jsonl.gz"))) == 2 * QUESTIONS
    facts = run_folder.read_facts(folder / "second" / "student")
    assert facts["started_from"] == "first/student"
    runs = {name: folder / "second" / name for name in ("base", "student")}
    found = run_folder.read_runs(runs, "base")
    assert all(run.tasks["stories_zero_shot_cot"]["count"] == 4 for run in found)
    assert (folder / "second" / "report.html").exists()
    assert (folder / "second" / "export" / "model.safetensors").exists()
    for words in ("base", "student", "second/report.html", "cot-flax evaluate"):
        assert words in printed

    # Once more: nothing is left, and no server is there to be asked.
    requests = len(server.bodies)
    code, printed = finish(start(folder))
    assert code == 0 and printed.count("done before") == 1 + 7, printed
    assert len(server.bodies) == requests and trained(folder) == list(range(1, 21))

    # Another recipe is noticed before anything runs, and named.
    code, printed = finish(start(folder, "--gin.LEARNING_RATE=0.5", "--gin.TEACHER_TIMEOUT=9"))
    assert code == 2
    assert "train: LEARNING_RATE 0.001, not 0.5" in printed and "TIMEOUT" not in printed
    (folder / "questions.jsonl").write_text((folder / "questions.jsonl").read_text() + "\n")
    code, printed = finish(start(folder))
    assert code == 2 and "teach: another content of QUESTIONS_FILE" in printed

    # What goes on with more steps begins where it stopped.
    write_second(folder, server.url, TRAIN_STEPS=22, STAGES=("train", "evaluate", "report"))
    code, printed = finish(start(folder, "--accept-changes", "--gin.TEACHER_STORE=second/store"))
    assert code == 0, printed
    assert trained(folder) == list(range(1, 23))
    results = json.loads((folder / "second/student/test/results.json").read_text())
    assert results["checkpoint"].endswith("22")


@pytest.mark.slow
def test_a_stage_that_the_system_ends_is_named(folder):
    write_second(folder, "http://127.0.0.1:9/v1", STAGES=("train",), INITIAL_RECIPE=None,
                 MIXTURE_OR_TASK_NAME="stories_zero_shot_cot", OBJECTIVE=None)  # fmt: skip
    text = (folder / "second.gin").read_text().replace("topk_kl", "cross_entropy")
    (folder / "second.gin").write_text(text.replace("OBJECTIVE = None\n", ""))
    process = start(folder)
    wait_until(process, lambda: trained(folder))
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    code, printed = finish(process)
    assert code == 128 + signal.SIGKILL
    assert "train was ended by SIGKILL" in printed
    before = len(trained(folder))
    process = start(folder, "--gin.TRAIN_STEPS=2000", "--accept-changes")
    wait_until(process, lambda: len(trained(folder)) > before)
    process.terminate()
    code, printed = finish(process)
    assert code == 128 + signal.SIGTERM
    assert "train was stopped by SIGTERM" in printed and "which is saved" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"TEST_TASKS": None}, "no value for TEST_TASKS"),
        ({"INITIAL_RECIPE": None, "INITIAL_CHECKPOINT_PATH": "nowhere/base"}, "nowhere/base"),
        ({"QUESTIONS_FILE": None}, "no value for QUESTIONS_FILE"),
        ({"BATCH_SIZE": "four"}, "BATCH_SIZE"),
        ({"INITIAL_RECIPE": "second.gin"}, "comes back to second"),
    ],
)
def test_what_is_missing_is_one_line_before_anything_is_asked(folder, monkeypatch, more, message):
    monkeypatch.chdir(folder)
    with StoryServer() as server:
        write_second(folder, server.url, **{"INITIAL_RECIPE": None} | more)
        with pytest.raises(run.UserError, match=message):
            run.run(["second.gin"])
        assert not server.bodies


def test_a_fingerprint_is_of_what_is_whole(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").write_text('{"files": {"a": "1"}}')
    (store / "a").touch()
    assert stages.fingerprint(str(store)) == ""  # not completed
    (store / "COMPLETED").touch()
    whole = stages.fingerprint(str(store))
    assert whole
    (store / "manifest.json").write_text('{"files": {"a": "2"}}')
    assert stages.fingerprint(str(store)) not in ("", whole)
    (store / "a").unlink()
    assert stages.fingerprint(str(store)) == ""
    run_ = tmp_path / "run"
    (run_ / "checkpoints" / "3").mkdir(parents=True)
    run_folder.write_facts(run_, {"id": "x", "training": {"steps": 4}})
    assert stages.fingerprint(str(run_)) == ""
    (run_ / "checkpoints" / "4").mkdir()
    assert stages.fingerprint(str(run_)) == "x@4"
    assert stages.fingerprint(str(tmp_path / "nothing")) == ""
    results = tmp_path / "results"
    results.mkdir()
    for left, ended in ((["a"], False), ([], True)):
        (Path(results) / "results.json").write_text(json.dumps({"tasks": {}, "unfinished": left}))
        assert bool(stages.fingerprint(str(results))) == ended
