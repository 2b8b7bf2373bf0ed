"""The command line: it reads arguments, calls one function a verb, prints errors in one line."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

import cot_flax
from cot_flax.cli import environment, experiments, teach
from cot_flax.cli.answer import answer
from cot_flax.cli.common import (
    GIN_FLAGS,
    CoordinatorAddress,
    GinFile,
    Out,
    Overwrite,
    ProcessCount,
    ProcessIndex,
    RecipeFile,
    SearchPaths,
    parse_gin,
    prepare_libraries,
    usage_error,
)
from cot_flax.cli.distill import distill
from cot_flax.cli.doctor import doctor
from cot_flax.cli.export import export
from cot_flax.cli.plan import plan
from cot_flax.cli.prepare import prepare
from cot_flax.cli.serve import serve
from cot_flax.errors import UserError, report_error

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(teach.app, name="teach")
app.add_typer(experiments.app, name="experiments")
app.command()(doctor)


_COMPLETES = "_COT_FLAX_COMPLETE"
_PARENT = "COT_FLAX_PARENT"  # as of distill.run, which is not imported for every verb


def _rejoined(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables of bash's completion without the "=" that it makes a word of its own.

    typer takes --NAME=VALUE for two words, and so the "=" for the value.
    """
    words = variables.get("COMP_WORDS", "").split("\n")
    current = int(variables.get("COMP_CWORD", 0))
    kept = [i for i, word in enumerate(words) if word != "=" or i == current]
    count = sum(i < current for i in kept)
    return {"COMP_WORDS": "\n".join(words[i] for i in kept), "COMP_CWORD": str(count)}


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cot-flax {cot_flax.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say it and end."),
    ] = False,
):
    """Teach small models to reason step by step."""


@app.command()
def demo(
    out: Out = "runs/demo",
    seed: Annotated[int, typer.Option(help="Of the world, the teacher and the students.")] = 0,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="In a quarter of the time, and students that learn little."),
    ] = False,
):
    """Teach the embedded world's student four ways and compare them.

    Example: cot-flax demo --out runs/demo
    """
    prepare_libraries()
    from cot_flax.files import work_path
    from cot_flax.lab import demo as demo_module

    demo_module.run(out=work_path(out), seed=seed, fast=fast)


app.command(context_settings=GIN_FLAGS)(prepare)


@app.command(context_settings=GIN_FLAGS)
def train(
    context: typer.Context,
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
    gin_search_paths: SearchPaths = "",
    coordinator_address: CoordinatorAddress = None,
    process_count: ProcessCount = None,
    process_index: ProcessIndex = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in MODEL_DIR and begin anew.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with the run, begun as another one.")
    ] = False,
):
    """Train a student as a gin experiment says; --gin.NAME=VALUE sets any macro of its files.

    Example: cot-flax train --gin_file=experiments/world_base.gin --gin.MODEL_DIR=runs/base
    """
    from cot_flax import configuration

    parse_gin(context, gin_file, gin_search_paths)
    from cot_flax.store import layout
    from cot_flax.training import hosts

    with hosts.initialize_distributed(coordinator_address, process_count, process_index):
        configuration.train(layout.fingerprint, overwrite=overwrite, accept_changes=accept_changes)


@app.command(context_settings=GIN_FLAGS)
def evaluate(
    context: typer.Context,
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
    gin_search_paths: SearchPaths = "",
    coordinator_address: CoordinatorAddress = None,
    process_count: ProcessCount = None,
    process_index: ProcessIndex = None,
    overwrite: Overwrite = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="RUN RUN", help="Test the second against the first, and end."),
    ] = None,
    rescore: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Read an evaluation's answers anew, and end."),
    ] = None,
    answer_mode: Annotated[
        str | None, typer.Option(help="How to read them: strict, flexible or a paper's rule.")
    ] = None,
):
    """Decode held-out questions with a checkpoint and score the answers; or compare two runs.

    --gin.NAME=VALUE sets any macro of the gin files.

    Example: cot-flax evaluate --gin_file=experiments/world_evaluate.gin
    --gin.CHECKPOINT_PATH=runs/base --gin.EVAL_OUTPUT_DIR=runs/base/test
    """
    others = [*gin_file, *context.args]
    if compare:
        _compare(compare, others)
        return
    if rescore:
        _rescore(rescore, answer_mode, others)
        return
    if answer_mode:
        remedy = "bind ANSWER_MODE where answers are decoded"
        raise UserError(f"--answer-mode {answer_mode}", "--rescore FOLDER with it", remedy)
    from cot_flax import configuration

    bindings = ["OVERWRITE=True"] if overwrite else []
    parse_gin(context, gin_file, gin_search_paths, bindings)
    from cot_flax.evaluation import evaluate as evaluation
    from cot_flax.reports import comparison
    from cot_flax.training import hosts

    with hosts.initialize_distributed(coordinator_address, process_count, process_index):
        results = configuration.call(evaluation.evaluate)
        if hosts.is_first():
            comparison.print_results(results)


app.command(context_settings=GIN_FLAGS)(distill)
app.command()(answer)
app.command()(serve)
app.command()(export)
app.command(context_settings=GIN_FLAGS)(plan)


def _compare(runs: tuple[str, str], others: list[str]) -> None:
    if others:
        remedy = "give --compare alone: nothing is decoded"
        raise UserError(f"--compare and {' '.join(others)}", "two evaluated runs", remedy)
    from cot_flax.reports import comparison

    labelled = _labelled(runs)
    if len(labelled) < len(runs):
        raise UserError(f"--compare {runs[0]} with itself", "two runs", "name another one")
    comparison.print_differences(labelled, base=next(iter(labelled)))


def _rescore(folder: str, answer_mode: str | None, others: list[str]) -> None:
    if others:
        remedy = "give --rescore and --answer-mode alone: nothing is decoded"
        raise UserError(f"--rescore and {' '.join(others)}", "one evaluation", remedy)
    from cot_flax.evaluation import rescoring
    from cot_flax.reports import comparison

    comparison.print_results(rescoring.rescore(folder, answer_mode))


def _labelled(runs: Sequence[str]) -> dict[str, str]:
    """Runs by label; those of one name keep their whole path, or the later would hide the other."""
    from cot_flax.files import is_bucket

    if any(map(is_bucket, runs)):
        prepare_libraries()  # what reads buckets starts TensorFlow, which prints
    names = [Path(run).name for run in runs]
    return dict(zip(names if len(set(names)) == len(names) else runs, runs, strict=True))


@app.command("report")
def report_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Model directories that were evaluated.", show_default=False),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The run among them that the price is measured against.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="By default report.html.")] = None,
    gin_file: RecipeFile = [],  # noqa: B006 (typer copies it)
):
    """Compare runs in one HTML page: accuracies, learning curves, sample chains.

    Example: cot-flax report runs/base runs/special --base runs/base --out report.html
    """
    from cot_flax.files import is_bucket, path_at
    from cot_flax.reports import comparison

    if gin_file:
        from cot_flax.distill import stages

        of_recipe = stages.report_of(gin_file)
        runs, base = runs or list(of_recipe.runs), base or of_recipe.base
        out = out or of_recipe.out
    if not runs:
        raise UserError("no runs", "model directories", "name them, or a recipe's --gin_file")
    out = out or "report.html"
    labelled = _labelled(runs)
    if is_bucket(out):
        prepare_libraries()
    by_folder = {path_at(run): label for label, run in labelled.items()}
    if base is not None and path_at(base) not in by_folder:
        raise UserError(f"--base {base}", f"one of {', '.join(runs)}", "name it among the runs too")
    base_label = by_folder[path_at(base)] if base is not None else None
    comparison.write(out, labelled, base_label)
    typer.echo(out)


def main() -> None:
    """The entry point: what a user can mend becomes one line on standard error, exit code 2."""
    try:
        if _COMPLETES in os.environ:  # a shell asks for words, and waits
            os.environ.update(_rejoined(os.environ))
        elif sys.argv[1:2] != ["doctor"]:  # it says what is wrong there, and goes on
            environment.settle()
        if pipe := os.environ.pop(_PARENT, None):
            environment.follow_parent(int(pipe))
        sys.exit(app(prog_name="cot-flax", standalone_mode=False) or 0)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help was printed
            sys.exit(2)
        sys.exit(report_error(usage_error(error) or error))
