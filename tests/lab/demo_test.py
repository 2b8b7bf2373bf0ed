"""The demo's path, whole: at a size of its own in this process, and as a user runs it (slow)."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout

import gin
import jax
import pytest

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.lab import demo as lab
from cot_flax.lab.demo import run

SMALL = lab.Size(stories=120, samples=2, steps=20, max_examples=16)
TINY = {
    "BATCH_SIZE": 8,
    "t5.T5Config.num_encoder_layers": 1,
    "t5.T5Config.num_decoder_layers": 1,
}
STUDENTS = ("world_answer", "world_cot_ce", "world_cot_kl", "world_mix_kl")


@pytest.fixture(scope="module", params=["small", pytest.param("fast", marks=pytest.mark.slow)])
def demo(request, tmp_path_factory):
    """Runs the demo once; returns its folder, what it printed, and its size."""
    out = tmp_path_factory.mktemp("demo")
    if request.param == "fast":
        yield out, _as_a_user(out), lab.FAST
        return
    cache = str(tmp_path_factory.mktemp("compiled"))
    settings = {  # and their defaults
        "jax_compilation_cache_dir": (cache, None),
        "jax_persistent_cache_min_compile_time_secs": (0.1, 1.0),
        "jax_disable_most_optimizations": (True, False),
    }
    for name, (ours, _) in settings.items():
        jax.config.update(name, ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "FAST", SMALL)
        train = lab._train
        patch.setattr(lab, "_train", lambda *given: train(*given[:-1], given[-1] | TINY))
        with redirect_stdout(io.StringIO()) as printed:
            run(out=out, seed=0, fast=True)
        yield out, printed.getvalue(), SMALL
    for name, (_, default) in settings.items():
        jax.config.update(name, default)
    gin.clear_config()


def _as_a_user(out):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "cot_flax.cli", "demo", "--fast", "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_prints_the_table_and_the_path_of_the_report(demo):
    out, printed, _ = demo
    assert "few-shot + zero-shot mix, KL" in printed
    assert "zero-shot" in printed
    assert str(out / "report.html") in printed


def test_the_report_shows_every_student(demo):
    out, *_ = demo
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
    assert tasks["stories_few_shot_cot"]["count"] == demo[2].max_examples
    assert (folder / "config.gin").exists()


@pytest.mark.parametrize("other", [{"seed": 1, "fast": True}, {"seed": 0, "fast": False}])
def test_another_demo_replaces_nothing_of_one_that_is_there(demo, other):
    manifest = demo[0] / "store" / "manifest.json"
    before, begun = manifest.read_bytes(), f"with a demo of seed 0 and {demo[2].steps} steps"
    with pytest.raises(UserError, match=f"{begun}; expected a folder"):
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
