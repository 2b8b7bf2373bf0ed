"""Options that name a teacher and bound a run; shared by the verbs that ask one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from cot_flax.errors import UserError

_WHO = {"rich_help_panel": "The teacher"}
_RUN = {"rich_help_panel": "How it runs"}

Model = Annotated[
    str | None, typer.Option(help="A model of an OpenAI-compatible server, by its name.", **_WHO)
]
BaseUrl = Annotated[
    str | None,
    typer.Option(help="The server, such as http://localhost:8000/v1; else OpenAI's.", **_WHO),
]
KeyVariable = Annotated[
    str, typer.Option(help="The environment variable that holds the server's key.", **_WHO)
]
Checkpoint = Annotated[
    str | None, typer.Option(help="Instead: a checkpoint of cot-flax, with --vocabulary.", **_WHO)
]
Vocabulary = Annotated[
    str | None, typer.Option(help="The SentencePiece model of --checkpoint.", **_WHO)
]
HuggingFace = Annotated[
    str | None,
    typer.Option(
        "--huggingface",
        help="Instead: a causal LM's folder or hub name (extra `huggingface`).",
        **_WHO,
    ),
]
GgufFile = Annotated[str | None, typer.Option(help="A GGUF file of --huggingface.", **_WHO)]

Concurrency = Annotated[int, typer.Option(help="Requests in flight, at most.", **_RUN)]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", **_RUN)]
PriceIn = Annotated[float | None, typer.Option(help="$ per million prompt tokens.", **_RUN)]
PriceOut = Annotated[float | None, typer.Option(help="$ per million written tokens.", **_RUN)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print prompts, requests and cost; ask nothing.", **_RUN)
]


@dataclass(frozen=True)
class Choice:
    """Which teacher the options name."""

    model: str | None
    base_url: str | None
    key_variable: str
    checkpoint: str | None
    vocabulary: str | None
    huggingface: str | None
    gguf_file: str | None
    timeout: float

    @property
    def name(self) -> str:
        """What answers are filed under; raises UserError unless exactly one teacher is named."""
        named = [name for name in (self.model, self.checkpoint, self.huggingface) if name]
        if len(named) != 1:
            raise UserError(
                f"{len(named)} teachers",
                "one of --model, --checkpoint, --huggingface",
                "name one",
            )
        return named[0]

    def open(self):
        """Loads or connects the teacher; imports what only this one needs."""
        if self.name == self.model:
            from cot_flax.teacher.sampling.client import OpenAITeacher

            return OpenAITeacher(
                self.model,
                base_url=self.base_url,
                key_variable=self.key_variable,
                timeout=self.timeout,
            )
        if self.name == self.huggingface:
            from cot_flax.interop.huggingface_teacher import HuggingFaceTeacher

            return HuggingFaceTeacher(self.huggingface, gguf_file=self.gguf_file)
        if not self.vocabulary:
            got = "--checkpoint without --vocabulary"
            raise UserError(got, "the checkpoint's SentencePiece model", "pass --vocabulary FILE")
        from cot_flax.interop.jax_teacher import JaxTeacher

        return JaxTeacher(self.checkpoint, self.vocabulary)


def run(
    choice: Choice,
    questions: Sequence,
    recipe,
    out: str,
    *,
    concurrency: int,
    price_in: float | None,
    price_out: float | None,
    dry_run: bool,
) -> None:
    """Samples, or says what sampling would do."""
    from cot_flax.teacher.sampling import costs
    from cot_flax.teacher.sampling.run import sample

    prices = read_prices(price_in, price_out)
    plan = costs.plan(questions, recipe, choice.name, out, prices=prices)
    if dry_run:
        for prompt in plan.prompts:
            typer.echo(f"{_shown(prompt)}\n{'-' * 40}")
    typer.echo(_planned(plan), err=not dry_run)
    if not dry_run:
        totals = sample(
            questions, recipe, choice.open(), out, concurrency=concurrency, prices=prices
        )
        typer.echo(done(totals, out))


def read_prices(price_in: float | None, price_out: float | None):
    """The two prices; one alone is an error."""
    from cot_flax.teacher.sampling.costs import Prices

    if (price_in is None) != (price_out is None):
        raise UserError("one price", "--price-in and --price-out", "give both or none")
    return None if price_in is None else Prices(price_in, price_out)


def done(totals, out: str) -> str:
    """What a run did, in a line or two."""
    lines = [
        f"{totals.samples:,} samples in {out}: {totals.requests:,} requests, "
        f"{totals.from_journal:,} answers from the journal; {_spent(totals)}"
    ]
    if totals.problems:
        named = ", ".join(f"{name} {count:,}" for name, count in totals.problems.most_common())
        lines.append(f"without log-probabilities: {named}")
    return "\n".join(lines)


def _planned(plan) -> str:
    return (
        f"{plan.questions:,} questions, {plan.requests:,} first requests, of which the journal "
        f"answers {plan.answered:,}; at most {plan.most_requests:,} requests to send: "
        f"{_spent(plan)} (prompt tokens are estimated as characters / 4, written ones are an upper "
        "bound)"
    )


def _spent(counts) -> str:
    cost = "" if counts.cost is None else f", ${counts.cost:,.2f}"
    return f"{counts.prompt_tokens:,} prompt tokens, {counts.completion_tokens:,} written{cost}"


def _shown(prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)
