"""The demo's --fast path, whole, as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.lab.demo import run

STUDENTS = ("world_answer", "world_cot_ce", "world_cot_kl", "world_mix_kl")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Runs the demo once; returns its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "cot_flax.cli", "demo", "--fast", "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_prints_the_table_and_the_path_of_the_report(demo):
    out, printed = demo
    assert "few-shot + zero-shot mix, KL" in printed
    assert "zero-shot" in printed
    assert str(out / "report.html") in printed


def test_the_report_shows_every_student(demo):
    out, _ = demo
    page = (out / "report.html").read_text()
    for label in ("answer only", "CoT, cross entropy", "CoT, top-5 KL"):
        assert label in page


@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_learns_and_is_evaluated(demo, student):
    folder = demo[0] / student
    rows = [row for row in run_folder.read_metrics(folder) if row["kind"] == "train"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    tasks = json.loads((folder / "test" / "results.json").read_text())["tasks"]
    assert set(tasks["stories_zero_shot_cot"]["by_steps"]) == {"1", "2", "3", "4"}
    assert tasks["stories_few_shot_cot"]["count"] == 40
    assert (folder / "config.gin").exists()


@pytest.mark.parametrize("other", [{"seed": 1, "fast": True}, {"seed": 0, "fast": False}])
def test_another_demo_replaces_nothing_of_one_that_is_there(demo, other):
    manifest = demo[0] / "store" / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(UserError, match="with a demo of seed 0 and 60 steps; expected a folder"):
        run(out=demo[0], **other)
    assert manifest.read_bytes() == before


def test_the_two_chain_students_see_the_same_chains_in_the_same_order(demo):
    first = [
        next(row for row in run_folder.read_metrics(demo[0] / name) if row["kind"] == "train")
        for name in ("world_cot_ce", "world_cot_kl")
    ]
    assert "kl" in first[1]
    assert "kl" not in first[0]
    # Both start from the same weights, so ten steps in they are close.
    assert first[0]["cross_entropy"] == pytest.approx(first[1]["cross_entropy"], rel=0.1)
