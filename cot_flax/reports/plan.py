"""A plan, printed."""

import contextlib
import itertools
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from cot_flax.planning import collectives, formula
from cot_flax.planning.experiment import Experiment, resolve_mesh
from cot_flax.planning.plan import Plan, compiled
from cot_flax.planning.search import Option, fastest, remedies, smallest
from cot_flax.planning.targets import GIB, Target
from cot_flax.reports import terminal


def plan_run(
    experiment: Experiment,
    target: Target,
    chips: list,
    *,
    price: float | None = None,
    search: bool = False,
) -> None:
    """Plans a run and prints it, and what would make it fit where it does not.

    Args:
        chips: of `program.devices`.
        price: of a chip for an hour.
        search: prints the fastest mesh and REMAT that fit instead, if any do.
    """
    tries = itertools.count(1)

    def make_plan(run: Experiment) -> Plan:
        run = resolve_mesh(run, target)
        with compiling(run, target, next(tries)):
            return compiled(run, target, chips, price)

    run = experiment
    if search:
        options = fastest(experiment, target, make_plan)
        if best := print_options("The fastest mesh and REMAT that fit:", options):
            print_plan(best.plan)
            return
        run = smallest(experiment, target)
    found = make_plan(run)
    print_plan(found)
    if not found.memory.fits:
        print_options("What would make it fit:", remedies(found, make_plan, experiment))


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints what a plan knows: memory, speed, collectives, the bill."""
    console = console or Console()
    terminal.heading(console, title(plan))
    console.print()
    for heading, rows in _sections(plan):
        table = terminal.new_table()
        table.add_column(heading, no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for line in assumptions(plan):
        console.print(Text(f"- {line}"))
    terminal.heading(console, verdict(plan))


def print_options(
    heading: str, options: Iterable[Option], console: Console | None = None
) -> Option | None:
    """Prints other settings as they are tried, a line each; returns the fastest that fits."""
    console, fitting = console or Console(), []
    terminal.heading(console, heading)
    for option in options:
        console.print(Text(line(option)), soft_wrap=True)
        fitting += [option] if option.plan.memory.fits else []
    if not fitting:
        console.print("  nothing that was tried; take more chips or a smaller model")
    return min(fitting, key=lambda option: option.plan.estimate.step, default=None)


@contextlib.contextmanager
def compiling(experiment: Experiment, target: Target, count: int, console: Console | None = None):
    """Says on standard error what is compiled meanwhile, which may take minutes.

    A spinner on a terminal, a line elsewhere; nothing for GPUs, which nothing is compiled for.
    """
    console = console or Console(stderr=True)
    batch = f"batch {experiment.batch_size:,}"
    line = f"compiling for {target.name}, try {count}: {batch}, {settings(experiment)}"
    if target.chip.kind != "gpu" and not console.is_terminal:
        console.print(Text(line), soft_wrap=True)
    with console.status(line) if target.chip.kind != "gpu" else contextlib.nullcontext():
        yield


def title(plan: Plan) -> str:
    experiment = plan.experiment
    return (
        f"{plan.parameters:,} parameters, batch {experiment.batch_size:,}, "
        f"{experiment.inputs:,}/{experiment.targets:,} tokens, on {plan.target.name} "
        f"({plan.target.where}), {settings(experiment)}"
    )


def settings(experiment: Experiment) -> str:
    """What a search varies, in words."""
    mesh = experiment.mesh
    return (
        f"mesh data {mesh.data} x model {mesh.model}{' FSDP' if mesh.fsdp else ''}, "
        f"{experiment.microbatches} micro-batch(es), remat {experiment.model.remat}"
    )


def verdict(plan: Plan) -> str:
    """One line: fits, with how much to spare, or by how much it is too large."""
    headroom = plan.memory.headroom
    if plan.memory.fits:
        share = headroom / plan.memory.capacity
        return f"Fits {plan.target.name}: {size(headroom)} to spare on every chip ({share:.0%})."
    return f"Does not fit {plan.target.name}: {size(-headroom)} too much on every chip."


def assumptions(plan: Plan) -> list[str]:
    kind = plan.target.chip.kind
    reached = (
        f"{formula.OF_PEAK[kind]:.0%} of the peak FLOP/s and {formula.OF_BANDWIDTH:.0%} of the "
        f"bandwidths are reached{', as on one H100' * (kind == 'gpu')}"
    )
    found = [reached, *formula.ASSUMPTIONS]
    if plan.program is None:
        found.append("nothing was compiled: memory and collectives are by formula, not measured")
    else:
        found.append("bytes a chip are the compiler's; gradients and activations by formula")
        if not plan.program.text:
            found.append("what is sent is by formula: there is no program that jaxlib can read")
    if kind == "gpu":
        found.append("75% of a GPU's memory, as JAX takes it")
    if kind == "cpu":
        found.append("80 GFLOP/s a core, 20 GB/s of memory; the memory is all that is built in")
    return found


def line(option: Option) -> str:
    """One line on a setting that was tried, or was not worth it."""
    memory = option.plan.memory
    word = "fits" if memory.fits else "too large"
    how = "" if option.tried else ", by the formula alone"
    seconds = f"{duration(option.plan.estimate.step)} a step"
    return (
        f"  {word}: {option.flags or 'as it stands'}  "
        f"({size(memory.total)} of {size(memory.capacity)}{how}; {seconds})"
    )


def _sections(plan: Plan):
    yield "Bytes a chip", list(_memory_rows(plan))
    yield "One step", list(_step_rows(plan))
    if plan.program and plan.program.collectives:
        yield "Collectives a step", list(_collective_rows(plan))
    yield f"The run: {plan.experiment.steps:,} steps", list(_bill_rows(plan))


def _memory_rows(plan):
    memory = plan.memory
    for name in ("parameters", "optimizer", "batch", "gradients", "activations", "temporaries"):
        yield name, size(getattr(memory, name)), ""
    yield "all", size(memory.total), f"of {size(memory.capacity)}"
    yield "headroom", size(memory.headroom), ""


def _step_rows(plan):
    work, estimate = plan.work, plan.estimate
    yield "products", f"{work.flops / 1e12:,.3g} TFLOP", f"{duration(estimate.compute)} at peak"
    yield "memory", size(work.memory), f"{duration(estimate.memory)} at peak"
    yield "sent", size(work.wire), f"{duration(estimate.wire)} at peak"
    yield "estimate", duration(estimate.step), f"bound by {estimate.bound}"
    yield "at best", duration(estimate.best), "every peak reached, all at once"
    yield "tokens/s", f"{plan.bill.tokens_per_second:,.0f}", "both sides, padding included"


def _collective_rows(plan):
    for kind, row in collectives.by_kind(plan.program.collectives).items():
        hidden = f"{row['count']:,} times, {size(row['size'])} in all, {row['overlaps']:.0%} async"
        yield kind, size(row["wire"]), hidden


def _bill_rows(plan):
    bill = plan.bill
    yield "time", duration(3600 * bill.hours), ""
    yield "chip-hours", f"{bill.chip_hours:,.3g}", f"{plan.target.chips} chip(s)"
    if bill.cost is not None:
        yield "cost", f"{bill.cost:,.2f}", "at the price given"
    if bill.teacher_bytes:
        k = plan.experiment.top_k
        bytes_each = k * formula.entry_bytes(plan.experiment.model.vocab_size)
        note = f"in the store at most: top {k}, {bytes_each} B a target token, none read twice"
        yield "teacher data", size(bill.teacher_bytes), note


def size(count: float) -> str:
    """Bytes in a unit that leaves one to four digits: "12.9 GiB"."""
    for unit, scale in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """Seconds in a unit that leaves one to four digits: "3.21 s"."""
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale * (2 if unit in ("days", "h", "min") else 1):
            return f"{seconds / scale:,.3g} {unit}"
    return f"{seconds * 1e6:,.3g} us"
