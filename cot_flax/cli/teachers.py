"""Options that name a teacher and bound a run; shared by the verbs that ask one."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import typer

from cot_flax.errors import UserError

_WHO = {"rich_help_panel": "The teacher"}
_RUN = {"rich_help_panel": "How it runs"}


@dataclass(frozen=True)
class Asking:
    """Which teacher to ask, and how: the values of the options of `asks_a_teacher`."""

    model: Annotated[
        str | None,
        typer.Option(help="A model of an OpenAI-compatible server, by its name.", **_WHO),
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(help="The server, such as http://localhost:8000/v1; else OpenAI's.", **_WHO),
    ] = None
    key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the server's key.", **_WHO)
    ] = "OPENAI_API_KEY"
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Instead: a T5, of cot-flax, Hugging Face or T5X.", **_WHO),
    ] = None
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The SentencePiece model of --checkpoint, where none lies beside it.",
            **_WHO,
        ),
    ] = None
    huggingface: Annotated[
        str | None,
        typer.Option(
            "--huggingface",
            help="Instead: a causal LM's folder or hub name (extra `huggingface`).",
            **_WHO,
        ),
    ] = None
    gguf_file: Annotated[str | None, typer.Option(help="A GGUF file of --huggingface.", **_WHO)] = (
        None
    )
    concurrency: Annotated[int, typer.Option(help="Requests in flight, at most.", **_RUN)] = 16
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", **_RUN)] = 300.0
    price_in: Annotated[float | None, typer.Option(help="$ per million prompt tokens.", **_RUN)] = (
        None
    )
    price_out: Annotated[
        float | None, typer.Option(help="$ per million written tokens.", **_RUN)
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print prompts, requests and cost; ask nothing.", **_RUN),
    ] = False

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
            from cot_flax.teacher.client import OpenAITeacher

            return OpenAITeacher(
                self.model,
                base_url=self.base_url,
                key_variable=self.key_variable,
                timeout=self.timeout,
            )
        if self.name == self.huggingface:
            from cot_flax.teacher.local.huggingface import HuggingFaceTeacher

            return HuggingFaceTeacher(self.huggingface, gguf_file=self.gguf_file)
        from cot_flax.teacher.local.checkpoint import JaxTeacher

        return JaxTeacher(self.checkpoint, self.tokenizer)

    @property
    def prices(self):
        """The two prices, None without them; raises UserError for one alone."""
        from cot_flax.teacher.costs import Prices

        if (self.price_in is None) != (self.price_out is None):
            raise UserError("one price", "--price-in and --price-out", "give both or none")
        return None if self.price_in is None else Prices(self.price_in, self.price_out)


def asks_a_teacher(verb: Callable) -> Callable:
    """Gives a verb the options of `Asking`, which it gets as its argument `asking`."""
    own = [p for p in inspect.signature(verb).parameters.values() if p.name != "asking"]
    shared = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in fields(Asking)
    ]

    def command(**values):
        asking = Asking(**{p.name: values.pop(p.name) for p in shared})
        return verb(asking=asking, **values)

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    command.__signature__ = inspect.Signature(
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    )
    command.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return command


def run(asking: Asking, questions: Sequence, recipe, out: str) -> None:
    """Samples, or says what sampling would do."""
    from cot_flax.teacher import costs
    from cot_flax.teacher.dispatch import sample

    prices = asking.prices
    plan = costs.plan(questions, recipe, asking.name, out, prices=prices)
    if asking.dry_run:
        for prompt in plan.prompts:
            typer.echo(f"{_shown(prompt)}\n{'-' * 40}")
    typer.echo(_planned(plan), err=not asking.dry_run)
    if not asking.dry_run:
        totals = sample(
            questions, recipe, asking.open(), out, concurrency=asking.concurrency, prices=prices
        )
        typer.echo(done(totals, out))


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
