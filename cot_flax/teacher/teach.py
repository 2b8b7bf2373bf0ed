"""The stage `teach`: from questions, a scenario or given chains to a samples file."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cot_flax.chains.samples import read_samples
from cot_flax.errors import UserError
from cot_flax.files import work_path
from cot_flax.teacher import costs, dispatch, rescoring
from cot_flax.teacher.costs import Plan, Prices, Totals
from cot_flax.teacher.journal import journal_path
from cot_flax.teacher.questions import Question, read_questions
from cot_flax.teacher.recipes import Overrides, Paper, Recipe, make_recipe
from cot_flax.teacher.requests import Messages, Teacher
from cot_flax.teacher.scenario import read_scenario, scenario_recipe
from cot_flax.text.prompts import normalize_question

if TYPE_CHECKING:
    from cot_flax.teacher.client import OpenAITeacher

PROMPT = "Q: {question}\nLet's think step by step\n"
_RULE = "-" * 40


@dataclass(frozen=True)
class NamedTeacher:
    """A teacher before it is loaded or connected; one of `model`, `checkpoint`, `huggingface`.

    Attributes:
        model: of an OpenAI-compatible server, by the name that the server knows it by.
        base_url: of the server; None is OpenAI's.
        key_variable: the environment variable that holds the server's key.
        timeout: seconds to wait for an answer.
        rpm: requests a minute to the server, at most.
        tpm: tokens a minute, at most.
        checkpoint: a T5 of cot-flax, Hugging Face or T5X.
        tokenizer: the checkpoint's SentencePiece model, where none lies beside it.
        huggingface: a causal LM's folder or hub name.
        gguf_file: a GGUF file of `huggingface`.
    """

    model: str | None = None
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 300.0
    rpm: float | None = None
    tpm: float | None = None
    checkpoint: str | None = None
    tokenizer: str | None = None
    huggingface: str | None = None
    gguf_file: str | None = None

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

    def open(self) -> Teacher:
        """Loads or connects the teacher; imports what only this one needs."""
        if self.name == self.model:
            return self.of_server()
        if self.name == self.huggingface:
            from cot_flax.teacher.local.huggingface import HuggingFaceTeacher

            return HuggingFaceTeacher(self.huggingface, gguf_file=self.gguf_file)
        from cot_flax.teacher.local.checkpoint import JaxTeacher

        return JaxTeacher(self.checkpoint, self.tokenizer)

    def of_server(self) -> "OpenAITeacher":
        """The teacher behind a server; raises UserError where another one is named."""
        if self.name != self.model:
            remedy = "name it by --model, or leave the batch out"
            raise UserError(f"a batch for {self.name}", "a server's model", remedy)
        from cot_flax.teacher.client import OpenAITeacher

        return OpenAITeacher(
            self.model,
            base_url=self.base_url,
            key_variable=self.key_variable,
            timeout=self.timeout,
            rpm=self.rpm,
            tpm=self.tpm,
        )


def sample(
    *,
    questions: str,
    recipe: Paper,
    dataset: str,
    out: str,
    teacher: NamedTeacher,
    split: str = "train",
    max_questions: int | None = None,
    exemplars: str | None = None,
    held_out: Sequence[str] = (),
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    chat: bool = False,
    journal: str | None = None,
    concurrency: int = 16,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    batch_file: str | None = None,
    batch_results: str | None = None,
    dry_run: bool = False,
) -> str:
    """Asks a teacher for chains, as one of the four papers did; says what it did.

    Args:
        questions: a file that `read_questions` knows.
        recipe: the paper, a name of `recipes.PRESETS`.
        dataset: its name.
        out: the samples file.
        split: its name.
        max_questions: only so many of the first are asked.
        exemplars: a file of worked questions to show; without it the recipe chooses among the
            questions.
        held_out: files of questions that are neither asked nor shown.
        overrides: of the paper's numbers.
        chat: by the chat API.
        journal: the file of answers; None is `teacher.journal` in the folder of `out`.
        concurrency: requests in flight, at most.
        price_in: $ per million prompt tokens.
        price_out: $ per million written tokens.
        max_cost: $ that this run may spend.
        batch_file: where to write requests for OpenAI's batch API in place of asking.
        batch_results: a file of its results, to take into the journal first.
        dry_run: asks nothing; returns prompts, requests and cost.
    """

    def read(file: str, split: str) -> list[Question]:
        return list(read_questions(file, dataset=dataset, split=split))

    kept_away = [item for file in held_out for item in read(file, "held_out")]
    pool = _without(read(questions, split), kept_away)
    shown = read(exemplars, "exemplars") if exemplars else []
    chosen = make_recipe(
        recipe,
        exemplars=shown,
        pool=pool,
        chat=chat,
        **overrides.given(),
    )
    run = _Run(out, journal, concurrency, price_in, price_out, max_cost)
    batch = (batch_file, batch_results)
    return _ask(pool[:max_questions], chosen, teacher, run, batch, dry_run)


def scenario(
    *,
    folder: str,
    out: str,
    teacher: NamedTeacher,
    overrides: Overrides = Overrides(top_logprobs=5),  # noqa: B008 (frozen)
    chat: bool = False,
    journal: str | None = None,
    concurrency: int = 16,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    batch_file: str | None = None,
    batch_results: str | None = None,
    dry_run: bool = False,
) -> str:
    """Asks a teacher to reason as a scenario's exemplars do; says what it did.

    Args:
        folder: what `read_scenario` reads.
        **others: as in `sample`.
    """
    read = read_scenario(folder)
    for note in read.notes:
        print(note, file=sys.stderr)
    chosen = scenario_recipe(read, chat=chat, **overrides.given())
    run = _Run(out, journal, concurrency, price_in, price_out, max_cost)
    return _ask(read.inputs, chosen, teacher, run, (batch_file, batch_results), dry_run)


def rescore(
    *,
    samples: str,
    out: str,
    teacher: NamedTeacher,
    prompt: str = PROMPT,
    top_logprobs: int = 5,
    journal: str | None = None,
    concurrency: int = 16,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    dry_run: bool = False,
) -> str:
    """Gives chains that somebody wrote a teacher's log-probabilities; says what it did.

    Args:
        samples: a samples file.
        prompt: what stands before a text; {question} is replaced, and a written `\\n` is a newline.
        top_logprobs: of the likeliest tokens a position.
        **others: as in `sample`.
    """
    template = prompt.replace("\\n", "\n")

    def prompt_of(question: str) -> str:
        return template.replace("{question}", question)

    if dry_run:
        return _scoring_shown(samples, prompt_of)
    run = _Run(out, journal, concurrency, price_in, price_out, max_cost)
    totals = rescoring.rescore(
        samples,
        out,
        run.answers,
        teacher.open(),
        prompt_of,
        top_logprobs=top_logprobs,
        concurrency=concurrency,
        prices=run.prices,
        max_cost=max_cost,
    )
    return _done(totals, out)


def _without(questions: Sequence[Question], held_out: Iterable[Question]) -> list[Question]:
    """Leaves out the questions of the same wording; says how many on standard error."""
    wordings = {normalize_question(item.question) for item in held_out}
    kept = [item for item in questions if normalize_question(item.question) not in wordings]
    if len(kept) < len(questions):
        print(f"held-out questions left out: {len(questions) - len(kept):,}", file=sys.stderr)
    if not kept:
        remedy = "give other questions, or hold out fewer"
        raise UserError("questions that are all held out", "some to ask", remedy)
    return kept


@dataclass(frozen=True)
class _Run:
    """Where a run writes and what it may take."""

    out: str
    journal: str | None
    concurrency: int
    price_in: float | None
    price_out: float | None
    max_cost: float | None

    @property
    def answers(self) -> Path:
        """The journal's file."""
        return work_path(self.journal) if self.journal else journal_path(self.out)

    @property
    def prices(self) -> Prices | None:
        """None where none are known."""
        if (self.price_in is None) != (self.price_out is None):
            raise UserError("one price", "--price-in and --price-out", "give both or none")
        return None if self.price_in is None else Prices(self.price_in, self.price_out)


def _ask(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: NamedTeacher,
    run: _Run,
    batch: tuple[str | None, str | None],
    dry_run: bool,
) -> str:
    requests_file, results_file = batch
    if results_file and not dry_run:
        print(_taken(results_file, questions, recipe, teacher, run), file=sys.stderr)
    plan = costs.plan(questions, recipe, teacher.name, run.answers, prices=run.prices)
    if dry_run:
        return "\n".join([*(f"{_shown(p)}\n{_RULE}" for p in plan.prompts), _planned(plan)])
    if requests_file and plan.most_requests:
        return _written(requests_file, questions, recipe, teacher, run)
    print(_planned(plan), file=sys.stderr)
    totals = dispatch.sample(
        questions,
        recipe,
        teacher.open(),
        run.out,
        run.answers,
        concurrency=run.concurrency,
        prices=run.prices,
        max_cost=run.max_cost,
        planned=plan,
    )
    return _done(totals, run.out)


def _written(
    file: str, questions: Sequence[Question], recipe: Recipe, teacher: NamedTeacher, run: _Run
) -> str:
    from cot_flax.teacher import batch

    written = batch.write_requests(
        file,
        questions,
        recipe,
        teacher.of_server(),
        run.answers,
        prices=run.prices,
        max_cost=run.max_cost,
    )
    return (
        f"{written.requests:,} requests in {file}: "
        f"{_batch_spent(written.prompt_tokens, written.completion_tokens, run)} (prompt tokens "
        "are estimated from bytes, written ones are an upper bound). Send it as a batch, then add "
        "--batch-results FILE to this command"
    )


def _taken(
    file: str, questions: Sequence[Question], recipe: Recipe, teacher: NamedTeacher, run: _Run
) -> str:
    from cot_flax.teacher import batch

    taken = batch.take_results(file, questions, recipe, teacher.of_server(), run.answers)
    parts = [
        f"{taken.answers:,} answers taken from {file}: "
        f"{_batch_spent(taken.prompt_tokens, taken.completion_tokens, run)}",
        taken.known and f"{taken.known:,} taken before",
        taken.foreign and f"{taken.foreign:,} to other requests, left",
        taken.failed and f"without an answer: {_counts(taken.failed)}",
    ]
    return "; ".join(part for part in parts if part)


def _batch_spent(prompt_tokens: int, completion_tokens: int, run: _Run) -> str:
    from cot_flax.teacher.batch import DISCOUNT

    text = f"{prompt_tokens:,} prompt tokens, {completion_tokens:,} written"
    if run.prices is None:
        return text
    cost = DISCOUNT * run.prices.cost(prompt_tokens, completion_tokens)
    return f"{text}, ${cost:,.2f} at half the price"


def _scoring_shown(samples: str | os.PathLike, prompt_of: Callable[[str], str]) -> str:
    first, *others = map(rescoring.closed, read_samples(samples))
    shown = f"{prompt_of(first.question)}{first.text}\n{_RULE}"
    return f"{shown}\n{1 + len(others):,} texts to score"


def _done(totals: Totals, out: str) -> str:
    """What a run did, in a line or two."""
    lines = [
        f"{totals.samples:,} samples in {out}: {totals.requests:,} requests, "
        f"{totals.from_journal:,} answers from the journal; {_spent(totals)}"
    ]
    if totals.problems:
        lines.append(
            f"without log-probabilities: {_counts(totals.problems)}; the next run of this command "
            "asks again for these chains alone"
        )
    if totals.refused:
        (id, got), *_ = totals.refusals.items()
        lines.append(
            f"chains that the teacher refused, left out: {_counts(totals.refused)}, of "
            f"{len(totals.refusals):,} questions ({id}: {got})"
        )
    if totals.thoughts:
        tokens = f" ({totals.thought_tokens:,} tokens)" if totals.thought_tokens else ""
        lines.append(
            f"WARNING: {totals.thoughts:,} samples have a thought apart from their text{tokens}, "
            "which may be a bare answer: `prepare --chain thought` (or both) learns the thought"
        )
    if totals.empty:
        lines.append(
            f"chains without a text, left out: {totals.empty:,}; the token limit came first "
            "(--max-tokens), or nothing was written; what was sampled and ended so is asked for "
            "again by the next run"
        )
    return "\n".join(lines)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _planned(plan: Plan) -> str:
    return (
        f"{plan.questions:,} questions, of which the journal answers {plan.answered:,}; at most "
        f"{plan.most_requests:,} requests to send: {_spent(plan)} (prompt tokens are estimated "
        "from bytes until answers correct that, written ones are an upper bound)"
    )


def _spent(counts: Plan | Totals) -> str:
    cost = "" if counts.cost is None else f", ${counts.cost:,.2f}"
    return f"{counts.prompt_tokens:,} prompt tokens, {counts.completion_tokens:,} written{cost}"


def _shown(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)
