"""`cot-flax plan`: what a run takes, before it starts."""

import copy
import itertools
import os
import re
from typing import Annotated

import typer

from cot_flax.cli.common import GinFile, SearchPaths, parse_gin
from cot_flax.errors import UserError

NEEDED = ("MODEL", "OBJECTIVE", "OPTIMIZER", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS", "BATCH_SIZE")
TOP_K = 5


def plan(
    context: typer.Context,
    gin_file: GinFile,
    target: Annotated[
        str, typer.Option(help="A slice or GPU: v5e-16, v5p-64, v6e-256, h200, a100-80x8, cpu.")
    ],
    gin_search_paths: SearchPaths = "",
    price: Annotated[float | None, typer.Option(help="Of a chip for an hour.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Find the fastest mesh and REMAT that fit.")
    ] = False,
):
    """Compile a gin experiment's step for a target; print memory, time and cost. Reads no data.

    Example: cot-flax plan --gin_file=experiments/gsm8k_teacher_kl.gin --target v5e-16 --price 1.2
    """
    from cot_flax.planning import targets

    wanted = targets.find(target)
    os.environ.update(targets.environment(wanted))
    _parse(context, gin_file, gin_search_paths)
    import jax

    from cot_flax.planning import program
    from cot_flax.planning.experiment import resolve_mesh
    from cot_flax.planning.plan import compiled
    from cot_flax.planning.search import fastest, remedies, smallest
    from cot_flax.reports import plan as report

    if wanted.topology:  # what is compiled for chips that are not there cannot be read back
        jax.config.update("jax_enable_compilation_cache", False)
    chips, tries = program.devices(wanted), itertools.count(1)

    def planned(experiment):
        experiment = resolve_mesh(experiment, wanted)
        with report.compiling(experiment, wanted, next(tries)):
            return compiled(experiment, wanted, chips, price)

    typed = experiment = read_experiment()
    if search:
        options = fastest(experiment, wanted, planned)
        if best := report.print_options("The fastest mesh and REMAT that fit:", options):
            report.print_plan(best.plan)
            return
        experiment = smallest(experiment, wanted)
    found = planned(experiment)
    report.print_plan(found)
    if not found.memory.fits:
        report.print_options("What would make it fit:", remedies(found, planned, typed))


def _parse(context: typer.Context, files: list[str], search_paths: str) -> None:
    """Reads the experiment; what a plan has no use for, such as MODEL_DIR, may be missing."""
    try:
        parse_gin(context, files, search_paths)
    except UserError as error:
        missing = re.match(r"got no value for (\w+);", str(error))
        flag = f"--gin.{missing[1]}=None" if missing else ""
        if not missing or missing[1] in NEEDED or flag in context.args:
            raise
        context.args.append(flag)
        _parse(context, files, search_paths)


def read_experiment():
    """The trainer's settings from gin, without those that open data or checkpoints."""
    import gin

    from cot_flax.planning.experiment import Experiment

    try:
        bound = gin.get_bindings("loop.train", resolve_references=False)
        data = gin.get_bindings("batches.TaskBatches")
    except ValueError:  # nothing imports the trainer
        bound = data = {}
    if "model" not in bound or "feature_lengths" not in data:
        raise UserError(
            "gin files without loop.train", "a training experiment", "correct --gin_file"
        )
    names = {"model", "objective", "optimizer", "mesh", "microbatches", "total_steps"}
    # A deep copy is how gin makes what a reference stands for.
    made = {name: copy.deepcopy(bound[name]) for name in names & bound.keys()}
    lengths = data["feature_lengths"]
    return Experiment(
        steps=made.pop("total_steps"),
        batch_size=data["batch_size"],
        inputs=lengths["inputs"],
        targets=lengths["targets"],
        packed=data.get("pack", False),
        top_k=_top_k(),
        **made,
    )


def _top_k() -> int:
    """Of the teacher's store where there is one already, else what `prepare` would make."""
    import gin

    from cot_flax.store import layout

    try:
        store = gin.query_parameter("TEACHER_STORE/gin.macro.value")
        return layout.read_manifest(store)["top_k"]
    except (ValueError, UserError):
        return TOP_K
