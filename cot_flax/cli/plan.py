"""`cot-flax plan`: what a run takes, before it starts."""

import os
from typing import Annotated

import typer

from cot_flax.cli.common import GinFile, SearchPaths, parse_gin

NEEDED = ("MODEL", "OBJECTIVE", "OPTIMIZER", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS", "BATCH_SIZE")
"""The macros of a training experiment that a plan reads; others may be without a value."""


def plan(
    context: typer.Context,
    target: Annotated[
        str, typer.Option(help="A slice or GPU: v5e-16, v5p-64, v6e-256, h200, a100-80x8, cpu.")
    ],
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
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
    parse_gin(context, gin_file, gin_search_paths, needed=NEEDED)
    import jax

    from cot_flax.planning import program
    from cot_flax.reports import plan as report

    if wanted.topology:  # what is compiled for chips that are not there cannot be read back
        jax.config.update("jax_enable_compilation_cache", False)
    chips = program.devices(wanted)
    report.plan_run(read_experiment(), wanted, chips, price=price, search=search)


def read_experiment():
    """The trainer's settings from gin, without those that open data or checkpoints."""
    from cot_flax import configuration
    from cot_flax.planning import experiment
    from cot_flax.store import layout

    trainer = configuration.bound("loop.train", experiment.TRAINER_ARGUMENTS)
    data = configuration.bound("batches.TaskBatches", experiment.DATA_ARGUMENTS)
    store = configuration.macro("TEACHER_STORE", default=None)
    return experiment.of_run(trainer, data, layout.top_k_of(store, experiment.TOP_K))
