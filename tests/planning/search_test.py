"""Which settings are tried, and in what order; here the formula stands for the compiler."""

import dataclasses
from functools import partial

import pytest

from cot_flax.planning import plan, search
from cot_flax.planning.experiment import REMATS
from cot_flax.planning.search import fastest, flags, remedies
from cot_flax.planning.targets import Chip, Target
from cot_flax.training.sharding import MeshConfig


def target(memory: float) -> Target:
    return Target("four", Chip("tpu", memory, 1e12, 1e10, 1e9), 4)


def test_flags_are_what_one_would_type(changed, experiment):
    run = changed(remat="none", mesh=MeshConfig(4, 1), microbatches=2)
    assert flags(experiment, experiment) == ""
    expected = "--gin.MESH_DATA=4 --gin.MESH_MODEL=1 --gin.FSDP=False --gin.REMAT=\"'none'\""
    assert flags(experiment, run) == f"{expected} --gin.MICROBATCHES=2"


def test_meshes_divide_all_that_they_split(changed):
    found = list(search.meshes(changed(batch_size=8), 8))
    # Eight along model would split four heads.
    assert {(m.data, m.model) for m in found} == {(8, 1), (4, 2), (2, 4)}
    assert sum(m.fsdp for m in found) == 3
    assert not any(m.data == 8 for m in search.meshes(changed(batch_size=4), 8))


def test_with_memory_to_spare_the_fastest_is_the_first_tried(experiment):
    large = target(1e12)
    (option,) = fastest(experiment, large, partial(plan.modelled, target=large))
    steps = [
        plan.modelled(search._with(run, mesh=mesh, remat=remat), large).estimate.step
        for run in (experiment, *search._microbatched(experiment))
        for mesh in search.meshes(run, 4)
        for remat in REMATS
    ]
    assert option.plan.estimate.step == min(steps)
    assert option.plan.memory.fits and option.tried


def test_a_smaller_memory_costs_speed(experiment):
    large = target(1e12)
    (best,) = fastest(experiment, large, partial(plan.modelled, target=large))
    small = target(0.7 * best.plan.memory.total)
    *tried, last = fastest(experiment, small, partial(plan.modelled, target=small))
    assert last.plan.memory.fits and not any(option.plan.memory.fits for option in tried)
    assert last.plan.estimate.step > best.plan.estimate.step


def test_a_fit_slower_than_promised_does_not_end_the_search(experiment):
    """The compiler finds the first to send so much more that another promises a shorter step."""
    large, slow = target(1e12), []

    def compile_plan(run):
        found = plan.modelled(run, large)
        if slow:
            return found
        slow.append(dataclasses.replace(found.estimate, step=1.01 * found.estimate.step))
        return dataclasses.replace(found, estimate=slow[0])

    first, *others = fastest(experiment, large, compile_plan)
    assert first.plan.memory.fits and others
    assert min(option.plan.estimate.step for option in others) < slow[0].step


def test_the_smallest_is_what_is_left_where_nothing_fits(experiment, changed):
    tiny = target(1e4)
    found = search.smallest(experiment, tiny)
    assert found.mesh.fsdp and found.model.remat == "full" and found.microbatches == 4
    unmeshed = changed(batch_size=3, num_heads=3)
    assert search.smallest(unmeshed, tiny) is unmeshed


def test_what_is_far_too_large_is_not_compiled(experiment):
    def never(run):
        pytest.fail("compiled")

    assert list(fastest(experiment, target(1e4), never)) == []


def test_remedies_are_tried_until_two_fit(changed):
    run = changed(remat="none", mesh=MeshConfig(4, 1))
    total = plan.modelled(run, target(1e12)).memory.total
    small = target(0.8 * total)
    options = list(remedies(plan.modelled(run, small), partial(plan.modelled, target=small)))
    fitting = [option for option in options if option.plan.memory.fits]
    assert len(fitting) == 2 and options[-1] is fitting[-1]
    assert options[0].flags == "--gin.FSDP=True"
    assert all(option.flags for option in options)


def test_moments_are_a_knob(changed):
    run = changed(mesh=MeshConfig(4, 1))
    memory = plan.modelled(run, target(1e12)).memory
    small = target(memory.total - 0.9 * memory.optimizer)
    modelled = partial(plan.modelled, target=small)
    options = list(remedies(modelled(run), modelled, enough=9))
    (lighter,) = [o for o in options if o.flags == search.ADAFACTOR]
    assert lighter.plan.memory.fits
    assert lighter.plan.memory.optimizer < 0.1 * memory.optimizer
    typed = changed(mesh=MeshConfig(4, 1), batch_size=32)
    assert all("--gin.BATCH_SIZE=" in o.flags for o in remedies(modelled(run), modelled, typed))
    adafactor = lighter.plan.experiment
    assert not any("OPTIMIZER" in o.flags for o in remedies(modelled(adafactor), modelled))


def test_remedies_believe_the_compiler_about_the_formulas_error(changed):
    """Where the compiler finds a thousand times the formula, no knob is worth a compilation."""
    run = changed(remat="none", mesh=MeshConfig(4, 1))
    formula = plan.modelled(run, target(1e12))
    small = target(float(formula.memory.total))
    before = plan.modelled(run, small)
    far_off = dataclasses.replace(
        before.memory, temporaries=1000 * formula.memory.total, compiled=True
    )
    refuse = pytest.fail
    options = list(remedies(dataclasses.replace(before, memory=far_off), refuse))
    assert options and not any(option.tried for option in options)
    assert not any(option.plan.memory.fits for option in options)
