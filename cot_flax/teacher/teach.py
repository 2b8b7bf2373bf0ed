"""The stage `teach`: from questions, a scenario or given chains to a samples file."""

import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cot_flax.chains.dataset import DataSet
from cot_flax.chains.samples import read_samples
from cot_flax.errors import UserError, missing_extra
from cot_flax.files import work_path
from cot_flax.teacher import costs, dispatch, findings, rescoring
from cot_flax.teacher.costs import Plan, Prices, Totals
from cot_flax.teacher.findings import Findings, Habits, Wanted
from cot_flax.teacher.journal import journal_path
from cot_flax.teacher.questions import (
    Question,
    read_exemplars,
    read_questions,
    training_questions,
    validation_of,
)
from cot_flax.teacher.recipes import Overrides, Paper, Recipe, make_recipe
from cot_flax.teacher.requests import Messages, Teacher, no_server
from cot_flax.teacher.scenario import read_scenario, scenario_recipe
from cot_flax.text.prompts import normalize_question
from cot_flax.text.wording import ENGLISH, Wording

if TYPE_CHECKING:
    from cot_flax.teacher.client import OpenAITeacher

PROMPT = "Q: {question}\nLet's think step by step\n"
_RULE = "-" * 40
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


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
        attempts: of each request, at most.
        headers: "NAME: VALUE" each, sent with every request; a $VARIABLE is put in from the
            environment.
        probe: a few small requests find out what the server does, before the first run.
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
    attempts: int = 8
    headers: Sequence[str] = ()
    probe: bool = True
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

    @property
    def is_server(self) -> bool:
        return self.name == self.model

    def open(self, habits: Habits | None = None) -> Teacher:
        """Loads or connects the teacher; imports what only this one needs.

        Args:
            habits: of the server, where they are known.
        """
        if self.is_server:
            return self.of_server(habits)
        if self.name == self.huggingface:
            from cot_flax.teacher.local.huggingface import HuggingFaceTeacher

            return HuggingFaceTeacher(self.huggingface, gguf_file=self.gguf_file)
        from cot_flax.teacher.local.checkpoint import JaxTeacher

        return JaxTeacher(self.checkpoint, self.tokenizer)

    def of_server(self, habits: Habits | None = None) -> "OpenAITeacher":
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
            attempts=self.attempts,
            headers=dict(map(_header, self.headers)),
            habits=habits,
        )


def _check_that_it_listens(base_url: str | None) -> None:
    """Of a server on this machine, before the library that asks it is loaded, for a second."""
    parts = urlsplit(base_url or "")
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=1).close()
    except TimeoutError:
        return
    except OSError as error:
        address = f"http://{findings.server_of(base_url)}"
        raise no_server(address, error.strerror or type(error).__name__) from None


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise UserError(f"the header {name!r}", "NAME: VALUE", "write it like 'X-Team: $TEAM'")
    return name.strip(), os.path.expandvars(value.strip())


def sample(
    *,
    questions: str | DataSet,
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
        questions: files that `read_questions` knows, or a data set, of which the training split is
            asked about.
        recipe: the paper, a name of `recipes.PRESETS`.
        dataset: its name.
        out: the samples file.
        split: its name.
        max_questions: only so many of the first are asked.
        exemplars: a file of worked questions to show, or a prompt, of which all are shown (see
            `read_exemplars`); without it the recipe chooses among the questions.
        held_out: files of questions that are neither asked nor shown, beside those that the data
            set's own tasks hold out.
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

    if isinstance(questions, DataSet):
        given = training_questions(questions)
    else:
        given = read(questions, split)
    validation = validation_of(given)
    if validation:
        share = len(validation) / len(given)
        print(
            f"the last {len(validation):,} of {dataset}'s training questions are its validation "
            f"split, {share:.1%} of the bill: not asked (another --split name asks them)",
            file=sys.stderr,
        )
    kept_away = [item for file in held_out for item in read(file, "held_out")]
    pool = _without(given, [*validation, *kept_away])
    shown, is_prompt = read_exemplars(exemplars, dataset=dataset) if exemplars else ([], False)
    numbers = ({"shots": len(shown)} if is_prompt else {}) | overrides.given()
    chosen = make_recipe(recipe, exemplars=shown, pool=pool, chat=chat, **numbers)
    run = _Run(out, journal, concurrency, price_in, price_out, max_cost)
    batch = (batch_file, batch_results)
    return _ask(pool[:max_questions], chosen, teacher, run, batch, chat, dry_run)


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
    return _ask(read.inputs, chosen, teacher, run, (batch_file, batch_results), chat, dry_run)


def rescore(
    *,
    samples: str,
    out: str,
    teacher: NamedTeacher,
    prompt: str = PROMPT,
    closing: str = ENGLISH.closing,
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
        closing: the sentence that closes a text without an answer, as in `wording.Wording`.
        top_logprobs: of the likeliest tokens a position.
        **others: as in `sample`.
    """
    template = prompt.replace("\\n", "\n")

    def prompt_of(question: str) -> str:
        return template.replace("{question}", question)

    if dry_run:
        return _scoring_shown(samples, prompt_of)
    run = _Run(out, journal, concurrency, price_in, price_out, max_cost)
    if journal is None and work_path(f"{out}.journal").exists():
        remedy = f"add --journal {out}.journal, and nothing is asked twice; or move it away"
        raise UserError(f"{out}.journal of an earlier version", "one journal", remedy)
    costs.check_limit(max_cost, run.prices)
    found, spent = _found_out(teacher, run, Wanted(top_logprobs=top_logprobs, scores=True))
    opened = teacher.open(found and found.known_habits())
    with _stoppable(opened, run):
        totals = rescoring.rescore(
            samples,
            out,
            run.answers,
            opened,
            prompt_of,
            top_logprobs=top_logprobs,
            concurrency=concurrency,
            prices=run.prices,
            max_cost=max_cost,
            spent=spent,
            wording=Wording(closing=closing),
        )
    return _done(totals, out)


def probe(
    *,
    teacher: NamedTeacher,
    chat: bool = False,
    out: str | None = None,
    journal: str | None = None,
) -> str:
    """Says what a server and its model do, by at most 20 requests.

    Args:
        teacher: of a server.
        chat: by the chat API, where it has both.
        out: a samples file, beside whose journal the findings are kept for `sample`.
        journal: the file of answers, where it is another one.
    """
    if not teacher.is_server:
        raise UserError(f"the teacher {teacher.name}", "a server's (--model)", "name its model")
    found = _probed(teacher, Wanted(chat=chat, everything=True))
    if out or journal:
        answers = work_path(journal) if journal else journal_path(out)
        findings.keep(findings.path_beside(answers), found)
    return findings.report(found)


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
    chat: bool,
    dry_run: bool,
) -> str:
    numbers = recipe.numbers
    if numbers.samples > 1 and numbers.temperature == 0:
        raise UserError(
            f"{numbers.samples} chains a question at temperature 0, where all are equal",
            "a temperature above 0, or one chain",
            "set --temperature, or --samples 1",
        )
    wanted = Wanted(
        chat=chat,
        top_logprobs=numbers.top_logprobs,
        draws=numbers.temperature > 0,
        samples=min(numbers.samples, numbers.per_request),
        stops=bool(numbers.stop),
        seed=numbers.seed is not None,
    )
    requests_file, results_file = batch
    costs.check_limit(run.max_cost, run.prices)
    found = _kept(teacher, run, chat)
    recipe = _settled(questions, recipe, teacher, run, found)
    if not dry_run:
        taken = dispatch.take_over(run.out, questions, recipe, teacher.name, run.answers)
        if taken:
            print(f"{taken:,} answers taken from {run.out}.journal", file=sys.stderr)
    if results_file and not dry_run:
        print(_taken(results_file, questions, recipe, teacher, run), file=sys.stderr)
    plan = costs.plan(questions, recipe, teacher.name, run.answers, prices=run.prices)
    if dry_run:
        return "\n".join([*(f"{_shown(p)}\n{_RULE}" for p in plan.prompts), _planned(plan)])
    if requests_file and plan.most_requests:
        return _written(requests_file, questions, recipe, teacher, run)
    print(_planned(plan), file=sys.stderr)
    spent = 0.0
    if plan.most_requests:
        found, spent = _found_out(teacher, run, wanted)
        recipe = _settled(questions, recipe, teacher, run, found)
    opened = teacher.open(found and found.known_habits())
    with _stoppable(opened, run):
        totals = dispatch.sample(
            questions,
            recipe,
            opened,
            run.out,
            run.answers,
            concurrency=run.concurrency,
            prices=run.prices,
            max_cost=run.max_cost,
            spent=spent,
            planned=plan,
        )
    return _done(totals, run.out)


def _kept(teacher: NamedTeacher, run: _Run, chat: bool) -> Findings | None:
    """What an earlier probe found out about a server."""
    if not teacher.is_server:
        return None
    server = findings.server_of(teacher.base_url)
    return findings.read_kept(findings.path_beside(run.answers), server, teacher.model, chat)


def _probed(teacher: NamedTeacher, wanted: Wanted) -> Findings:
    if missing := [name for name in ("openai", "stamina") if find_spec(name) is None]:
        raise missing_extra(ModuleNotFoundError(name=missing[0]))
    _check_that_it_listens(teacher.base_url)
    opened = teacher.open()
    from cot_flax.teacher.probe import probe  # late, for it loads what connects

    return probe(opened, wanted)


def _found_out(teacher: NamedTeacher, run: _Run, wanted: Wanted) -> tuple[Findings | None, float]:
    """What is known of a server; where that is too little for the run, it is asked.

    Returns:
        With it, $ that asking took; 0.0 where no prices are known.

    Raises:
        UserError: no server is there, or what it does is of no use for the run.
    """
    found, spent = _kept(teacher, run, wanted.chat), 0.0
    if teacher.is_server and teacher.probe and not (found and found.answers(wanted)):
        found = _probed(teacher, wanted)
        print(findings.spent(found), file=sys.stderr)
        findings.keep(findings.path_beside(run.answers), found)
        if run.prices:
            spent = run.prices.cost(found.prompt_tokens, found.completion_tokens)
    if found:
        found.check(wanted)
        for warning in found.warnings(wanted):
            print(f"WARNING: {warning}", file=sys.stderr)
    return found, spent


def _settled(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: NamedTeacher,
    run: _Run,
    found: Findings | None,
) -> Recipe:
    """The recipe whose settings a server's own defaults do not replace, as far as it knows them.

    What was asked for before without them goes on without them: nothing is paid for twice.
    """
    if found is None or not (more := found.settings(vars(recipe.numbers))):
        return recipe
    settled = replace(recipe, numbers=replace(recipe.numbers, **more))
    answered = [
        costs.plan(questions, known, teacher.name, run.answers).answered
        for known in (settled, recipe)
    ]
    return recipe if answered[0] < answered[1] else settled


@contextmanager
def _stoppable(teacher: Teacher, run: _Run) -> Iterator[None]:
    """Says what was spent and how to go on where Ctrl-C or SIGTERM ends the run."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals are the main thread's.
        return
    terminated = False

    def on_sigterm(*_) -> None:
        nonlocal terminated
        terminated = True
        signal.raise_signal(signal.SIGINT)  # which ends asyncio's loop in order

    previous = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except KeyboardInterrupt:
        paid = getattr(teacher, "paid", None)
        spent = ""
        if paid is not None:
            spent = (
                f" after {paid['requests']:,} answers, {paid['prompt_tokens']:,} prompt tokens, "
                f"{paid['completion_tokens']:,} written"
            )
        print(
            f"cot-flax: stopped by {'SIGTERM' if terminated else 'Ctrl-C'}{spent}; no answer is "
            f"lost ({run.answers}): run the same command to go on",
            file=sys.stderr,
        )
        raise SystemExit(143 if terminated else 130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


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
