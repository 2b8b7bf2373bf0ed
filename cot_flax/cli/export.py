"""`cot-flax export`: a student for other libraries."""

import time
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[
        str,
        typer.Option(
            help="A model directory, a Hugging Face folder or hub name, a T5X checkpoint."
        ),
    ],
    format: Annotated[str, typer.Option(help="huggingface or t5x.")],
    out: Annotated[str, typer.Option(help="A folder that is not there yet, here or gs://.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A spiece.model or tokenizer.json; by default the checkpoint's."),
    ] = None,
    license: Annotated[
        str,
        typer.Option(help="The student's licence for the card's header, such as apache-2.0."),
    ] = "",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", "--allow_pickle", help="Read PyTorch's .bin files.")
    ] = False,
    local_files_only: Annotated[
        bool,
        typer.Option(
            "--local-files-only", "--local_files_only", help="Of the hub, take the cache alone."
        ),
    ] = False,
):
    """Write a student for Hugging Face's transformers or for T5X.

    Example: cot-flax export --checkpoint runs/demo/world_cot_kl --format huggingface --out student
    """
    from functools import partial

    from cot_flax.reports import card
    from cot_flax.weights.export import export
    from cot_flax.weights.source import Access

    start = time.perf_counter()
    written = export(
        checkpoint,
        out,
        format=format,
        card=partial(card.write, license=license),
        dtype=dtype,
        tokenizer=tokenizer,
        access=Access(allow_pickle, local_files_only),
    )
    typer.echo(
        f"{written.parameters:,} parameters of {written.place} as {dtype} in {out}: "
        f"{written.bytes / 1e6:,.1f} MB, {time.perf_counter() - start:.1f} s"
    )
