"""`cot-flax experiments`: what it lists, shows and copies, and what a shell completes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from cot_flax import cli, configuration
from cot_flax.cli import experiments
from cot_flax.configuration import gin_root
from cot_flax.errors import UserError

GIN_FILES = sorted(path.relative_to(gin_root()).as_posix() for path in gin_root().rglob("*.gin"))
SHARED = (
    "experiments/gsm8k.gin",
    "experiments/instructed.gin",
    "experiments/world.gin",
)  # what others include


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    yield
    gin.clear_config()


def call(*arguments):
    """Runs the entry point; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cot-flax", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


def test_all_gin_files_are_listed_with_their_headers_and_the_examples(capfd):
    assert call("experiments") == 0
    lines = capfd.readouterr().out.splitlines()
    named = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert sorted(named) == sorted([*GIN_FILES, "examples/triage"])
    for name in GIN_FILES:
        first = (gin_root() / name).read_text().split("\n")[0].removeprefix("# ")
        assert f"  {first}".rstrip(":") in named[name]
    assert lines[0] == "experiments" and "examples" in lines


def test_on_a_terminal_a_long_line_is_wrapped_below_its_text(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = list(experiments._wrapped("  a/b.gin  one two three four five six seven", 11))
    assert lines == ["  a/b.gin  one two three four five six", "           seven"]


@pytest.mark.parametrize("name", [n for n in GIN_FILES if n.startswith("experiments/")])
def test_every_experiment_has_its_command_in_its_header(name):
    """It is where the verbs find which experiments are theirs."""
    text = (gin_root() / name).read_text()
    verb = "evaluate" if name.endswith("_evaluate.gin") else "train"
    assert (f"#   cot-flax {verb} --gin_file={name} " in text) == (name not in SHARED)


def test_a_file_is_shown_with_its_macros(capfd):
    assert call("experiments", "show", "gsm8k_teacher_kl") == 0
    out = capfd.readouterr().out
    file = gin_root() / "experiments" / "gsm8k_teacher_kl.gin"
    text, required, others = (
        out.split("\n\nMust be given, as --gin.NAME=VALUE:\n")[0],
        *(part.partition(":\n")[2] for part in out.split("\n\n")[-3:-1]),
    )
    assert text == file.read_text().rstrip()
    assert [line.split() for line in required.splitlines()] == [
        ["MODEL_DIR", "runs/train.gin"],
        ["TEACHER_STORE", "experiments/gsm8k_teacher_kl.gin"],
    ]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in others.splitlines()}
    assert rows["BATCH_SIZE"] == "= 64 experiments/gsm8k.gin"
    assert rows["LEARNING_RATE"] == "= 0.0005 experiments/gsm8k.gin"  # not the 1e-3 of runs/
    assert rows["MIXTURE_OR_TASK_NAME"] == (
        "= 'gsm8k_teacher_cot_mix' experiments/gsm8k_teacher_kl.gin"
    )
    assert rows["EVALUATORS"] == "= (@evaluators.LossEvaluator(),) experiments/gsm8k.gin"


def test_a_value_that_is_another_macros_is_followed(capfd):
    assert call("experiments", "world_base") == 0  # a name alone is to be shown
    line = next(x for x in capfd.readouterr().out.splitlines() if "EVAL_TASKS" in x)
    assert "EVAL_TASKS               = %MIXTURE_OR_TASK_NAME = 'world_base_mix'  exp" in line


def test_what_another_file_sets_is_named(capfd):
    assert call("experiments", "show", "runs/train") == 0
    out = capfd.readouterr().out
    wanted = out.partition("Set by another file, one of:\n")[2].partition("\n\n")[0]
    assert [line.split() for line in wanted.splitlines()] == [
        ["MODEL", "experiments/,", "models/,", "recipes/"],
        ["OBJECTIVE", "experiments/,", "objectives/,", "recipes/"],
    ]


@pytest.mark.parametrize("name", [n for n in GIN_FILES if not n.startswith("t5x/")])
def test_the_macros_are_those_that_gin_reads(name):
    """Against gin itself, which imports what the files do."""
    macros = experiments.Macros(gin_root() / name)
    try:
        configuration.parse([name], [], needed=())
    except UserError:
        assert macros.wanted()  # of a file that is a part of others
        return
    known = {name for name, selector in gin.config._CONFIG if selector == "gin.macro"}
    assert macros.names == known
    for key in known - macros.required().keys():
        value = configuration.macro(key)
        assert macros.value(key) in (str(value), repr(value))
    assert {key for key in known if configuration.macro(key) is None} >= macros.required().keys()


def test_a_copy_runs_as_it_is_and_its_header_names_it(capfd):
    assert call("experiments", "copy", "world_answer") == 0
    assert capfd.readouterr().out == "world_answer.gin: --gin_file=world_answer.gin\n"
    text = Path("world_answer.gin").read_text()
    assert "cot-flax train --gin_file=world_answer.gin --gin.MODEL_DIR" in text
    with open("world_answer.gin", "a") as file:
        file.write("TRAIN_STEPS = 3\n")
    configuration.parse(["./world_answer.gin"], ["MODEL_DIR='run'"])
    assert configuration.macro("TRAIN_STEPS") == 3
    assert call("experiments", "show", "world_answer.gin") == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["TRAIN_STEPS", "=", "3", "world_answer.gin"] in lines


def test_a_copy_replaces_nothing(capfd):
    Path("mine.gin").write_text("mine")
    assert call("experiments", "copy", "world_base", "--out", "mine.gin") == 2
    assert capfd.readouterr().err == (
        "cot-flax: got mine.gin, which exists; expected a new file; choose another --out\n"
    )
    assert Path("mine.gin").read_text() == "mine"
    assert call("experiments", "copy", "world_base", "--out", "deep/mine.gin") == 0
    assert "--gin_file=deep/mine.gin" in Path("deep/mine.gin").read_text()


def test_an_example_is_copied_to_where_the_pages_have_it(capfd):
    assert call("experiments", "copy", "triage") == 0
    assert capfd.readouterr().out == "examples/triage: --gin.SCENARIO=examples/triage\n"
    original = gin_root().with_name("examples") / "triage"
    for path in original.iterdir():
        assert Path("examples/triage", path.name).read_bytes() == path.read_bytes()
    assert call("experiments", "copy", "examples/triage") == 2
    assert "which is not empty" in capfd.readouterr().err


def test_an_example_is_shown(capfd):
    assert call("experiments", "show", "triage") == 0
    out = capfd.readouterr().out
    assert "triage/exemplars.jsonl, 1,580 bytes\n" in out and "payroll service" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrold_base", "no gin file or example wrold_base; expected one such as experiments/world"),
        ("triag", "no gin file or example triag; expected one such as examples/triage"),
        ("train", "train, which is several; expected one of runs/train.gin, t5x/train.gin; name"),
        ("qqqq", "no gin file or example qqqq; expected one of ours or your own; see cot-flax exp"),
        ("broken.gin", "gin: .*EOF in multi-line statement .broken.gin, line "),
        ("absent.gin", "no gin file experiments/wrold.gin within ."),
        ("itself.gin", "itself.gin, which includes itself; "),
    ],
)
def test_a_mistake_is_one_line(name, message, capfd):
    Path("broken.gin").write_text("A = (1,\n")
    Path("absent.gin").write_text("include 'experiments/wrold.gin'\n")
    Path("itself.gin").write_text("include 'itself.gin'\n")
    assert call("experiments", "show", name) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(f"cot-flax: got {message}", line)


def run(*command, **variables):
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    variables = inherited | variables
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


def test_no_library_of_the_runs_is_imported():
    code = """
import sys
from cot_flax.cli import main
sys.argv = ["cot-flax", "experiments", "show", "world_cot_kl"]
try:
    main()
finally:
    print({"jax", "tensorflow", "seqio", "flax", "numpy"} & sys.modules.keys())
"""
    done = run(sys.executable, "-c", code)
    assert done.stdout.splitlines()[-1] == "set()"


COMPLETION = """
eval "$("$PROGRAM" --show-completion bash)"
export PYTHONOPTIMIZE=2  # no command runs with it
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_cot_flax_completion "$PROGRAM"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cot-flax exp", ["export", "experiments"]),
        ("cot-flax train --gin_file experiments/world_c", ["world_cot_ce", "world_cot_kl"]),
        # As bash splits --gin_file=... into words.
        ("cot-flax train --gin_file = experiments/world_c", ["world_cot_ce", "world_cot_kl"]),
        (
            "cot-flax train --gin_file = a.gin --gin_file = objectives/",
            ["cross_entropy", "hidden_mse", "logit_mse", "softmax_kl", "topk_kl"],
        ),
        ("cot-flax plan --gin_file =", ["experiments/gsm8k.gin", "t5x/train.gin"]),
        ("cot-flax prepare --gin_file own/", ["own/mine.gin"]),
        ("cot-flax experiments copy tri", ["triage"]),
        ("cot-flax experiments show world_m", ["world_mix_kl"]),
        ("cot-flax teach sample --gin_file runs/teach_", ["runs/teach_scenario.gin"]),
    ],
)
def test_bash_completes(words, expected, tmp_path):
    """Through the script that --show-completion prints."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.gin").touch()
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cot_flax.cli "$@"\n')
    program.chmod(0o755)
    done = run("bash", "-c", COMPLETION.format(words=words), PROGRAM=str(program))
    assert done.stderr == ""
    found = done.stdout.split()
    assert len(found) == len(expected) or len(found) > 9
    assert all(any(part in word for word in found) for part in expected), found


def test_completion_is_offered(capfd):
    assert call("--help") == 0
    out = capfd.readouterr().out
    assert "--install-completion" in out and "experiments" in out
