"""`cot-flax distill`: the whole way, from questions to a taught student and its report."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated

import typer

from cot_flax.cli.common import GinFile, SearchPaths, gin_bindings, prepare_libraries, words_of
from cot_flax.cli.plan import NEEDED, read_experiment
from cot_flax.errors import UserError

_DATA = "The questions"
_WHO = "Teacher and student"
_HOW = "How it runs"


def distill(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Questions with answers (JSON Lines, JSON, CSV, TSV, Parquet), chains, a samples "
            "file, or a scenario's folder. Without it --gin_file names a recipe.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where all goes; by default runs/ and the name of the file.", show_default=False
        ),
    ] = None,
    student: Annotated[
        str,
        typer.Option(
            help="A checkpoint, a T5's name on the hub, or a gin file of models/ (random weights).",
            rich_help_panel=_WHO,
        ),
    ] = "google/flan-t5-base",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The server, such as http://localhost:8000/v1.",
            rich_help_panel=_WHO,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The teacher's name there. Without one the file's chains are learnt.",
            rich_help_panel=_WHO,
            show_default=False,
        ),
    ] = None,
    completions: Annotated[
        bool,
        typer.Option(
            "--completions", help="Ask by the completions API, not by chat.", rich_help_panel=_WHO
        ),
    ] = False,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="A SentencePiece model, where none lies beside the student.",
            rich_help_panel=_WHO,
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="The field of the question.", rich_help_panel=_DATA, show_default=False),
    ] = None,
    rationale: Annotated[
        str | None,
        typer.Option(help="The field of the chain.", rich_help_panel=_DATA, show_default=False),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(help="The field of the answer.", rich_help_panel=_DATA, show_default=False),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Of the answers: number, choice, yes_no, labels, text; else they are looked at.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    ask: Annotated[
        str | None,
        typer.Option(
            help="A text to add to each question; else the labels, where the teacher must know "
            "them.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is held out.", rich_help_panel=_DATA)] = 0,
    price_in: Annotated[
        float | None,
        typer.Option(help="$ per million prompt tokens.", rich_help_panel=_HOW, show_default=False),
    ] = None,
    price_out: Annotated[
        float | None,
        typer.Option(
            help="$ per million written tokens.", rich_help_panel=_HOW, show_default=False
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="$ that the teacher may take; wants prices.",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="What time and memory are estimated for.", rich_help_panel=_HOW),
    ] = "cpu",
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
    gin_search_paths: SearchPaths = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write the recipe, print what it will ask, cost and take, and end.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    redo: Annotated[
        bool,
        typer.Option(
            "--redo",
            help="Begin stages anew that were begun with other settings; answers stay.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes", help="Go on with such stages as they are.", rich_help_panel=_HOW
        ),
    ] = False,
):
    """Teach a student from a file of questions, or by a recipe; run again, it goes on.

    Example: cot-flax distill tickets.jsonl --teacher http://localhost:8000/v1 --model MODEL
    --student google/flan-t5-base --out runs/tickets
    """
    from cot_flax.distill import run, start, summary

    files = list(map(os.path.expanduser, gin_file))
    folders = [os.path.expanduser(path) for path in gin_search_paths.split(",") if path]
    words = words_of(context, data)
    data, bindings = (words[0] if words else None), gin_bindings(context)
    if bool(data) == bool(files):
        raise UserError(
            "both a file of questions and --gin_file" if data else "neither questions nor a recipe",
            "one of the two",
            "write cot-flax distill FILE --student NAME, or cot-flax distill --gin_file=RECIPE",
        )
    asks = True
    if data:
        if teacher and not model:
            raise UserError("--teacher without --model", "both", "name its model: --model NAME")
        fields = {"question": question, "text": rationale, "gold_answer": answer}
        options = start.Options(
            data=os.path.expanduser(data),
            out=(out or f"runs/{_stem(data)}").rstrip("/"),
            student=student,
            columns={name: column for name, column in fields.items() if column},
            url=teacher,
            model=model,
            chat=not completions,
            kind=kind,
            ask=ask,
            vocabulary=vocabulary,
            price_in=price_in,
            price_out=price_out,
            max_cost=max_cost,
            seed=seed,
        )
        started = start.start(options, sys.argv[1:], dry_run=dry_run, redo=redo)
        for line in started.lines:
            typer.echo(line)
        files, asks = [started.file], started.asks
    if data or dry_run:
        _show_plan(files, bindings, folders, target, dry_run=dry_run, asks=asks)
    if dry_run:
        return
    run.run(files, bindings, folders, redo=redo, accept_changes=accept_changes)
    summary.show(files, bindings, folders)


def _stem(data: str) -> str:
    from cot_flax.chains.file_names import divided_name

    return divided_name(data.rstrip("/"))[0]


def _show_plan(files, bindings, folders, target: str, *, dry_run: bool, asks: bool) -> None:
    """Prints what is left of a recipe: requests and their cost, steps, time and bytes."""
    from cot_flax.distill import defaults, recipe, run, stages

    read = recipe.read_recipe(files, bindings, folders)
    recipe.check_folder(recipe.recipe_of(read).out)
    left = run.pending(read, stages.steps_of(read, files, bindings, folders))
    names = [step.name for step in left]
    if left:
        typer.echo(f"stages: {', '.join(map(run.title, left))}")
    if asks and "teach" in names:
        step = next(step for step in left if step.name == "teach")
        words = [*run.COMMAND, *step.command, "--dry-run"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(_said(done))
        lines = done.stdout.strip().splitlines()
        typer.echo("\n".join(lines if dry_run else lines[-1:]))
    if "train" in names:
        counted = []
        if (epochs := recipe.value(read, "EPOCHS")) and "prepare" in names:
            # The store of which they are counted is not there yet, or will be another one.
            examples = stages.State.read(recipe.recipe_of(read).out).written.get("examples")
            if examples is None:
                typer.echo(f"training: EPOCHS {epochs:g} of a store that is not there yet to count")
                return
            steps = defaults.steps_of(epochs, examples, recipe.value(read, "BATCH_SIZE"))
            counted = [f"TRAIN_STEPS={steps}", "EPOCHS=None"]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            planned = pool.submit(_planned, files, [*bindings, *counted], folders, target)
            typer.echo(planned.result())


def _said(done: subprocess.CompletedProcess) -> int:
    print((done.stderr.strip().splitlines() or [""])[-1], file=sys.stderr)
    return done.returncode


def _planned(files, bindings, folders, target: str) -> str:
    """Steps, time and bytes of training, by formula; in a process of its own, for it loads JAX."""
    from cot_flax.planning import targets

    wanted = targets.find(target)
    os.environ.update(targets.environment(wanted))
    from cot_flax import configuration
    from cot_flax.distill import recipe

    more, _ = recipe.of_stage("train", files, bindings, folders) or ([], ())
    configuration.parse(files, [*bindings, *more], folders, NEEDED, prepare_libraries)
    from cot_flax.planning import plan

    found = plan.modelled(read_experiment(), wanted)
    memory, kept = found.memory, configuration.macro("KEEP_CHECKPOINTS", 3)
    disk = kept * memory.state + found.bill.teacher_bytes
    fits = "" if memory.fits else f", of {memory.capacity / 2**30:,.1f}: lower BATCH_SIZE"
    return (
        f"training: {found.parameters:,} parameters, {found.experiment.steps:,} steps of "
        f"{found.estimate.step:.2g} s = {_time(found.bill.hours)} on {wanted.name} by a model "
        f"(docs/plans.md); {memory.total / 2**30:.1f} GiB of memory{fits}, "
        f"{disk / 2**30:.2f} GiB of disk for {kept} checkpoints. Compiling, evaluation and the "
        "start of each stage (some 10 s) are not in it"
    )


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
