"""FLOPs, bytes and seconds: counted by hand on a small student, and on the traced step itself."""

import dataclasses
import math

import jax
import pytest

from cot_flax.objectives.head_loss import TILES
from cot_flax.planning import formula
from cot_flax.planning.experiment import abstract_mesh, abstract_state
from cot_flax.planning.formula import OF_BANDWIDTH, OF_PEAK, Work
from cot_flax.planning.targets import Chip
from cot_flax.students.lora import Lora
from cot_flax.training import step
from cot_flax.training.sharding import MeshConfig

CHIP = Chip("gpu", memory=1e9, flops=1e12, bandwidth=1e10, interconnect=1e9, float32_rate=0.5)
D, X, F, V = 128, 128, 256, 512
"""Of the student: width, heads x width of a head, mlp width, vocabulary."""
NORMS = 3 * 2 * D + 2 * 3 * D + 2 * D
POSITIONS = 2 * 4 * 32
LAYERS = 3 * (4 * D * X + 3 * D * F) + 2 * (8 * D * X + 3 * D * F)
MATRICES = LAYERS + 2 * D * V
PARAMETERS = MATRICES + NORMS + POSITIONS


def traced_flops(experiment):
    """The FLOPs of all `dot_general`s of the trainer's step, loops as often as they run."""
    state = abstract_state(experiment, abstract_mesh(experiment))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    batch = {n: jax.ShapeDtypeStruct(*spec) for n, spec in experiment.batch_shapes.items()}
    function = step.make_train_step(
        experiment.student, experiment.optimizer, experiment.objective, experiment.microbatches
    )
    return count(jax.make_jaxpr(function)(state, batch).jaxpr)


def count(jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
            continue
        times = {"scan": eqn.params.get("length"), "while": TILES}.get(name, 1)
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * count(inner)
    return total


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_count_is_that_of_the_traced_step(changed, remat, microbatches):
    run = changed(remat=remat, microbatches=microbatches)
    assert formula.step_flops(run) == pytest.approx(traced_flops(run), rel=0.03)


def test_with_adapters_alone_no_weight_has_a_gradient(changed):
    run = changed(lora=Lora(dropout=0.0), remat="none")
    assert formula.step_flops(run) == pytest.approx(traced_flops(run), rel=0.08)


def test_six_flops_a_parameter_and_token(changed):
    """The rule of thumb, where every token meets every weight and attention is small."""
    run = changed(remat="none", inputs=32)
    listed = run.products("cpu")
    weights = sum(p.weights for p in listed if p.kind != "attention")
    attention = sum(p.flops for p in listed if p.kind == "attention")
    assert formula.step_flops(run) - 3 * attention == 6 * weights * 16 * 32


def test_a_step_takes_its_slower_half_and_then_its_collectives():
    estimate = formula.estimate(Work(flops=3e12, memory=2e10, wire=4e9), CHIP, "bfloat16")
    assert (estimate.compute, estimate.memory, estimate.wire) == (3.0, 2.0, 4.0)
    assert estimate.step == pytest.approx(3 / OF_PEAK[CHIP.kind] + 4 / OF_BANDWIDTH)
    assert (estimate.best, estimate.bound) == (4.0, "collectives")


def test_float32_has_a_rate_of_its_own():
    estimate = formula.estimate(Work(3e12, 0.0, 0.0), CHIP, "float32")
    assert (estimate.compute, estimate.bound) == (6.0, "products")


def test_twice_the_chips_do_half_the_work_each(changed):
    one, two = (changed(mesh=MeshConfig(n, 1)) for n in (1, 2))
    works = [formula.work(run, "gpu", 0, 0.0) for run in (one, two)]
    assert works[0].flops == 2 * works[1].flops
    assert works[1].memory < works[0].memory < 2 * works[1].memory  # both read all weights


def test_without_fsdp_every_micro_batch_sums_its_layers_gradients(changed):
    run = changed(mesh=MeshConfig(4, 1), microbatches=2)
    assert formula.wire_bytes(run) == 2 * 4 * (2 * LAYERS + 2 * D * V) * 3 / 4
    bfloat16 = changed(mesh=MeshConfig(4, 1), dtype="bfloat16")
    assert formula.wire_bytes(bfloat16) == 2 * (2 * LAYERS + 4 * 2 * D * V) * 3 / 4


def test_one_chip_sends_nothing(changed):
    assert formula.wire_bytes(changed(mesh=MeshConfig(1, 1, fsdp=True))) == 0


def test_fsdp_gathers_in_every_pass_of_every_micro_batch(changed):
    mesh = MeshConfig(4, 1, fsdp=True)
    one, two = (formula.wire_bytes(changed(mesh=mesh, microbatches=n)) for n in (1, 2))
    assert two == 2 * one
    minimal = formula.wire_bytes(changed(mesh=mesh, remat="minimal"))
    assert one / minimal == pytest.approx((3 + 1) / (2 + 1))  # weights and gradients in float32


def test_the_bill(experiment):
    found = formula.bill(experiment, chips=4, step_seconds=1.8, price=2.0)
    assert found.tokens_per_second == pytest.approx(16 * 96 / 1.8)
    assert found.hours == pytest.approx(0.5)
    assert (found.chip_hours, found.cost) == (pytest.approx(2.0), pytest.approx(4.0))
    assert found.teacher_bytes == 1000 * 16 * 32 * 5 * 4
    large = dataclasses.replace(experiment.model, vocab_size=2**16 + 1)  # ids of 32 bits
    run = dataclasses.replace(experiment, model=large)
    assert formula.bill(run, 4, 1.0, None).teacher_bytes == found.teacher_bytes * 6 // 4
    plain = dataclasses.replace(experiment.objective, kl_weight=0.0)
    without = dataclasses.replace(experiment, objective=plain)
    assert formula.bill(without, 4, 1.0, None).teacher_bytes == 0
    assert formula.bill(without, 4, 1.0, None).cost is None


def memory(run):
    return formula.memory(run, 1e9, "cpu")


def test_one_chip_holds_everything(changed):
    found = memory(changed(mesh=MeshConfig(1, 1)))
    assert found.parameters == 4 * PARAMETERS
    assert found.optimizer == pytest.approx(2 * found.parameters, abs=16)  # AdamW: two moments
    assert found.gradients == found.parameters
    tokens = 16 * (
        3 * 64 + 5 * 32 + 2 * 5 * 32
    )  # 3 features of inputs, 5 of targets, the teacher's
    assert found.batch == 4 * tokens


def test_fsdp_and_the_model_axis_split_the_matrices(changed):
    found = memory(changed(mesh=MeshConfig(2, 2, fsdp=True)))
    # Norms are as wide as the model, so that "data" splits them; the position bias has heads.
    assert found.parameters == 4 * (MATRICES // 4 + NORMS // 2 + POSITIONS // 2)
    without = memory(changed(mesh=MeshConfig(2, 2)))
    assert without.parameters == 4 * (MATRICES // 2 + NORMS + POSITIONS // 2)


def test_full_recomputation_keeps_the_inputs_of_the_layers_alone(changed):
    found = memory(changed(mesh=MeshConfig(1, 1)))
    assert found.activations == 16 * (3 * 64 + 2 * 32) * D * 4
    halved = memory(changed(mesh=MeshConfig(1, 1), microbatches=2))
    assert halved.activations == found.activations // 2
    assert halved.parameters == found.parameters


def test_less_recomputation_keeps_more(changed):
    kept = [memory(changed(remat=remat)).activations for remat in ("full", "minimal", "none")]
    assert kept == sorted(kept) and len(set(kept)) == 3


def test_adapters_alone_have_gradients_and_moments(changed):
    found = memory(changed(mesh=MeshConfig(1, 1), lora=Lora(rank=4)))
    adapters = 4 * (3 + 2 * 2) * 2 * (D * 4 + 4 * X)
    assert found.gradients == adapters
    assert found.parameters == 4 * PARAMETERS + adapters


def test_what_the_compiler_counts_beyond_the_formula_is_temporary(experiment):
    modelled = memory(experiment)
    own = modelled.state + modelled.batch
    found = formula.compiled_memory(experiment, 1e9, "cpu", own + modelled.gradients + 1000)
    assert (found.gradients, found.activations, found.temporaries) == (modelled.gradients, 1000, 0)
    found = formula.compiled_memory(experiment, 1e6, "cpu", modelled.total + 10**6)
    assert found.total == modelled.total + 10**6
    assert found.headroom == 10**6 - found.total and not found.fits
