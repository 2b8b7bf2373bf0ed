"""Makes a samples file: asks, a bounded number of requests at a time, remembers, writes at the end.

Every answer goes through the journal. Progress is shown on standard error: a bar on a terminal,
elsewhere a line every half minute.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from weakref import WeakValueDictionary

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from cot_flax.chains.samples import Sample, write_samples
from cot_flax.errors import UserError
from cot_flax.teacher.costs import Prices, Totals
from cot_flax.teacher.journal import Answers, Journal, journal_path
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import Recipe
from cot_flax.teacher.requests import Completion, Reply, Request, RequestFailed, Teacher

LINE_SECONDS = 30.0
FAILURES_IN_A_ROW = 20  # With more of them the run stops.


@contextlib.contextmanager
def progress(total: int, totals: Totals) -> Iterator[Callable[[], None]]:
    """Shows done/total, tokens, cost and the time left; yields what counts one more as done."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    printed = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(_spent(totals), total=total)
        (task,) = bar.tasks

        def advance() -> None:
            nonlocal printed
            bar.update(task.id, advance=1, description=_spent(totals))
            if not console.is_terminal and time.monotonic() > printed + LINE_SECONDS:
                printed = time.monotonic()
                _print_line(task)

        yield advance
    if not console.is_terminal:
        _print_line(task)


def _spent(totals: Totals) -> str:
    tokens = f"{totals.prompt_tokens:,} tokens in, {totals.completion_tokens:,} out"
    return tokens if totals.cost is None else f"{tokens}, ${totals.cost:,.2f}"


def _print_line(task: Task) -> None:
    left = "" if task.time_remaining is None else f", {timedelta(seconds=task.time_remaining)} left"
    print(f"{task.completed}/{task.total}, {task.description}{left}", file=sys.stderr, flush=True)


class Desk:
    """Hands to the teacher what the journal cannot answer, a bounded number at a time."""

    def __init__(self, journal: Journal, totals: Totals, concurrency: int):
        self.journal, self.totals, self.concurrency = journal, totals, concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failures_in_a_row = 0

    async def ask(self, key: str, call: Callable[[], Awaitable[Reply]]) -> Reply:
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:  # An equal request waits for the answer to this one.
            if key in self.journal:
                self.totals.from_journal += 1
                return self.journal[key]
            async with self._slots:
                reply = await self._call(call)
                self.journal.add(key, reply)
            self.totals.requests += 1
            self.totals.prompt_tokens += reply.prompt_tokens
            self.totals.completion_tokens += reply.completion_tokens
            return reply

    async def _call(self, call: Callable[[], Awaitable[Reply]]) -> Reply:
        try:
            reply = await call()
        except RequestFailed as error:
            self._failures_in_a_row += 1
            if self._failures_in_a_row <= FAILURES_IN_A_ROW:
                raise
            raise UserError(
                f"{self._failures_in_a_row} failed requests in a row, the last with: {error}",
                "a server that answers",
                "run the same command again when it does; no answer is lost",
            ) from None
        self._failures_in_a_row = 0
        return reply


def work_through(
    items: Iterable,
    total: int,
    work: Callable[..., Awaitable[None]],
    desk: Desk,
    close: Callable[[], Awaitable[None]],
) -> None:
    """Does `work` for every item, then `close`; all in one event loop.

    Raises:
        UserError: items are left without an answer.
    """
    failed: list[tuple[str, RequestFailed]] = []

    async def attempt(item) -> None:
        try:
            await work(item)
        except RequestFailed as error:
            failed.append((item.id, error))

    with progress(total, desk.totals) as advance:
        asyncio.run(_closing(_pool(items, attempt, advance, desk.concurrency), close))
    if failed:
        (name, error), names = failed[0], _listed([name for name, _ in failed])
        raise UserError(
            f"{len(failed)} of {total} without an answer ({names}); {name}: {error}",
            "an answer to every request",
            "run the same command again: answers are kept in the journal and not asked for again",
        )


async def _closing(work: Awaitable[None], close: Callable[[], Awaitable[None]]) -> None:
    try:
        await work
    finally:
        await close()


async def _pool(items: Iterable, work: Callable, advance: Callable[[], None], size: int) -> None:
    """Works on `size` items at a time; the first exception ends it."""
    running: set[asyncio.Task] = set()

    async def wait() -> None:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            running.remove(task)
            task.result()
            advance()

    try:
        for item in items:
            if len(running) == size:
                await wait()
            running.add(asyncio.create_task(work(item)))
        while running:
            await wait()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def all_of(calls: Iterable[Awaitable]) -> None:
    """Waits for all; then raises the worst exception, if there is one."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, RequestFailed))


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + ("..." if len(names) > most else "")


def sample(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: Teacher,
    out: str | os.PathLike,
    *,
    concurrency: int = 16,
    prices: Prices | None = None,
) -> Totals:
    """Asks the teacher and writes the samples in the order of the questions.

    Every answer goes at once into the journal beside `out`. A run that was ended at any moment
    goes on where it was when it is started again: it sends only requests whose answer is not in
    the journal. The samples file is written when all answers are there, whole or not at all.

    Args:
        out: the samples file, .jsonl or .jsonl.gz.
        concurrency: the most requests in flight.
        prices: to show the cost.

    Raises:
        UserError: the teacher refuses all requests, more than 20 failed in a row, or some have no
            answer in the end; another run uses the journal, or it has a broken line.
    """
    totals = Totals(prices)
    with Journal(journal_path(out)) as journal:
        desk = Desk(journal, totals, concurrency)

        async def ask(request: Request) -> Reply:
            return await desk.ask(request.key(teacher.name), lambda: teacher.complete(request))

        async def answer(question: Question) -> None:
            await all_of(
                _chains(question, request, recipe, ask) for request in recipe.first(question)
            )

        work_through(questions, len(questions), answer, desk, teacher.close)
        write_samples(out, _samples(questions, recipe, teacher.name, journal, totals))
    return totals


async def _chains(
    question: Question,
    request: Request,
    recipe: Recipe,
    ask: Callable[[Request], Awaitable[Reply]],
) -> None:
    reply = await ask(request)
    follow_ups = [recipe.next(question, request, completion) for completion in reply.completions]
    await all_of(ask(follow_up) for follow_up in follow_ups if follow_up)


def _samples(
    questions: Iterable[Question], recipe: Recipe, teacher: str, answers: Answers, totals: Totals
) -> Iterator[Sample]:
    for question in questions:
        number = itertools.count()
        for request in recipe.first(question):
            for completion in answers[request.key(teacher)].completions:
                chain = _chain(question, request, completion, recipe, teacher, answers)
                totals.samples += 1
                if request.top_logprobs is not None and chain.logprobs is None:
                    totals.problems[completion.logprob_problem or "no_logprobs"] += 1
                yield Sample(
                    id=question.id,
                    dataset=question.dataset,
                    split=question.split,
                    question=question.question,
                    gold_answer=question.answer,
                    format=recipe.format,
                    prompt_hash=_prompt_hash(request),
                    teacher={"model": teacher, "params": recipe.params},
                    sample=next(number),
                    text=chain.text,
                    logprobs=chain.logprobs,
                    finish_reason=chain.finish_reason,
                )


def _chain(
    question: Question,
    request: Request,
    completion: Completion,
    recipe: Recipe,
    teacher: str,
    answers: Answers,
) -> Completion:
    follow_up = recipe.next(question, request, completion)
    second = follow_up and answers[follow_up.key(teacher)].completions[0]
    return recipe.sample_of(question, completion, follow_up, second)


def _prompt_hash(request: Request) -> str:
    content = json.dumps(request.prompt, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
