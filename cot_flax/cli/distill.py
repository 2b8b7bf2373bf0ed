"""`cot-flax distill`: the whole way, from questions to a taught student and its report."""

import os
from typing import Annotated

import typer

from cot_flax.cli.common import GinFile, SearchPaths, gin_bindings


def distill(
    context: typer.Context,
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
    gin_search_paths: SearchPaths = "",
    redo: Annotated[
        bool,
        typer.Option(
            "--redo", help="Begin stages anew that were begun with other settings; answers stay."
        ),
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with such stages as they are.")
    ] = False,
):
    """Run a recipe's stages: teach, prepare, train, evaluate, report, export; skip what is done.

    Example: cot-flax distill --gin_file=recipes/NAME.gin
    """
    from cot_flax.distill import run, summary

    files = list(map(os.path.expanduser, gin_file))
    folders = [os.path.expanduser(path) for path in gin_search_paths.split(",") if path]
    bindings = gin_bindings(context)
    run.run(files, bindings, folders, redo=redo, accept_changes=accept_changes)
    summary.show(files, bindings, folders)
