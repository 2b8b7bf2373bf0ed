"""A verb whose extra is not installed says which one in a line; the core's verbs need none."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cot_flax.errors import EXTRAS, missing_extra

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
WITHOUT = """
import sys
hidden, *sys.argv = sys.argv[1:]
for name in hidden.split(","):
    sys.modules[name] = None  # an import of it raises, as of one that is not installed
from cot_flax.cli import main
main()
"""
SAMPLE = "teach sample questions.jsonl --out=samples.jsonl --recipe=ho2022 --dataset=d"
SERVER = "--base-url=http://127.0.0.1:9/v1 --model=m"


def run_without(hidden, words, folder):
    command = [sys.executable, "-c", WITHOUT, ",".join(hidden), "cot-flax", *words.split()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)


@pytest.mark.parametrize(
    "extra, words",
    [
        ("data", "demo"),
        ("data", "train --gin_file=experiments/world_base.gin --gin.MODEL_DIR=run"),
        (
            "data",
            "evaluate --gin_file=experiments/world_evaluate.gin --gin.CHECKPOINT_PATH=run "
            "--gin.EVAL_OUTPUT_DIR=test",
        ),
        ("data", "prepare samples.jsonl --out=store --task=t"),
        ("teach", f"{SAMPLE} {SERVER}"),
        ("report", "report run"),
        ("report", "demo"),
        ("serve", "serve --checkpoint=."),
    ],
)
def test_a_verb_without_its_extra_says_which(extra, words, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    done = run_without(EXTRAS[extra], words, tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert re.fullmatch(
        rf"cot-flax: got no ({'|'.join(EXTRAS[extra])}); expected the extra `{extra}`; "
        rf'run: pip install "cot-flax\[{extra}\]"',
        line,
    )


def test_what_windows_lacks_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "questions.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    done = run_without(["fcntl"], f"{SAMPLE} {SERVER}", tmp_path)
    line = "cot-flax: got no fcntl on Windows; expected Linux or macOS; use WSL"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, line)
    monkeypatch.setattr(sys, "platform", "win32")
    error = missing_extra(ModuleNotFoundError("No module named 'tensorflow_text'"))
    assert str(error) == "got no tensorflow_text on Windows; expected Linux or macOS; use WSL"


def test_the_core_alone_has_what_export_needs(tmp_path):
    hidden = [library for libraries in EXTRAS.values() for library in libraries]
    done = run_without(hidden, "export --checkpoint=no_folder --format=t5x --out=out", tmp_path)
    assert done.returncode == 2
    assert "no_folder" in done.stderr and "extra" not in done.stderr


def test_every_named_library_comes_with_its_extra_and_every_extra_is_named():
    lists = {}
    for node in ast.parse(SETUP.read_text()).body:
        if isinstance(node, ast.Assign):
            words = [word.value for word in ast.walk(node) if isinstance(word, ast.Constant)]
            names = {re.match(r"[\w-]+", word)[0].replace("-", "_") for word in words}
            others = [lists[name.id] for name in ast.walk(node.value) if isinstance(name, ast.Name)]
            lists[node.targets[0].id] = names.union(*others)
    for extra, libraries in EXTRAS.items():
        assert set(libraries) <= lists[extra.upper()]
    in_setup = set().union(*(lists[extra.upper()] for extra in EXTRAS))
    assert in_setup == {name for libraries in EXTRAS.values() for name in libraries}
