"""`cot-flax export`: a student for other libraries, or chains for an API that trains one."""

import time
from typing import Annotated

import typer

from cot_flax.cli.common import RecipeFile
from cot_flax.errors import UserError


def export(
    format: Annotated[
        str | None,
        typer.Option(help="huggingface, t5x, ctranslate2 or openai_finetune.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="A folder that is not there yet, here or gs://; of openai_finetune a .jsonl.",
            show_default=False,
        ),
    ] = None,
    gin_file: RecipeFile = [],  # noqa: B006 (typer copies it)
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A model directory, a Hugging Face folder or hub name, a T5X checkpoint."
        ),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(help="Of openai_finetune: samples or other chains; may be repeated."),
    ] = None,
    answer_kind: Annotated[
        str,
        typer.Option(
            "--answer-kind",
            "--answer_kind",
            help="Of samples: number, choice, yes_no, text or gold.",
        ),
    ] = "number",
    rules: Annotated[str, typer.Option(help="Of samples: as prepare's --rules.")] = "own",
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Of openai_finetune: messages, not prompt and completion."),
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            help="Of openai_finetune: by default ho2022_decoder_only, and ho2022 for messages."
        ),
    ] = None,
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
    """Write a student for transformers, T5X or CTranslate2, or chains for OpenAI's fine-tuning.

    Example: cot-flax export --checkpoint runs/demo/world_cot_kl --format huggingface --out student
    """
    if gin_file:
        from cot_flax.distill import recipe

        read = recipe.read_recipe(gin_file)
        of_recipe = recipe.recipe_of(read)
        checkpoint = checkpoint or recipe.value(read, "CHECKPOINT_PATH")
        format, out = format or of_recipe.export_format, out or of_recipe.export
    given = {"--format": format, "--out": out}
    if missing := [name for name, value in given.items() if value is None]:
        remedy = f"pass {', '.join(missing)}, or a recipe's --gin_file"
        raise UserError(f"no {' and no '.join(missing)}", "both", remedy)
    if format == "openai_finetune":
        _finetune(samples or [], out, answer_kind, rules, chat, template)
        return
    from functools import partial

    from cot_flax.reports import card
    from cot_flax.weights.export import export
    from cot_flax.weights.source import Access

    if checkpoint is None or samples:
        got = "--samples" if checkpoint else "no --checkpoint"
        raise UserError(
            f"{got} for --format {format}",
            "a checkpoint; samples are of openai_finetune",
            "add --checkpoint FOLDER, or take --format openai_finetune",
        )
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


def _finetune(
    samples: list[str], out: str, answer_kind: str, rules: str, chat: bool, template: str | None
) -> None:
    from cot_flax.chains import finetune
    from cot_flax.chains.filtering import BY_GOLD, Filters
    from cot_flax.text.answers import marked_kind
    from cot_flax.text.templates import find_template
    from cot_flax.text.wording import ENGLISH

    if not samples:
        raise UserError(
            "no --samples for --format openai_finetune", "a samples file", "add --samples FILE"
        )
    make = finetune.chat_row if chat else finetune.completion_row
    name = template or ("ho2022" if chat else "ho2022_decoder_only")
    chosen = find_template(name).worded(ENGLISH)
    kind = answer_kind
    if kind != BY_GOLD:
        kind = marked_kind(kind, chosen.heads, chosen.stop)
    filters = Filters(rules=rules, answer_kind=kind)
    fates = finetune.write(samples, out, row=make(chosen), filters=filters)
    dropped = ", ".join(f"{name} {n:,}" for name, n in fates.most_common() if name != "kept")
    typer.echo(
        f"{fates['kept']:,} of {fates.total():,} chains in {out}"
        + (f"; dropped: {dropped}" if dropped else "")
    )
