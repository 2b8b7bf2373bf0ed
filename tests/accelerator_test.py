"""benchmarks/accelerator.sh at its tiny size, without the packages that a GPU machine lacks."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ABSENT = (
    *("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin", "t5x", "openai"),
    *("tensorboardX", "math_verify", "ijson", "zstandard", "stamina", "gguf", "apache_beam"),
)
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {ABSENT!r}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
# What has tests of its own, and torch, wait for --slow.
CHEAP = ("correctness", "head loss")
DEAR = (
    *("training base", "decoding", "training xl", "training large", "training beside transformers"),
    "decoding beside transformers",
)


@pytest.fixture
def benchmarks(monkeypatch):
    """What a user starts as `-m accelerator`, to be imported."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def run(stages, folder):
    """The result and standard output of a run on a CPU, whose compiler is told to be quick."""
    (folder / "sitecustomize.py").write_text(WITHOUT)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = ["bash", ROOT / "benchmarks" / "accelerator.sh", "--out", folder, "--only", *stages]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "accelerator-cpu-tiny.json").read_text()), done.stdout


def errors(tree) -> list:
    """Every message of something that failed, wherever it lies."""
    if not isinstance(tree, dict):
        return []
    own = [tree["error"]] if "error" in tree else []
    return own + [*tree.get("failed before", [])] + [e for v in tree.values() for e in errors(v)]


def test_correctness_and_speed_without_an_accelerator(tmp_path):
    found, printed = run(CHEAP, tmp_path)
    assert errors(found) == []
    assert {stage["ended"] for stage in found["stages"].values()} == {"whole"}
    assert found["device"]["kind"] == "cpu" and found["device"]["tiny"]
    assert len(found["correctness"]) == 9
    for name, check in found["correctness"].items():
        assert check["passes"], name
        assert bool(check["bounds"]) == ("64 keys more" not in name)
    (forms,) = found["head loss"].values()
    assert "dense_over_ours" in forms["ours, 8 tiles"]
    assert "| greedy tokens in float32 | passes |" in printed


@pytest.mark.slow
def test_the_other_stages_and_transformers(tmp_path):
    pytest.importorskip("transformers")
    found, printed = run(DEAR, tmp_path)
    assert errors(found) == []
    for case in ("base 64/32, KL", "base 64/32, cross entropy"):
        row = found["training"][case]
        seconds = row["step_seconds"]
        assert seconds["min"] <= seconds["median"] <= seconds["max"]
        assert row["tokens_per_second"] == round(row["batch"] * (64 + 32) / seconds["median"])
        assert row["mfu"] > 0 and row["loss"][1] < row["loss"][0]  # the same batch again and again
        assert case in printed
    assert all(row["written"] > 0.9 for row in found["decoding"].values())
    for place in ("training beside transformers", "decoding beside transformers"):
        cases = {case: row for case, row in found[place].items() if case != "contenders"}
        assert len(cases) == 2
        assert all(row["transformers"]["times_as_long"]["min"] > 0 for row in cases.values())


def test_what_another_call_of_the_same_commit_measured_stays(benchmarks, tmp_path):
    from accelerator import __main__ as conductor

    def call(stage, value, commit="1"):
        result = conductor.Result(tmp_path, tiny=False)
        result.found["commit"] = commit
        result.take(["device"], {"kind": "H100", "tiny": False})
        result.take([stage, "case"], value)
        result.take(["stages", stage], {"ended": "whole"})
        return json.loads((tmp_path / "accelerator-h100.json").read_text())

    call("training", 1)
    both = call("decoding", 2)
    assert (both["training"], both["decoding"]) == ({"case": 1}, {"case": 2})
    assert [*both["stages"]] == ["training", "decoding"]
    assert "training" not in call("decoding", 3, commit="2")


def test_what_is_cut_off_leaves_what_it_measured(benchmarks, tmp_path, monkeypatch):
    from accelerator import __main__ as conductor

    stage = tmp_path / "stage"
    lines = [[["device"], {"kind": "NVIDIA H100 80GB HBM3", "tiny": False}], [["training", "a"], 1]]
    stage.write_text(
        f"#!/bin/sh\ncat << 'E'\n{chr(10).join(map(json.dumps, lines))}\nE\nsleep 60\n"
    )
    stage.chmod(0o755)
    monkeypatch.setattr(conductor.sys, "executable", str(stage))
    result = conductor.Result(tmp_path, tiny=False)
    ended = conductor.run_stage("training base", 2, result, str(tmp_path))
    assert ended == "cut off after 2 s"
    kept = json.loads((tmp_path / "accelerator-nvidia-h100-80gb-hbm3.json").read_text())
    assert kept["training"] == {"a": 1}
    stage.write_text("#!/bin/sh\nexit 3\n")
    assert conductor.run_stage("decoding", 60, result, str(tmp_path)) == "exit code 3"
    result.take(["correctness", "a"], {"passes": True})
    result.take(["stages", "correctness"], {"seconds": 1, "ended": "cut off after 1 s"})
    assert result.is_correct(wanted=False) and not result.is_correct(wanted=True)
    result.take(["stages", "correctness"], {"seconds": 1, "ended": "whole"})
    assert result.is_correct(wanted=True)
    result.take(["correctness", "b"], {"passes": False})
    assert not result.is_correct(wanted=True)


def test_what_is_not_finite_never_passes(benchmarks):
    from accelerator import correctness

    assert correctness.relative([np.array([3.0, 4.0])], [np.array([3.0, 5.0])]) == 1 / math.sqrt(34)
    assert correctness.verdict({"loss": 1e-5}, {"loss": 1e-4})["passes"]
    assert not correctness.verdict({"loss": 2e-4}, {"loss": 1e-4})["passes"]
    lost = correctness.relative(np.array([1.0, np.nan]), np.ones(2))
    found = correctness.verdict({"loss": lost, "other": 1.0}, {"loss": 1e-4})
    assert found == {
        "errors": {"loss": None, "other": 1.0},
        "bounds": {"loss": 1e-4},
        "passes": False,
    }


def test_what_a_run_that_fails_gives_way_to(benchmarks):
    from accelerator import speed

    run = speed.experiment(speed.TINY, 64, 32, "KL")
    assert run.batch_size == 2  # 192 positions
    full = RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    smaller = speed.fallback(run, full)
    assert (smaller.batch_size, smaller.model) == (1, run.model)
    assert speed.fallback(smaller, full) is None
    plain = speed.fallback(run, ValueError("no cuDNN"))
    assert plain.model == dataclasses.replace(run.model, attention="xla")
    assert speed.fallback(plain, ValueError("no cuDNN")) is None


def test_sizes_are_those_of_the_gin_files(benchmarks):
    from accelerator import speed

    for name, size in speed.SIZES.items():
        text = (ROOT / "gin" / "models" / f"t5_1_1_{name}.gin").read_text()
        shape = {key: int(value) for key, value in re.findall(r"^  (\w+) = (\d+)$", text, re.M)}
        assert shape and dataclasses.replace(size.model, **shape) == size.model
