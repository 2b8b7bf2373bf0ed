"""The command line: it reads arguments, calls one function a verb, prints errors in one line."""

import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cot_flax.errors import UserError

app = typer.Typer(
    help="Teach small encoder-decoders to reason step by step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
teach_app = typer.Typer(help="Make a samples file: one teacher chain a line.", no_args_is_help=True)
app.add_typer(teach_app, name="teach")

GIN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
GinFile = Annotated[list[str], typer.Option("--gin_file", help="A gin file; may be repeated.")]
SearchPaths = Annotated[
    str, typer.Option("--gin_search_paths", help="Comma-separated folders of gin files.")
]
Out = Annotated[str, typer.Option("--out", help="Where to write.")]


@app.command()
def demo(
    out: Out = "runs/demo",
    seed: Annotated[int, typer.Option(help="Of the world, the teacher and the students.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Two minutes instead of ten.")] = False,
):
    """Teach the embedded world's student four ways and compare them.

    Example: cot-flax demo --out runs/demo
    """
    _prepare_libraries()
    from cot_flax import demo as demo_module

    demo_module.run(out=Path(out), seed=seed, fast=fast)


@teach_app.command("stories")
def teach_stories(
    out: Out,
    stories: Annotated[int, typer.Option(help="Training stories.")] = 6000,
    samples: Annotated[int, typer.Option(help="Chains a story.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the stories and of the teacher.")] = 0,
):
    """Let the embedded world's teacher write.

    Example: cot-flax teach stories --out runs/samples.jsonl.gz
    """
    from cot_flax.teacher.samples import write_samples
    from cot_flax.world.stories import make_stories
    from cot_flax.world.teacher import make_samples

    training = make_stories(stories, split="train", seed=seed)
    write_samples(out, make_samples(training, samples=samples, seed=seed))
    typer.echo(f"{stories * samples:,} samples in {out}")


@teach_app.command("import-codex")
def teach_import_codex(
    dump: Annotated[str, typer.Argument(help="JSON Lines of paper [1]'s Codex outputs.")], out: Out
):
    """Turn paper [1]'s Codex dump into a samples file.

    Example: cot-flax teach import-codex codex_top5.jsonl --out samples.jsonl
    """
    from cot_flax.teacher.codex import read_codex_dump
    from cot_flax.teacher.samples import write_samples

    samples = list(read_codex_dump(dump))
    write_samples(out, samples)
    typer.echo(f"{len(samples):,} samples in {out}")


@app.command(context_settings=GIN_FLAGS)
def prepare(
    context: typer.Context,
    samples: Annotated[str, typer.Argument(help="A samples file, .jsonl or .jsonl.gz.")],
    out: Out,
    task: Annotated[str, typer.Option(help="A task of the student: it has the vocabulary.")],
    top_k: Annotated[int, typer.Option(help="Teacher entries a position.")] = 5,
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
    gin_search_paths: SearchPaths = "",
):
    """Keep the right chains, align the teacher's tokens with the student's, and store both.

    Example: cot-flax prepare samples.jsonl --out store --task stories_teacher_zero_shot_cot
    """
    _prepare_libraries()
    from cot_flax.data import store
    from cot_flax.data.batches import find_task
    from cot_flax.data.registration import cot_task
    from cot_flax.teacher.samples import read_samples

    _import_tasks()
    _parse_gin(context, gin_file, gin_search_paths)
    manifest = store.write_store(
        out,
        read_samples(samples),
        vocabulary=find_task(task).output_features["targets"].vocabulary,
        top_k=top_k,
        answer_kind=cot_task(task).answer_kind,
    )
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest["counts"].items())
    typer.echo(f"{counts}; store in {out}")


@app.command(context_settings=GIN_FLAGS)
def train(context: typer.Context, gin_file: GinFile, gin_search_paths: SearchPaths = ""):
    """Train a student as a gin experiment says.

    Example: cot-flax train --gin_file=experiments/world_base.gin --gin.MODEL_DIR="'runs/base'"
    """
    _prepare_libraries()
    from cot_flax import configuration

    _parse_gin(context, gin_file, gin_search_paths)
    configuration.save(Path(configuration.macro("MODEL_DIR")) / "config.gin")
    configuration.call("loop.train")


@app.command(context_settings=GIN_FLAGS)
def evaluate(context: typer.Context, gin_file: GinFile, gin_search_paths: SearchPaths = ""):
    """Decode held-out questions with a checkpoint and score the answers.

    Example: cot-flax evaluate --gin_file=experiments/world_evaluate.gin
    --gin.CHECKPOINT_PATH="'runs/base'" --gin.EVAL_OUTPUT_DIR="'runs/base/test'"
    """
    _prepare_libraries()
    from cot_flax import configuration
    from cot_flax.evaluation import report

    _parse_gin(context, gin_file, gin_search_paths)
    report.print_results(configuration.call("run.evaluate"))


@app.command("report")
def report_command(
    runs: Annotated[list[str], typer.Argument(help="Model directories that were evaluated.")],
    out: Out = "report.html",
):
    """Compare runs in one HTML page: accuracies, learning curves, sample chains.

    Example: cot-flax report runs/demo/cot_ce runs/demo/cot_kl --out report.html
    """
    from cot_flax.evaluation import report

    # Folders of one name keep their whole path, or the later one would hide the other.
    names = [Path(run).name for run in runs]
    labels = names if len(set(names)) == len(names) else runs
    report.write(Path(out), dict(zip(labels, map(Path, runs), strict=True)))
    typer.echo(out)


def main() -> None:
    """The entry point: UserError becomes one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        # gin adds lines on where it was; the first one is ours.
        print(f"cot-flax: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


def _parse_gin(context: typer.Context, files: list[str], search_paths: str) -> None:
    from cot_flax import configuration

    bindings = []
    for argument in context.args:
        if not argument.startswith("--gin.") or "=" not in argument:
            raise UserError(
                f"argument {argument!r}", "--gin.NAME=VALUE", "see cot-flax COMMAND --help"
            )
        bindings.append(argument.removeprefix("--gin."))
    configuration.parse(files, bindings, [path for path in search_paths.split(",") if path])


def _import_tasks() -> None:
    from cot_flax.tasks import abilities, gsm8k, stories  # noqa: F401


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


def _prepare_libraries() -> None:
    """Quiets what talks too much and keeps compiled programs between runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import logging

    _import_quietly("cot_flax.data")
    import jax

    logging.getLogger("absl").setLevel(logging.ERROR)
    cache = os.environ.get("COT_FLAX_CACHE", str(Path.home() / ".cache" / "cot-flax"))
    jax.config.update("jax_compilation_cache_dir", f"{cache}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    main()
