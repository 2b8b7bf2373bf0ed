"""Times and bytes, by arithmetic on numbers chosen for it."""

import dataclasses

import pytest

from cot_flax.planning import bill, roofline
from cot_flax.planning.roofline import OF_BANDWIDTH, OF_PEAK, Work
from cot_flax.planning.targets import Chip, Target
from cot_flax.training.sharding import MeshConfig

CHIP = Chip("gpu", memory=1e9, flops=1e12, bandwidth=1e10, interconnect=1e9, float32_rate=0.5)


def test_a_step_takes_its_slower_half_and_then_its_collectives():
    estimate = roofline.estimate(Work(flops=3e12, memory=2e10, wire=4e9), CHIP, "bfloat16")
    assert (estimate.compute, estimate.memory, estimate.wire) == (3.0, 2.0, 4.0)
    assert estimate.step == pytest.approx(3 / OF_PEAK + 4 / OF_BANDWIDTH)
    assert (estimate.best, estimate.bound) == (4.0, "collectives")


def test_float32_has_a_rate_of_its_own():
    estimate = roofline.estimate(Work(3e12, 0.0, 0.0), CHIP, "float32")
    assert (estimate.compute, estimate.bound) == (6.0, "products")


def test_twice_the_chips_do_half_the_work_each(changed):
    one, two = (changed(mesh=MeshConfig(n, 1)) for n in (1, 2))
    target = Target("two", CHIP, 2)
    works = [roofline.work(run, target, 0, 0.0) for run in (one, two)]
    assert works[0].flops == 2 * works[1].flops
    assert works[1].memory < works[0].memory < 2 * works[1].memory  # both read all weights


def test_without_fsdp_every_micro_batch_sums_its_layers_gradients(changed):
    D, X, F, V = 128, 128, 256, 512
    layers = 3 * (4 * D * X + 3 * D * F) + 2 * (8 * D * X + 3 * D * F)
    run = changed(mesh=MeshConfig(4, 1), microbatches=2)
    assert roofline.modelled_wire(run) == 2 * 4 * (2 * layers + 2 * D * V) * 3 / 4
    bfloat16 = changed(mesh=MeshConfig(4, 1), dtype="bfloat16")
    assert roofline.modelled_wire(bfloat16) == 2 * (2 * layers + 4 * 2 * D * V) * 3 / 4


def test_one_chip_sends_nothing(changed):
    assert roofline.modelled_wire(changed(mesh=MeshConfig(1, 1, fsdp=True))) == 0


def test_fsdp_gathers_in_every_pass_of_every_micro_batch(changed):
    mesh = MeshConfig(4, 1, fsdp=True)
    one, two = (roofline.modelled_wire(changed(mesh=mesh, microbatches=n)) for n in (1, 2))
    assert two == 2 * one
    minimal = roofline.modelled_wire(changed(mesh=mesh, remat="minimal"))
    assert one / minimal == pytest.approx((3 + 1) / (2 + 1))  # weights and gradients in float32


def test_which_attention_is_fused_is_the_models_own_choice(changed):
    long = {"inputs": 256, "targets": 128}
    assert roofline.fused_kinds(changed(**long), "tpu") == {"cross"}
    assert roofline.fused_kinds(changed(), "tpu") == set()  # not a multiple of 128
    assert roofline.fused_kinds(changed(**long), "cpu") == set()
    assert roofline.fused_kinds(changed(dtype="bfloat16"), "gpu") == {"cross", "attention"}
    assert roofline.fused_kinds(changed(dropout_rate=0.1, **long), "tpu") == set()


def test_the_bill(experiment):
    found = bill.of(experiment, chips=4, step_seconds=1.8, price=2.0)
    assert found.tokens_per_second == pytest.approx(16 * 96 / 1.8)
    assert found.hours == pytest.approx(0.5)
    assert (found.chip_hours, found.cost) == (pytest.approx(2.0), pytest.approx(4.0))
    assert found.teacher_bytes == 1000 * 16 * 32 * 5 * 4
    plain = dataclasses.replace(experiment.objective, kl_weight=0.0)
    without = dataclasses.replace(experiment, objective=plain)
    assert bill.of(without, 4, 1.0, None).teacher_bytes == 0
    assert bill.of(without, 4, 1.0, None).cost is None
