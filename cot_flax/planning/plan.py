"""One plan: an experiment on a target, compiled where it can be, and what it comes to."""

import dataclasses

from cot_flax.planning import bill, collectives, memory, program, roofline
from cot_flax.planning.bill import Bill
from cot_flax.planning.experiment import Experiment, abstract_mesh, abstract_state, resolve_mesh
from cot_flax.planning.memory import Memory
from cot_flax.planning.program import Program
from cot_flax.planning.roofline import Estimate, Work
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
    found = memory.modelled(experiment, target.chip.memory, target.chip.kind)
    wire = roofline.modelled_wire(experiment)
    return _plan(experiment, target, found, None, wire, price)


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
    made = program.compile_step(experiment, target, chips)
    found = memory.counted(experiment, target.chip.memory, target.chip.kind, made.used)
    known = made.text != ""
    wire = collectives.wire(made.collectives) if known else roofline.modelled_wire(experiment)
    return _plan(experiment, target, found, made, wire, price)


def _plan(experiment, target, found, made, wire, price) -> Plan:
    work = roofline.work(experiment, target, found.state, wire)
    estimate = roofline.estimate(work, target.chip, experiment.model.dtype)
    state = abstract_state(experiment, abstract_mesh(experiment))
    return Plan(
        experiment=experiment,
        target=target,
        parameters=memory.parameter_count(state.params),
        memory=found,
        program=made,
        work=work,
        estimate=estimate,
        bill=bill.of(experiment, target.chips, estimate.step, price),
    )
