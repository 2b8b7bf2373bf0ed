"""`cot-flax prepare`: from samples to a store."""

from pathlib import Path
from typing import Annotated

import typer

from cot_flax.cli.common import (
    GinFile,
    Out,
    SearchPaths,
    import_tasks,
    parse_gin,
    prepare_libraries,
    take_other_flags,
    without_flags,
)

_KEEP = {"rich_help_panel": "What is kept"}
_ALIGN = {"rich_help_panel": "How it is aligned"}
_RUN = {"rich_help_panel": "How it runs"}


def prepare(
    context: typer.Context,
    samples: Annotated[
        list[str],
        typer.Argument(help="Samples files (.jsonl), FLAN's .tsv or the CoT Collection's .json."),
    ],
    out: Out,
    task: Annotated[str, typer.Option(help="A task of the student: it has the vocabulary.")],
    rules: Annotated[
        str | None,
        typer.Option(
            help="default, fu2023, ho2022, kim2023 or none; by default `default` for samples files "
            "and `none` for the others, whose answers are given.",
            **_KEEP,
        ),
    ] = None,
    require_logprobs: Annotated[
        bool, typer.Option("--require-logprobs", help="Drop chains without, as KL wants.", **_KEEP)
    ] = False,
    consistent: Annotated[
        bool, typer.Option("--consistent", help="Drop chains with a wrong equation.", **_KEEP)
    ] = False,
    similarity: Annotated[
        float,
        typer.Option(
            help="Drop chains this similar to another of the question (Jaccard index of word "
            "3-grams); 1 drops equal wording only, 0 nothing.",
            **_KEEP,
        ),
    ] = 1.0,
    per_question: Annotated[
        int | None, typer.Option(help="Chains a question, at most.", **_KEEP)
    ] = None,
    balance: Annotated[
        int | None,
        typer.Option(help="Chains of a question with the same equations, at most.", **_KEEP),
    ] = None,
    max_target_tokens: Annotated[
        int | None, typer.Option(help="Drop longer chains.", **_KEEP)
    ] = None,
    max_question_tokens: Annotated[
        int | None, typer.Option(help="Drop longer questions.", **_KEEP)
    ] = None,
    top_k: Annotated[int, typer.Option(help="Teacher entries a position.", **_ALIGN)] = 5,
    alignment: Annotated[
        str, typer.Option(help="bytes, or fu2023: paper [1]'s dynamic program.", **_ALIGN)
    ] = "bytes",
    projection: Annotated[
        str,
        typer.Option(
            help="paths, or fu2023: the rule of paper [1], which keeps fewer positions soft.",
            **_ALIGN,
        ),
    ] = "paths",
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default one a core.", **_RUN)
    ] = None,
    max_rejected: Annotated[
        float,
        typer.Option(help="Share of unreadable records to go on with.", **_RUN),
    ] = 0.05,
    runner: Annotated[
        str | None,
        typer.Option(
            help="Run on Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, ... Beam's own "
            "flags go with it as --NAME=VALUE.",
            **_RUN,
        ),
    ] = None,
    gin_file: GinFile = [],  # noqa: B006 (typer copies it)
    gin_search_paths: SearchPaths = "",
):
    """Keep the right chains, align the teacher's tokens with the student's, and store both.

    Example: cot-flax prepare samples.jsonl --out store --task stories_teacher_zero_shot_cot
    """
    files = without_flags(context, samples)
    beam_flags = take_other_flags(context) if runner else []
    prepare_libraries()
    from cot_flax.chains.filtering import Filters
    from cot_flax.chains.preparation import Preparation
    from cot_flax.chains.readers import find_format
    from cot_flax.data.batches import find_task
    from cot_flax.data.registration import cot_task

    import_tasks()
    parse_gin(context, gin_file, gin_search_paths)
    vocabulary = find_task(task).output_features["targets"].vocabulary
    filters = Filters(
        rules=rules or find_format(files[0]).rules,
        answer_kind=cot_task(task).answer_kind,
        require_logprobs=require_logprobs,
        consistent=consistent,
        similarity=similarity or None,
        per_question=per_question,
        balance=balance,
    )
    settings = Preparation(
        filters,
        top_k=top_k,
        alignment=alignment,
        projection=projection,
        max_target_tokens=max_target_tokens,
        max_question_tokens=max_question_tokens,
    )
    options = {
        "vocabulary": vocabulary,
        "settings": settings,
        "max_rejected": max_rejected,
    }
    if runner:
        from cot_flax.store import beam

        flags = [f"--runner={runner}", *beam_flags]
        tally = beam.prepare(files, out, flags=flags, **options)
    else:
        from cot_flax.store.prepare import prepare as make_store

        tally = make_store(files, out, workers=workers, progress=_show, **options)
    typer.echo(tally.summary())
    typer.echo(f"store in {out}; see {Path(out) / 'prepare_report.html'}")


def _show(tally) -> None:
    typer.echo(f"  {tally.read:,} records, {tally.kept:,} kept", err=True)
