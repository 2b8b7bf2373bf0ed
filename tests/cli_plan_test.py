"""`cot-flax plan` as a user types it; it reads no data."""

import importlib.util
import logging
import os
import re
import sys

import gin
import jax
import pytest

from cot_flax import cli, configuration
from cot_flax.cli.plan import read_experiment
from cot_flax.training.sharding import MeshConfig

GSM8K = "--gin_file=experiments/gsm8k_teacher_kl.gin"
SMALL = "--gin_file=models/t5_1_1_small.gin"
PARTS = ("models/t5_1_1_small.gin", "objectives/cross_entropy.gin", "runs/train.gin")
PARTS = [f"--gin_file={file}" for file in PARTS]
WORLD = "--gin_file=experiments/world_cot_kl.gin"


@pytest.fixture(autouse=True)
def _leave_the_process_as_found(monkeypatch, tmp_path):
    """What the command sets is set for good, as in its own process."""
    names = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"]
    names.append("jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    level, environment = logging.getLogger("absl").level, dict(os.environ)
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    logging.getLogger("absl").setLevel(level)
    os.environ.clear()
    os.environ.update(environment)
    gin.clear_config()


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs the entry point; returns the exit code, what it printed, and its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cot-flax", "plan", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run


def test_a_gpu_is_planned_without_a_folder_or_a_store(call):
    code, printed, _ = call(
        GSM8K, SMALL, "--target", "h200", "--price", 3.5, "--gin.BATCH_SIZE=128"
    )
    assert code == 0
    assert "76,961,152 parameters, batch 128, 1,024/256 tokens, on h200" in " ".join(
        printed.split()
    )
    assert "Fits h200" in printed and "cost" in printed


def test_a_step_is_compiled_for_this_machine(call):
    code, printed, errors = call(WORLD, "--target", "cpu")
    assert code == 0
    assert "compiling for cpu, try 1: batch 28, mesh data 1 x model 1" in errors
    assert "bytes a chip are the compiler's" in printed and "Fits cpu" in printed


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")
def test_a_step_is_compiled_for_a_slice_and_not_kept(call, tmp_path):
    """JAX warns, at the next plan, of a program in its cache that it cannot read."""
    code, printed, errors = call(WORLD, "--target", "v5e-4")
    assert code == 0
    assert "Fits v5e-4" in printed
    assert "compiling for v5e-4, try 1: batch 28, mesh data 1 x model 1" in errors
    assert not any(path.is_file() for path in tmp_path.rglob("*train_step*"))


def test_what_does_not_fit_gets_remedies(call):
    flags = ["--gin.BATCH_SIZE=1024", "--gin.REMAT='none'"]
    code, printed, _ = call(GSM8K, SMALL, "--target", "l4x2", *flags)
    assert code == 0
    assert "Does not fit l4x2" in printed
    assert "too much on every chip" in printed and "What would make it fit" in printed
    assert "  fits: --gin." in printed


def test_search_ends_with_the_plan_of_the_best(call):
    code, printed, _ = call(GSM8K, SMALL, "--target", "a100-80x8", "--search")
    assert code == 0
    assert "  fits: " in printed and "Fits a100-80x8" in printed


def test_where_no_mesh_fits_the_optimizer_may(call):
    large = (GSM8K, "--gin_file=models/t5_1_1_xl.gin", "--target", "a100-80", "--search")
    code, printed, _ = call(*large, "--gin.BATCH_SIZE=256")
    assert code == 0
    assert "Does not fit a100-80" in printed
    assert any(line.startswith("  fits: ") and "adafactor" in line for line in printed.splitlines())
    code, printed, _ = call(
        *large, "--gin.BATCH_SIZE=256", "--gin.OPTIMIZER=@optimizers.adafactor()"
    )
    assert code == 0
    assert "Fits a100-80" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([GSM8K, "--target", "v5e-17"], "got target 'v5e-17'; expected one such as .*v5e-16"),
        ([GSM8K, "--target", "h200x4", "--gin.BATCH_SIZE=6"], "BATCH_SIZE 6; .* multiple of 4"),
        ([GSM8K, "--target", "h200", "--gin.MESH_MODEL=2"], "at most the 1 chips of h200"),
        (
            ["--gin_file=experiments/gsm8k_evaluate.gin", "--target", "h200"],
            "gin files without loop.train; .*a training experiment",
        ),
        ([*PARTS, "--target", "h200"], "no value for T(ASK_FEATURE_LENGTHS|RAIN_STEPS);"),
    ],
)
def test_a_mistake_is_one_line(call, arguments, message):
    code, printed, errors = call(*arguments)
    assert (code, printed) == (2, "")
    (line,) = errors.splitlines()
    assert re.search(message, line), line


def test_the_experiment_is_the_trainers(tmp_path):
    (tmp_path / "manifest.json").write_text('{"top_k": 7}')
    macros = {"MODEL_DIR": "run", "MESH_DATA": 2, "FSDP": True, "MICROBATCHES": 4, "BATCH_SIZE": 32}
    macros |= {"TEACHER_STORE": str(tmp_path), "REMAT": "full", "TRAIN_STEPS": 90}
    bindings = [f"{name}={value!r}" for name, value in macros.items()]
    configuration.parse(["experiments/gsm8k_teacher_kl.gin"], bindings)
    found = read_experiment()
    assert found.mesh == MeshConfig(2, 1, True)
    assert (found.batch_size, found.inputs, found.targets) == (32, 1024, 256)
    assert (found.microbatches, found.steps, found.top_k, found.packed) == (4, 90, 7, True)
    assert found.model.remat == "full" and found.objective.uses_teacher
