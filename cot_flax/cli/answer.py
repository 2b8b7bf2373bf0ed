"""`cot-flax answer`: questions to a student, at the command line."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cot_flax.cli.common import prepare_jax
from cot_flax.errors import UserError

if TYPE_CHECKING:
    from cot_flax.serving.asking import Answer, Reasoner

Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="A run, RUN/best/METRIC, a Hugging Face folder or hub name, a T5X checkpoint.",
        show_default=False,
    ),
]
TokenizerFile = Annotated[
    str | None,
    typer.Option(help="A spiece.model or tokenizer.json; by default the checkpoint's."),
]
TemplateName = Annotated[
    str | None,
    typer.Option(help="Of prompts: by default what the run was trained with, else t5."),
]
DatasetName = Annotated[
    str | None,
    typer.Option(help="Whose prompts, of a run on several data sets with different ones."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", help="Of an output; by default the length of the run's targets.", min=1
    ),
]
SlotCount = Annotated[int, typer.Option(help="Texts decoded at once.", min=1)]


def open_student(
    checkpoint: str | None, tokenizer: str | None, template: str | None, dataset: str | None
) -> "Reasoner":
    """The student of a verb's options; raises UserError where they name none."""
    if checkpoint is None:
        raise UserError("no --checkpoint", "a run or another checkpoint", "pass --checkpoint RUN")
    from cot_flax.weights.opening import check_place

    check_place(checkpoint)  # before JAX is made ready
    prepare_jax()
    from cot_flax.serving.asking import load

    return load(checkpoint, tokenizer=tokenizer, template=template, dataset=dataset)


def answer(
    questions: Annotated[
        list[str] | None,
        typer.Argument(help="Questions; - reads one a line from stdin.", show_default=False),
    ] = None,
    checkpoint: Checkpoint = None,
    file: Annotated[
        str | None,
        typer.Option(help='Questions, one a line: a text, or JSON with "question".'),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="By default zero_shot_cot; few_shot_cot with a scenario."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="A scenario's folder: instruction, exemplars, words, answer kind."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Chains a question, which vote.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(help="By default 0, and 0.7 for several samples.", show_default=False),
    ] = None,
    max_tokens: MaxTokens = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    slots: SlotCount = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a question, in their order.")
    ] = False,
    template: TemplateName = None,
    dataset: DatasetName = None,
    tokenizer: TokenizerFile = None,
):
    """Ask a student: its chain of thought, and the answer that was read in it.

    Example: cot-flax answer --checkpoint runs/demo/world_cot_kl "Anna has 3 coins. ..."
    """
    asked = _questions(questions or [], file)
    student = open_student(checkpoint, tokenizer, template, dataset)
    waiting: dict[int, Answer] = {}
    shown = 0

    def show(place: int, found: "Answer") -> None:
        """In the order of the questions, as soon as all before it have ended."""
        nonlocal shown
        waiting[place] = found
        while shown in waiting:
            one = waiting.pop(shown)
            typer.echo(json.dumps(_row(one), ensure_ascii=False) if as_json else _text(one, asked))
            shown += 1

    student.answer(
        asked,
        format=format,
        scenario=scenario,
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        slots=slots,
        ended=show,
    )


def _questions(given: list[str], file: str | None) -> list[str]:
    found = []
    for word in given:
        found += _lines(sys.stdin.read(), "stdin") if word == "-" else [word]
    if file is not None:
        if file == "-":
            found += _lines(sys.stdin.read(), "stdin")
        else:
            from cot_flax.files import path_at

            try:
                text = path_at(file).read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{file} ({getattr(error, 'strerror', None) or 'no UTF-8'})",
                    "a file of questions",
                    "correct --file",
                ) from error
            found += _lines(text, file)
    if not found:
        raise UserError(
            "no question", "one at least", 'write it in quotes, or pass --file FILE, or "-"'
        )
    return found


def _lines(text: str, place: str) -> list[str]:
    """A question of each line that has one; a line that begins with { is JSON."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("{"):
            found += [line.strip()] if line.strip() else []
            continue
        try:
            question = json.loads(line)["question"]
        except (ValueError, KeyError):
            question = None
        if not isinstance(question, str) or not question.strip():
            raise UserError(
                f"{place}, line {number}: {line.strip()[:80]}",
                'a JSON object with "question", a text',
                "correct the line",
            )
        found.append(question)
    return found


def _row(found: "Answer") -> dict:
    return dataclasses.asdict(found) | {"unread": found.unread}


def _text(found: "Answer", asked: list[str]) -> str:
    """For reading: the chain, then the answer, with its votes where there were several samples."""
    lines = [f"> {found.question}"] * (len(asked) > 1)
    said = "none was found" if found.answer is None else found.answer
    if len(found.texts) > 1:
        said += f" ({', '.join(f'{name}: {n}' for name, n in found.votes.items()) or 'no votes'}"
        said += f"; no answer: {found.unread}" * bool(found.unread)
        said += "; tied, the first drawn counts" * bool(found.tied) + ")"
    return "\n".join([*lines, found.text, f"Answer: {said}", *[""] * (len(asked) > 1)])
