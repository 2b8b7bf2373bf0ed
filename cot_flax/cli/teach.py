"""`cot-flax teach`: samples files, from a teacher or from somebody's files."""

from typing import Annotated

import typer

from cot_flax.cli.common import Out

app = typer.Typer(help="Make a samples file: one teacher chain a line.", no_args_is_help=True)


@app.command("stories")
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


@app.command("import-codex")
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


@app.command("merge")
def merge(files: Annotated[list[str], typer.Argument(help="Samples files.")], out: Out):
    """Merge samples files, so that all chains of a question stand together.

    Example: cot-flax teach merge monday.jsonl tuesday.jsonl.gz --out samples.jsonl.gz
    """
    from cot_flax.teacher.merging import merge_samples

    typer.echo(f"{merge_samples(files, out):,} samples in {out}")
