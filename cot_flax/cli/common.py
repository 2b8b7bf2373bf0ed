"""What the verbs share: gin flags, quiet libraries, the tasks that come with the package."""

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cot_flax.errors import UserError

GIN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
GinFile = Annotated[list[str], typer.Option("--gin_file", help="A gin file; may be repeated.")]
SearchPaths = Annotated[
    str, typer.Option("--gin_search_paths", help="Comma-separated folders of gin files.")
]
CoordinatorAddress = Annotated[
    str | None,
    typer.Option(
        "--coordinator_address",
        envvar="JAX_COORDINATOR_ADDRESS",
        help="HOST:PORT of the first of several processes; TPU pods, GKE and Slurm say it.",
    ),
]
ProcessCount = Annotated[
    int | None, typer.Option("--process_count", envvar="JAX_NUM_PROCESSES", help="How many.")
]
ProcessIndex = Annotated[
    int | None, typer.Option("--process_index", envvar="JAX_PROCESS_ID", help="Which, from 0.")
]
Out = Annotated[str, typer.Option("--out", help="Where to write.")]


def parse_gin(
    context: typer.Context,
    files: list[str],
    search_paths: str,
    needed: Sequence[str] | None = None,
) -> None:
    """Reads gin files and the flags of a verb; what is wrong with them costs no import of JAX.

    Args:
        needed: as of `configuration.parse`.
    """
    from cot_flax import configuration

    bindings, folders = _bindings(context), [path for path in search_paths.split(",") if path]
    searched = ["", *folders, str(configuration.gin_root())]
    for file in files:
        if not any((Path(folder) / file).is_file() for folder in searched):
            raise UserError(f"no gin file {file}", f"one within {searched}", "correct --gin_file")
    prepare_libraries()
    configuration.parse(files, bindings, folders, needed)


def _bindings(context: typer.Context) -> list[str]:
    bindings = []
    for argument in context.args:
        if not argument.startswith("--gin.") or "=" not in argument:
            raise UserError(
                f"argument {argument!r}", "--gin.NAME=VALUE", "see cot-flax COMMAND --help"
            )
        bindings.append(argument.removeprefix("--gin."))
    return bindings


def without_flags(context: typer.Context, words: list[str]) -> list[str]:
    """Takes --NAME=VALUE out of an argument that may be repeated, which swallows such flags."""
    context.args += [word for word in words if word.startswith("--")]
    return [word for word in words if not word.startswith("--")]


def take_other_flags(context: typer.Context) -> list[str]:
    """Takes the flags that are not gin's out of the context, for a library that has its own."""
    others = [word for word in context.args if not word.startswith("--gin.")]
    context.args[:] = [word for word in context.args if word.startswith("--gin.")]
    return others


def import_tasks() -> None:
    from cot_flax.tasks import abilities, gsm8k, scenario, stories  # noqa: F401


def _import_quietly(module: str) -> None:
    """Imports what starts TensorFlow, whose C++ side prints about missing GPUs in any setting."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            importlib.import_module(module)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def prepare_libraries() -> None:
    """Quiets what talks too much and keeps compiled programs between runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import logging

    _import_quietly("cot_flax.data")
    import jax

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what stops a run is raised too
    cache = os.environ.get("COT_FLAX_CACHE", str(Path.home() / ".cache" / "cot-flax"))
    jax.config.update("jax_compilation_cache_dir", f"{cache}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
