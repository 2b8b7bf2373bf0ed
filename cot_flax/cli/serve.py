"""`cot-flax serve`: a student behind OpenAI's HTTP API."""

from pathlib import Path
from typing import Annotated

import typer

from cot_flax.cli.answer import (
    Checkpoint,
    DatasetName,
    MaxTokens,
    SlotCount,
    TemplateName,
    TokenizerFile,
    open_student,
)


def serve(
    checkpoint: Checkpoint = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Of the model; by default the run's.", show_default=False)
    ] = None,
    slots: SlotCount = 8,
    queue: Annotated[
        int, typer.Option(help="Texts that may wait; further requests get a 429.", min=0)
    ] = 64,
    max_tokens: MaxTokens = None,
    max_prompt_tokens: Annotated[
        int,
        typer.Option("--max-prompt-tokens", help="A longer prompt is refused.", min=1),
    ] = 1024,
    format: Annotated[str, typer.Option(help="Of chats.")] = "zero_shot_cot",
    scenario: Annotated[
        str | None, typer.Option(help="A scenario's folder, which says how chats are put.")
    ] = None,
    template: TemplateName = None,
    dataset: DatasetName = None,
    tokenizer: TokenizerFile = None,
):
    """Serve a student as OpenAI's API does: completions as they are, chats in its own prompts.

    Example: cot-flax serve --checkpoint runs/demo/world_cot_kl --port 8000
    """
    import asyncio

    import aiohttp  # noqa: F401 (the extra is named before the checkpoint is read)

    student = open_student(checkpoint, tokenizer, template, dataset)
    from cot_flax.serving.asking import scenario_prompting
    from cot_flax.serving.server import Server

    server = Server(
        student,
        name=name or _name(student.place),
        prompting=scenario_prompting(scenario) if scenario else student.prompting_of(format),
        format=format,
        max_tokens=max_tokens or student.max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        slots=slots,
        queue=queue,
    )

    def started(address: str) -> None:
        typer.echo(f"{server.name} ({slots} slots) at {address}")

    asyncio.run(server.run_until_signal(host, port, started))


def _name(place: str) -> str:
    """The folder of a run, or of other files, without the step within it."""
    parts = [part for part in Path(place).parts if part != "/"]
    return parts[-3] if parts[-2:-1] == ["checkpoints"] and len(parts) > 2 else parts[-1]
