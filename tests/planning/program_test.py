"""The real step, compiled for this machine's CPU and for a TPU that is not there."""

import dataclasses
import importlib.util

import jax
import pytest
from support.toy_student import ToyConfig

from cot_flax.errors import UserError
from cot_flax.objectives.head_loss import TILES
from cot_flax.planning import collectives, formula, plan, program, targets
from cot_flax.planning.targets import Chip, Target
from cot_flax.reports import plan as report

FOUR = Target("four", Chip("cpu", 1e9, 1e12, 1e10, 1e9), 4)
V5E = targets.find("v5e-4")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason=f"no libtpu: pip install libtpu=={program.LIBTPU}",
)


@pytest.fixture(scope="module")
def tpu():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in targets.environment(V5E).items():
            patch.setenv(name, value)
        yield program.devices(V5E)


@pytest.fixture
def quick_compiler():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_step_for_this_machine(experiment, quick_compiler):
    found = plan.compiled(experiment, FOUR, jax.devices())
    memory = found.memory
    assert memory.compiled and memory.fits
    assert memory.total == found.program.used > memory.state + memory.gradients
    table = collectives.by_kind(found.program.collectives)
    assert table["all-gather"]["count"] > 5  # FSDP: the weights of every layer
    assert found.work.wire == sum(row["wire"] for row in table.values())


def test_the_step_of_another_family(experiment, quick_compiler):
    run = dataclasses.replace(experiment, model=ToyConfig())
    found = plan.compiled(run, FOUR, jax.devices())
    assert found.memory.total == found.program.used > found.memory.state
    assert collectives.by_kind(found.program.collectives)["all-gather"]["count"] > 0


@needs_libtpu
def test_a_step_for_a_tpu(experiment, tpu):
    found = plan.compiled(experiment, V5E, tpu)
    assert found.memory.fits
    assert found.memory.total > found.memory.state + found.memory.batch
    sent = {(c.kind, c.shape): n for c, n in found.program.collectives.items()}
    assert any("all-gather" in kind for kind, _ in sent)
    # Nobody gathers logits: no array that is sent has the vocabulary as its columns.
    assert not [shape for _, shape in sent if ",512]" in shape]
    # The loops of three layers, of two and of the eight tiles of the loss are each counted.
    assert {n for n in sent.values() if n > 1} >= {2, 3, TILES}


@needs_libtpu
def test_attention_is_that_of_the_target(changed, tpu):
    """Cross attention is the flash kernel on TPUs, though this process runs on a CPU."""
    found = plan.compiled(changed(inputs=128, targets=128), V5E, tpu)
    assert "tpu_custom_call" in found.program.text


@needs_libtpu
def test_too_large_a_step_is_known_by_the_compilers_figure(changed, tpu):
    run = changed(batch_size=2**17, remat="none")
    found = plan.compiled(run, V5E, tpu)
    assert not found.memory.fits
    assert found.program.text == ""
    assert found.memory.total == found.program.used > V5E.chip.memory


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no libtpu .*v5e-4.*pip install .*cot-flax\[tpu\]"):
        program.devices(V5E)


def test_a_program_that_cannot_be_read_is_sent_by_formula(experiment, quick_compiler, monkeypatch):
    """jaxlib 0.10.2 fails so on programs for v5p and v6e."""

    def fail(compiled):
        raise jax.errors.JaxRuntimeError("INTERNAL: async-update")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", fail)
    found = plan.compiled(experiment, FOUR, jax.devices())
    assert found.memory.total == found.program.used > found.memory.state
    assert found.program.collectives == {}
    assert found.work.wire == formula.wire_bytes(found.experiment)
    assert any("what is sent is by formula" in line for line in report.assumptions(found))


def test_a_gpu_is_planned_by_formula(experiment):
    found = plan.compiled(experiment, targets.find("a100-80x4"), [])
    assert found.program is None and not found.memory.compiled
    assert found.memory.fits and found.estimate.step > 0


def test_another_error_of_the_compiler_is_not_hidden():
    with pytest.raises(RuntimeError, match="something else"):
        program._used_when_too_large(RuntimeError("something else"), 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ran out of memory in memory space hbm. Used 24.90G of 15.75G hbm.", 24.9 * 2**30),
        ("for HLO temporaries (512.0M) exceeds available HBM (31.24G)", 512 * 2**20 + 1000),
    ],
)
def test_the_compilers_figure_is_read_from_its_error(text, expected):
    assert program._used_when_too_large(RuntimeError(text), own=1000) == int(expected)
