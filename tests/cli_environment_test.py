"""A command works, or ends in one line, whatever the shell or kernel that starts it has set."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import reports, xla

from cot_flax.cli import environment
from cot_flax.errors import UserError

TRAIN = """
import sys
from cot_flax.cli import main
sys.argv = ["cot-flax", "train", "--gin_file=experiments/world_base.gin", "--gin.MODEL_DIR=run"]
sys.argv += ["--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=2", "--gin.WARMUP_STEPS=0"]
sys.argv += ["--gin.EVALUATORS=()", "--gin.MESH_DATA=1"]
sys.argv += ["--gin.t5.T5Config.num_encoder_layers=1", "--gin.t5.T5Config.num_decoder_layers=1"]
sys.argv += ["--gin.stories.size.train=64"]
sys.argv += ["--gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_answer"]  # one of the mixture's
try:
    main()
finally:
    print([name for name in ("matplotlib", "tensorboardX", "torch") if name in sys.modules])
"""


def call(folder, *command, **variables):
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=folder,
        env=inherited | {"JAX_PLATFORMS": "cpu"} | variables,
    )


def train(folder, **variables):
    return call(folder, "-c", TRAIN, **variables)


def test_a_training_goes_through_all_that_is_known_to_hurt(tmp_path):
    other = tmp_path / "other" / "site-packages"
    (other / "numpy").mkdir(parents=True)
    (other / "numpy" / "__init__.py").write_text("raise ImportError('of another Python')\n")
    done = train(
        tmp_path,
        MPLBACKEND="a_kernel's",  # matplotlib says the same to one that it knows and has not got
        KERAS_BACKEND="none",
        TF_USE_LEGACY_KERAS="1",
        TF_XLA_FLAGS="--no_such_flag=1",
        PYTHONPATH=os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")]),
        JAX_ENABLE_X64="1",
        JAX_DISABLE_JIT="1",
        JAX_NUMPY_DTYPE_PROMOTION="strict",
        JAX_TRANSFER_GUARD="disallow",
        JAX_LEGACY_PRNG_KEY="error",
    )
    assert (done.returncode, done.stdout) == (0, "['tensorboardX']\n"), done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("cot-flax: without")]
    assert said[0] == "cot-flax: without JAX_ENABLE_X64=1: students train in 32 bits"
    assert len(said) == 5


def test_a_report_draws_without_the_backend_of_a_kernel(tmp_path):
    reports.write_run(tmp_path / "run", reports.story_rows("zero_shot_cot", 0.8, seed=0), [])
    words = ("-m", "cot_flax.cli", "report", "run", "--out=page.html")
    done = call(tmp_path, *words, MPLBACKEND="a_kernel's")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_a_kernel_that_forces_colours_gets_lines_and_no_bars(tmp_path):
    script = "from cot_flax.cli import environment; environment.settle()\n"
    script += "from rich.console import Console; print(Console(stderr=True).is_terminal)"
    done = call(tmp_path, "-c", script, FORCE_COLOR="1", CLICOLOR_FORCE="1")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            {"JAX_PLATFORMS": "abacus"},
            r"got no device from JAX \(JAX_PLATFORMS=abacus, .*JAX_PLATFORMS=cpu",
        ),
        (
            {"JAX_DEFAULT_MATMUL_PRECISION": "none_such"},
            'got Invalid value "none_such" for JAX flag .* in the environment; ',
        ),
        (
            {"XLA_FLAGS": "--no_such_flag=1"},
            r"got XLA_FLAGS=--no_such_flag=1 \(Unknown flag.*--no_such_flag=1\); ",
        ),
        ({"PYTHONOPTIMIZE": "2"}, "got PYTHONOPTIMIZE=2; expected docstrings"),
    ],
    ids=str,
)
def test_what_no_command_can_run_with_is_one_line(variable, message, tmp_path):
    done = train(tmp_path, **variable)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "MODEL_DIR = " not in line]
    assert re.match(f"cot-flax: {message}", line), line


def test_packages_of_another_python_come_last_and_a_folder_of_modules_stays():
    team, foreign = "/team/src", "/usr/lib/python3/dist-packages"
    given = os.pathsep.join([foreign, team])
    paths = [foreign, team, "/usr/lib/python3.11", "/venv/lib/python3.11/site-packages"]
    assert environment._own_packages_first(paths, given) == [*paths[1:], foreign]
    assert environment._own_packages_first(paths, "") == paths


def test_a_user_without_a_home_gets_the_temporary_folder(monkeypatch, capsys):
    def unknown(user):
        raise KeyError(user)

    environment._give_a_home()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("HOME", "")  # comes back after the test
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    environment._give_a_home()
    assert str(Path.home()) == tempfile.gettempdir()
    assert capsys.readouterr().err.startswith("cot-flax: no home folder: ")


def test_flags_of_xla_that_it_knows_pass():
    environment._check_xla_flags("--xla_gpu_autotune_level=2")
    with pytest.raises(UserError, match="expected flags that this jaxlib knows"):
        environment._check_xla_flags("no_such_file")


def test_tests_pass_flags_that_xla_knows_alone():
    """Every version knows the two of conftest.py that keep compilation short."""
    quick = "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"
    assert xla.known(quick[0], "--xla_no_such_flag=1", quick[1]) == list(quick)
