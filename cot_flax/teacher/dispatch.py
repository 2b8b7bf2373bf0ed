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
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn
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
from cot_flax.files import work_path
from cot_flax.teacher.clipping import split_thought
from cot_flax.teacher.costs import (
    Budget,
    Plan,
    Prices,
    PromptTokens,
    Totals,
    given,
    size_of,
)
from cot_flax.teacher.journal import Journal, read_answers
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import Recipe
from cot_flax.teacher.requests import (
    REFUSALS,
    Completion,
    Refused,
    Reply,
    Request,
    RequestFailed,
    Teacher,
)

LINE_SECONDS = 30.0
FAILURES_IN_A_ROW = 20  # With more of them the run stops.
FIRST_ANSWERS = 3  # If none of so many has the log-probabilities that were asked for, it stops.


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


def _corrected(planned: Plan, totals: Totals, tokens: PromptTokens) -> str:
    """What the whole run takes if its other answers are like those so far."""
    rate = totals.completion_tokens / totals.most_tokens
    prompt = tokens.about(planned.prompt_bytes) + round(rate * planned.unwritten)
    written = round(rate * planned.completion_tokens)
    prices = totals.prices
    cost = "" if prices is None else f", ${prices.cost(prompt, written):,.2f}"
    return (
        f"by the first {totals.requests} answers the run takes about {prompt:,} prompt tokens and "
        f"{written:,} written{cost}"
    )


def _print_line(task: Task) -> None:
    left = "" if task.time_remaining is None else f", {timedelta(seconds=task.time_remaining)} left"
    print(f"{task.completed}/{task.total}, {task.description}{left}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Call:
    """One thing to ask a teacher for, in as many requests as it takes.

    Attributes:
        key: names its content in the journal.
        n: how many completions.
        send: (how many, how many there were before) -> the teacher's answer, of one at least.
        is_answer: whether a completion has what was asked for. One that has not stays in the
            journal for this run; the next run asks again.
        prompt_bytes: of one request.
        max_tokens: that one completion may have.
    """

    key: str
    n: int
    send: Callable[[int, int], Awaitable[Reply]]
    is_answer: Callable[[Completion], bool]
    prompt_bytes: int
    max_tokens: int


class Desk:
    """Hands to the teacher what the journal cannot answer, a bounded number at a time.

    Attributes:
        refused: what was refused in this run, by key: asked once, and again by the next run.
    """

    def __init__(
        self,
        journal: Journal,
        totals: Totals,
        concurrency: int,
        *,
        per_request: int = 1,
        max_cost: float | None = None,
        spent: float = 0.0,
        planned: Plan | None = None,
    ):
        """Args: per_request: completions that one request may ask for; planned: to correct."""
        self.journal, self.totals, self.concurrency = journal, totals, concurrency
        self.refused: dict[str, Refused] = {}
        self._per_request, self._planned = per_request, planned
        self._tokens = PromptTokens()
        self._budget = Budget(totals, self._tokens, max_cost, spent)
        self._lacking: Counter[str] = Counter()  # of this run, by key
        self._slots = asyncio.Semaphore(concurrency)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failures_in_a_row = 0
        self._lacking_in_a_row: list[Reply] = []
        self._was_answered = False
        self._has_failed = False
        self._without_text: int | None = 0  # answers; None: one had a text

    async def ask(self, call: Call) -> None:
        """Asks for what the journal lacks of a call, and writes it there answer by answer."""
        lock = self._locks.setdefault(call.key, asyncio.Lock())
        async with lock:  # An equal call waits for the answer to this one.
            if call.key in self.refused:
                raise self.refused[call.key]
            known = [c for reply in self.journal[call.key] for c in reply.completions]
            answers = sum(map(call.is_answer, known))
            lacked_before = answers < len(known)
            self._was_answered |= answers > 0
            if answers + self._lacking[call.key] >= call.n:
                self.totals.from_journal += 1
                return
            done = len(known)
            while (missing := call.n - answers - self._lacking[call.key]) > 0:
                reply = await self._send(call, min(missing, self._per_request), done)
                here = sum(map(call.is_answer, reply.completions))
                answers, done = answers + here, done + len(reply.completions)
                self._lacking[call.key] += len(reply.completions) - here
                self._watch_texts(reply)
                # A run that is started again may ask for nothing but what lacked something before.
                if not (lacked_before and self._was_answered):
                    self._watch(reply, here > 0)

    async def _send(self, call: Call, n: int, done: int) -> Reply:
        """One request; its answer is in the journal and in the totals."""
        async with self._slots, self._budget.reserve(call.prompt_bytes, n * call.max_tokens):
            reply = await self._answer(call.key, call.send(n, done))
            self.journal.add(call.key, reply)
            self._tokens.learn(call.prompt_bytes, reply.prompt_tokens)
            self.totals.add(reply, n * call.max_tokens)
        if self.totals.requests == FIRST_ANSWERS and self._planned:
            print(_corrected(self._planned, self.totals, self._tokens), file=sys.stderr)
        return reply

    async def _answer(self, key: str, call: Awaitable[Reply]) -> Reply:
        try:
            reply = await call
        except Refused as error:
            self.refused[key] = error
            most = 0 if error.is_paid else FAILURES_IN_A_ROW
            if not self.answered and len(self.refused) > most:
                self.stop_refused()
            raise
        except RequestFailed as error:
            self._failures_in_a_row += 1
            self._has_failed = True
            if self._failures_in_a_row <= FAILURES_IN_A_ROW:
                raise
            raise UserError(
                f"{self._failures_in_a_row} failed requests in a row, the last with: {error.got}",
                "a server that answers",
                "run the same command again when it does; no answer is lost",
            ) from None
        self._failures_in_a_row = 0
        return reply

    @property
    def width(self) -> int:
        """How many items to work on at a time: one, until it is seen what the answers are like."""
        return self.concurrency if self._was_answered or self._has_failed else 1

    @property
    def answered(self) -> int:
        """Requests of this run that have an answer."""
        return self.totals.requests + self.totals.from_journal

    def stop_refused(self) -> NoReturn:
        """Raises the UserError of a run of which nothing was answered."""
        (error, *_), count = self.refused.values(), len(self.refused)
        got = f"{count} of {count} requests refused, the first: {error.got}"
        raise UserError(got, "a teacher that takes them", error.remedy)

    def _watch(self, reply: Reply, is_answer: bool) -> None:
        """Stops before much is paid for answers that lack what was asked for."""
        self._was_answered |= is_answer
        self._lacking_in_a_row = [] if is_answer else [*self._lacking_in_a_row, reply]
        most = FAILURES_IN_A_ROW if self._was_answered else FIRST_ANSWERS
        if len(self._lacking_in_a_row) >= most:
            self.stop_lacking()

    def _watch_texts(self, reply: Reply) -> None:
        """Stops before much is paid for thoughts that the token limit cuts off."""
        if self._without_text is None or not all(map(_is_cut_off, reply.completions)):
            self._without_text = None
            return
        self._without_text += 1
        if self._without_text >= FIRST_ANSWERS:
            raise UserError(
                f"{self._without_text} answers without a text: thought alone, cut off at the token "
                "limit",
                "a text behind it",
                "raise --max-tokens, or ask a teacher that thinks less",
            )

    def check_answers(self) -> None:
        """Raises UserError where the run has answers, and all lack what was asked for."""
        if self._lacking_in_a_row and not self._was_answered:
            self.stop_lacking()

    def stop_lacking(self) -> NoReturn:
        lacking = self._lacking_in_a_row
        reasons = Counter(c.logprob_problem for reply in lacking for c in reply.completions)
        named = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise UserError(
            f"{len(lacking)} answers in a row without log-probabilities ({named})",
            "those of every token, as asked for",
            "ask a server and model that give them, or for none (--top-logprobs 0)",
        )


def _is_cut_off(completion: Completion) -> bool:
    return completion.finish_reason == "length" and not split_thought(completion).text.strip()


def work_through(
    items: Iterable,
    total: int,
    work: Callable[..., Awaitable[None]],
    desk: Desk,
    close: Callable[[], Awaitable[None]],
) -> None:
    """Does `work` for every item, then `close`; all in one event loop. Leaves out what is refused.

    Raises:
        UserError: items are left without an answer, or none has what was asked for.
    """
    failed: list[tuple[str, RequestFailed]] = []

    async def attempt(item) -> None:
        try:
            await work(item)
        except Refused:
            pass  # The desk has it.
        except RequestFailed as error:
            failed.append((item.id, error))

    with progress(total, desk.totals) as advance:
        asyncio.run(_closing(_pool(items, attempt, advance, lambda: desk.width), close))
    if failed:
        (name, error), names = failed[0], _listed([name for name, _ in failed])
        raise UserError(
            f"{len(failed)} of {total} without an answer ({names}); {name}: {error.got}",
            "an answer to every request",
            "run the same command again: answers are kept in the journal and not asked for again",
        )
    if desk.refused and not desk.answered:
        desk.stop_refused()
    desk.check_answers()


async def _closing(work: Awaitable[None], close: Callable[[], Awaitable[None]]) -> None:
    try:
        await work
    finally:
        await close()


async def _pool(
    items: Iterable, work: Callable, advance: Callable[[], None], size: Callable[[], int]
) -> None:
    """Works on `size()` items at a time; the first exception ends it."""
    running: set[asyncio.Task] = set()

    async def wait() -> None:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            running.remove(task)
            task.result()
            advance()

    try:
        for item in items:
            while len(running) >= size():
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
        raise min(errors, key=_harmlessness)


def _harmlessness(error: BaseException) -> int:
    return isinstance(error, RequestFailed) + isinstance(error, Refused)


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + ("..." if len(names) > most else "")


def sample(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: Teacher,
    out: str | os.PathLike,
    journal: str | os.PathLike,
    *,
    concurrency: int = 16,
    prices: Prices | None = None,
    max_cost: float | None = None,
    spent: float = 0.0,
    planned: Plan | None = None,
) -> Totals:
    """Asks the teacher and writes the samples in the order of the questions.

    Every answer goes at once into the journal. A run that was ended at any moment goes on where it
    was when it is started again: it asks only for completions that are not in the journal. The
    samples file is written when all answers are there, whole or not at all; chains that the teacher
    refuses for good are left out of it and counted.

    Args:
        out: the samples file, .jsonl or .jsonl.gz.
        journal: the file of answers; runs that follow each other may share it.
        concurrency: the most requests in flight.
        prices: to show the cost.
        max_cost: $ that this run may spend; no request begins that could lead beyond.
        spent: $ of them that a probe has spent.
        planned: what the run was said to cost; corrected on standard error by the first answers.

    Raises:
        UserError: the teacher refuses all requests, more than 20 failed in a row, or some have no
            answer in the end; the first 3 answers, or 20 in a row, lack the log-probabilities that
            were asked for; the money is spent; another run uses the journal, or it has a broken
            line.
    """
    totals = Totals(prices)
    with Journal(journal) as opened:
        desk = Desk(
            opened,
            totals,
            concurrency,
            per_request=recipe.numbers.per_request,
            max_cost=max_cost,
            spent=spent,
            planned=planned,
        )

        async def ask(request: Request) -> list[Completion]:
            try:
                await desk.ask(_call(request, teacher))
            except Refused:
                if request.key(teacher.name) not in opened:
                    raise
            return given(request, teacher.name, opened)

        async def answer(question: Question) -> None:
            await _ask_for_chains(question, recipe, ask)

        work_through(questions, len(questions), answer, desk, teacher.close)
        write_samples(out, _samples(questions, recipe, teacher.name, desk))
    return totals


def take_over(
    out: str | os.PathLike,
    questions: Iterable[Question],
    recipe: Recipe,
    teacher: str,
    journal: str | os.PathLike,
) -> int:
    """Takes the answers of a journal of the first format, `{out}.journal`, each once.

    Its keys had all of a request, the number of completions and the place among its like included.

    Returns:
        How many were taken.
    """
    old = work_path(f"{os.fspath(out)}.journal")
    if not old.exists():
        return 0
    count = 0
    with read_answers(old) as answers, Journal(journal) as opened:

        def take(request: Request, series: int = 0) -> list[Completion]:
            nonlocal count
            # The second step was not stopped at the line's end.
            before = replace(request, stop=tuple(s for s in request.stop if s != "\n"))
            key = _first_key(before, teacher, series)
            replies = answers[key][-1:]  # Of one key the last line counted.
            if replies and key not in opened.sources:
                opened.add(request.key(teacher), replies[0], key)
                count += 1
            return [completion for reply in replies for completion in reply.completions]

        for question in questions:
            first, most = recipe.first(question), recipe.numbers.per_request
            for series, start in enumerate(range(0, first.n, most)):
                for completion in take(replace(first, n=min(most, first.n - start)), series):
                    if follow_up := recipe.next(question, first, completion):
                        take(follow_up)
    return count


def _first_key(request: Request, teacher: str, series: int) -> str:
    names = ("prompt", "n", "max_tokens", "temperature", "top_p", "presence_penalty")
    names = (*names, "frequency_penalty", "stop", "top_logprobs", "seed")
    content = {name: getattr(request, name) for name in names}
    dumped = json.dumps({"teacher": teacher, **content, "series": series}, sort_keys=True)
    return hashlib.sha256(dumped.encode(errors="surrogatepass")).hexdigest()[:32]


def _call(request: Request, teacher: Teacher) -> Call:
    def send(n: int, done: int) -> Awaitable[Reply]:
        return teacher.complete(replace(request, n=n, done=done))

    return Call(
        key=request.key(teacher.name),
        n=request.n,
        send=send,
        is_answer=request.is_answered_by,
        prompt_bytes=size_of(request.prompt),
        max_tokens=request.max_tokens,
    )


async def _ask_for_chains(
    question: Question, recipe: Recipe, ask: Callable[[Request], Awaitable[list[Completion]]]
) -> None:
    async def ask_next(completion: Completion) -> None:
        if follow_up := recipe.next(question, first, completion):
            (answer,) = await ask(follow_up)
            if next_line := recipe.next_line(follow_up, answer):
                await ask(next_line)

    first = recipe.first(question)
    await all_of(map(ask_next, await ask(first)))


def _samples(
    questions: Iterable[Question], recipe: Recipe, teacher: str, desk: Desk
) -> Iterator[Sample]:
    totals = desk.totals
    for question in questions:
        number, request = itertools.count(), recipe.first(question)
        found = given(request, teacher, desk.journal)
        if len(found) < request.n:
            error = desk.refused[request.key(teacher)]
            _leave_out(question, error, request.n - len(found), totals)
        for completion in found:
            try:
                chain = _chain(question, request, completion, recipe, teacher, desk)
            except Refused as error:
                _leave_out(question, error, 1, totals)
                continue
            if not chain.text.strip():
                totals.empty += 1
                continue
            totals.samples += 1
            totals.thoughts += bool(chain.thought)
            totals.thought_tokens += (
                len(chain.thought_logprobs.tokens) if chain.thought_logprobs else 0
            )
            if request.top_logprobs is not None and chain.logprobs is None:
                reason = completion.logprob_problem or chain.logprob_problem
                totals.problems[reason or "no_logprobs"] += 1
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
                thought=chain.thought,
                thought_logprobs=chain.thought_logprobs,
            )
    if totals.empty and not totals.samples:
        raise UserError(
            f"{totals.empty:,} answers without a text: thought alone, cut off at the token limit, "
            "or nothing",
            "chains",
            "raise --max-tokens, or ask a teacher that writes",
        )


def _completions(request: Request, teacher: str, desk: Desk) -> list[Completion]:
    """What came of a request; Refused where nothing did."""
    found = given(request, teacher, desk.journal)
    if not found:
        raise desk.refused[request.key(teacher)]
    return found


def _chain(
    question: Question,
    request: Request,
    completion: Completion,
    recipe: Recipe,
    teacher: str,
    desk: Desk,
) -> Completion:
    """Raises Refused where the teacher refused either step."""
    follow_up = recipe.next(question, request, completion)
    second = follow_up and _completions(follow_up, teacher, desk)[0]
    if second and (next_line := recipe.next_line(follow_up, second)):
        follow_up, second = next_line, _completions(next_line, teacher, desk)[0]
    for step in filter(None, [completion, second]):
        if step.finish_reason in REFUSALS:
            raise Refused(step.finish_reason, f"an answer that ended by {step.finish_reason}")
    return recipe.sample_of(question, completion, follow_up, second)


def _leave_out(question: Question, error: Refused, chains: int, totals: Totals) -> None:
    totals.refused[error.reason] += chains
    totals.refusals.setdefault(question.id, error.got)


def _prompt_hash(request: Request) -> str:
    content = json.dumps(request.prompt, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
