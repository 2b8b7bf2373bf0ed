"""Counts against the traced step itself, whose products are summed one by one."""

import math

import jax
import pytest

from cot_flax.objectives.head_loss import TILES
from cot_flax.planning import products
from cot_flax.planning.experiment import abstract_mesh, abstract_state
from cot_flax.students.lora import Lora
from cot_flax.students.t5 import T5Student
from cot_flax.training import step


def traced_flops(experiment):
    """The FLOPs of all `dot_general`s of the trainer's step, loops as often as they run."""
    state = abstract_state(experiment, abstract_mesh(experiment))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    batch = {n: jax.ShapeDtypeStruct(*spec) for n, spec in experiment.features().items()}
    function = step.make_train_step(
        T5Student(experiment.model),
        experiment.optimizer,
        experiment.objective,
        experiment.microbatches,
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
    counted = products.step_flops(run.model, run.batch_size, run.inputs, run.targets)
    assert counted == pytest.approx(traced_flops(run), rel=0.03)


def test_with_adapters_alone_no_weight_has_a_gradient(changed):
    run = changed(lora=Lora(dropout=0.0), remat="none")
    counted = products.step_flops(run.model, run.batch_size, run.inputs, run.targets)
    assert counted == pytest.approx(traced_flops(run), rel=0.08)


def test_six_flops_a_parameter_and_token(changed):
    """The rule of thumb, where every token meets every weight and attention is small."""
    run = changed(remat="none", inputs=32)
    matrices = [p for p in products.forward(run.model, 1, 1, 1) if p.kind in ("dense", "head")]
    weights = sum(p.inner * p.columns * p.copies for p in matrices)
    counted = products.step_flops(run.model, 16, 32, 32)
    attention = [p for p in products.forward(run.model, 16, 32, 32) if p.kind not in "dense head"]
    assert counted - 3 * sum(p.flops for p in attention) == 6 * weights * 16 * 32
