"""How a run ends: the base student against the taught one, the report, what can be done next."""

from collections.abc import Sequence
from pathlib import Path

import typer

from cot_flax.distill import recipe, stages
from cot_flax.distill.stages import BASE
from cot_flax.files import path_at
from cot_flax.reports import comparison


def show(files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()) -> None:
    """Prints the table and the next commands of a recipe that has run."""
    read = recipe.read_recipe(files, bindings, search_paths)
    found = recipe.recipe_of(read)
    steps = {step.name: step for step in stages.steps_of(read, files, bindings, search_paths)}
    student, run = str(recipe.value(read, "CHECKPOINT_PATH")), recipe.run_of(read)
    if "evaluate" in steps:
        runs = {BASE: path_at(found.base)} if BASE in steps else {}
        runs["student"] = path_at(run)
        comparison.print_table(runs, base=BASE if BASE in steps else None)
        if BASE not in steps:
            typer.echo("no base to compare with: the student began with random weights")
    for line in next_commands(steps, student, run, found, files):
        typer.echo(line)


def next_commands(
    steps, student: str, run: str, found: recipe.Recipe, files: Sequence[str]
) -> list[str]:
    """What was left where, and commands that go on from there."""
    lines = []
    if "report" in steps:
        lines.append(f"report:   {found.report}")
    if "export" in steps:
        lines.append(f"exported: {found.export} (format {found.export_format})")
    gin = " ".join(f"--gin_file={file}" for file in files)
    if "evaluate" in steps:
        lines.append(
            f"evaluate: cot-flax evaluate {gin} --gin.TEST_TASKS=TASKS "
            f"--gin.EVAL_OUTPUT_DIR={Path(run) / 'other'}"
        )
    if "train" in steps and "export" not in steps:
        lines.append(
            f"export:   cot-flax export --checkpoint {student} --format huggingface "
            f"--out {found.export}"
        )
    return lines
