"""Other settings of a run: what makes it fit, and the fastest mesh that does.

A compilation takes a minute for a large model, so the formula ranks and the compiler decides.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

from cot_flax.planning import plan
from cot_flax.planning.experiment import Experiment
from cot_flax.planning.plan import Plan
from cot_flax.planning.targets import Target
from cot_flax.training import optimizers
from cot_flax.training.sharding import MeshConfig

DOUBTFUL, SURE = 1.5, 1.15
"""What the formula puts this far beyond the memory is not worth a compilation: by itself, and once
it was corrected by one."""

ADAFACTOR = '--gin.OPTIMIZER="@optimizers.adafactor()"'

Compile = Callable[[Experiment], Plan]


@dataclasses.dataclass(frozen=True)
class Option:
    """A change of an experiment, as the flags that make it, and its plan.

    Attributes:
        plan: of the compiler where `tried`, else of the formula.
    """

    flags: str
    plan: Plan
    tried: bool


def flags(old: Experiment, new: Experiment) -> str:
    """The gin flags that make one experiment the other; "" where nothing differs."""
    values = [
        ("MESH_DATA", old.mesh.data, new.mesh.data),
        ("MESH_MODEL", old.mesh.model, new.mesh.model),
        ("FSDP", old.mesh.fsdp, new.mesh.fsdp),
        ("REMAT", old.model.remat, new.model.remat),
        ("MICROBATCHES", old.microbatches, new.microbatches),
        ("BATCH_SIZE", old.batch_size, new.batch_size),
    ]
    changed = [
        f'--gin.{name}="{after!r}"' if isinstance(after, str) else f"--gin.{name}={after}"
        for name, before, after in values
        if before != after
    ]
    return " ".join(changed + [ADAFACTOR] * (old.optimizer is not new.optimizer))


def meshes(experiment: Experiment, chips: int) -> Iterator[MeshConfig]:
    """Every mesh of all chips that divides the batch and the parameters that it splits."""
    sizes = experiment.split_sizes
    for model in (n for n in range(1, chips + 1) if chips % n == 0):
        data = chips // model
        if any(size % model for size in sizes):
            continue
        if experiment.batch_size % (data * experiment.microbatches):
            continue
        yield MeshConfig(data, model, False)
        if data > 1 and experiment.model.emb_dim % data == 0:
            yield MeshConfig(data, model, True)


def fastest(experiment: Experiment, target: Target, compile_plan: Compile) -> Iterator[Option]:
    """Tries meshes, REMAT and MICROBATCHES, the shortest modelled step first.

    Yields every trial; ends when the formula promises no shorter step than the best that fits.
    """
    off: dict[str, float] = {}  # REMAT: how far the formula was off the last time
    best = math.inf
    for candidate in sorted(_candidates(experiment, target), key=lambda c: c.estimate.step):
        if candidate.estimate.step >= best:
            return
        remat = candidate.experiment.model.remat
        doubt = SURE if remat in off else DOUBTFUL
        if _expected(candidate, off.get(remat, 1.0)) > doubt * candidate.memory.capacity:
            continue
        tried = compile_plan(candidate.experiment)
        yield Option(flags(experiment, tried.experiment), tried, True)
        if tried.memory.fits:
            best = min(best, tried.estimate.step)
        off[remat] = _correction(tried, candidate)


def smallest(experiment: Experiment, target: Target) -> Experiment:
    """Of what `fastest` would try, that which takes the least memory by the formula."""
    found = min(_candidates(experiment, target), key=lambda c: c.memory.total, default=None)
    return found.experiment if found else experiment


def _candidates(experiment: Experiment, target: Target) -> list[Plan]:
    return [
        plan.modelled(_with(run, mesh=mesh, remat=remat), target)
        for run in (experiment, *_microbatched(experiment, most=4))
        for mesh in meshes(run, target.chips)
        for remat in run.remats
    ]


def remedies(
    too_large: Plan, compile_plan: Compile, typed: Experiment | None = None, enough: int = 2
) -> Iterator[Option]:
    """Changes one setting at a time, then all of them, until `enough` of them make the run fit.

    What the formula, corrected by the plan that did not fit, puts beyond the memory is listed but
    not compiled.

    Args:
        typed: what the flags start from; without it the run that was too large.
    """
    experiment, target = too_large.experiment, too_large.target
    off = _correction(too_large, plan.modelled(experiment, target))
    serving = 0
    for knob in _knobs(experiment, target):
        for changed in knob:
            guess = plan.modelled(changed, target)
            expected = _expected(guess, off)
            tried = expected <= SURE * guess.memory.capacity
            found = compile_plan(changed) if tried else _corrected(guess, expected)
            yield Option(flags(typed or experiment, changed), found, tried)
            if found.memory.fits:
                serving += 1
                break
        if serving == enough:
            return


def _correction(compiled: Plan, modelled: Plan) -> float:
    """How many times the formula's bytes the compiler found, the exact ones apart."""
    state = modelled.memory.state
    return (compiled.memory.total - state) / (modelled.memory.total - state)


def _expected(modelled: Plan, correction: float) -> int:
    memory = modelled.memory
    return int(memory.state + correction * (memory.total - memory.state))


def _corrected(modelled: Plan, expected: int) -> Plan:
    memory = modelled.memory
    temporaries = memory.temporaries + expected - memory.total
    return dataclasses.replace(
        modelled, memory=dataclasses.replace(memory, temporaries=temporaries)
    )


def _knobs(experiment: Experiment, target: Target) -> list[list[Experiment]]:
    """Changes that save memory: a list a knob, the least first; all of them at once at the end."""
    mesh, remats = experiment.mesh, experiment.remats
    stronger_remats = remats[remats.index(experiment.model.remat) + 1 :]
    sharded = [] if mesh.fsdp or mesh.data == 1 else [dataclasses.replace(mesh, fsdp=True)]
    others = [
        plan.modelled(dataclasses.replace(experiment, mesh=other), target)
        for other in meshes(experiment, target.chips)
        if other not in (mesh, *sharded)
    ]
    smallest = sorted(others, key=lambda p: p.memory.total)[:1]
    all_at_once = _with(experiment, mesh=sharded[0] if sharded else mesh, remat=remats[-1])
    together = [*_microbatched(all_at_once), *_halved(all_at_once)]
    return [
        [dataclasses.replace(experiment, mesh=other) for other in sharded],
        [experiment.with_remat(stronger) for stronger in stronger_remats],
        [other.experiment for other in smallest],
        list(_microbatched(experiment)),
        list(_lighter(experiment, target)),
        list(_halved(experiment)),
        together if all_at_once != experiment else [],
        [run for lighter in _lighter(all_at_once, target) for run in _microbatched(lighter)],
    ]


def _microbatched(experiment, most: int = 16) -> Iterator[Experiment]:
    """Two, four, ... times as many micro-batches, up to `most` times."""
    for times in (2, 4, 8, 16):
        count = experiment.microbatches * times
        if times <= most and experiment.batch_size % ((experiment.mesh.data or 1) * count) == 0:
            yield dataclasses.replace(experiment, microbatches=count)


def _lighter(experiment, target) -> Iterator[Experiment]:
    """Adafactor in place of an optimizer that holds more, such as AdamW's two moments."""
    optimizer = optimizers.adafactor(experiment.optimizer.schedule)
    changed = dataclasses.replace(experiment, optimizer=optimizer)
    before, after = (plan.modelled(run, target).memory for run in (experiment, changed))
    if after.optimizer < before.optimizer:
        yield changed


def _halved(experiment) -> Iterator[Experiment]:
    """A half, a quarter, an eighth of the batch."""
    for parts in (2, 4, 8):
        if experiment.batch_size % (parts * experiment.mesh.data * experiment.microbatches) == 0:
            yield dataclasses.replace(experiment, batch_size=experiment.batch_size // parts)


def _with(experiment: Experiment, *, mesh: MeshConfig, remat: str) -> Experiment:
    return dataclasses.replace(experiment.with_remat(remat), mesh=mesh)
