"""One plan: an experiment on a target, compiled where it can be, and what it comes to."""

import dataclasses
import math

import jax

from cot_flax.planning import collectives, formula, program
from cot_flax.planning.experiment import Experiment, abstract_mesh, abstract_state, resolve_mesh
from cot_flax.planning.formula import Bill, Estimate, Memory, Work
from cot_flax.planning.program import Program
from cot_flax.planning.targets import Target


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts.

    Attributes:
        experiment: with its mesh spelt out.
        parameters: of the whole model, a count.
        program: None where nothing was compiled.
        work: of one chip in one step.
    """

    experiment: Experiment
    target: Target
    parameters: int
    memory: Memory
    program: Program | None
    work: Work
    estimate: Estimate
    bill: Bill


def modelled(experiment: Experiment, target: Target, price: float | None = None) -> Plan:
    """A plan by formula alone, in milliseconds.

    Raises:
        UserError: the mesh is larger than the target, or does not divide the batch.
    """
    experiment = resolve_mesh(experiment, target)
    memory = formula.memory(experiment, target.chip.memory, target.chip.kind)
    return _plan(experiment, target, memory, None, formula.wire_bytes(experiment), price)


def compiled(
    experiment: Experiment, target: Target, chips: list, price: float | None = None
) -> Plan:
    """A plan of the compiled step; by formula for GPUs, which nothing here compiles for.

    Args:
        chips: of `program.devices`.
        price: of a chip for an hour.

    Raises:
        UserError: as `modelled`.
    """
    if target.chip.kind == "gpu":
        return modelled(experiment, target, price)
    experiment = resolve_mesh(experiment, target)
    made = program.compile_step(experiment, chips)
    capacity, platform = target.chip.memory, target.chip.kind
    memory = formula.compiled_memory(experiment, capacity, platform, made.used)
    known = made.text != ""
    wire = collectives.wire(made.collectives) if known else formula.wire_bytes(experiment)
    return _plan(experiment, target, memory, made, wire, price)


def _plan(experiment, target, memory, made, wire, price) -> Plan:
    work = formula.work(experiment, target.chip.kind, memory.state, wire)
    estimate = formula.estimate(work, target.chip, experiment.model.dtype)
    params = abstract_state(experiment, abstract_mesh(experiment)).params
    return Plan(
        experiment=experiment,
        target=target,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        memory=memory,
        program=made,
        work=work,
        estimate=estimate,
        bill=formula.bill(experiment, target.chips, estimate.step, price),
    )
