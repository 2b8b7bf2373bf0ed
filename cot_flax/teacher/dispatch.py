"""Sends requests, a bounded number at a time; every answer goes through the journal."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from weakref import WeakValueDictionary

from cot_flax.errors import UserError
from cot_flax.teacher.costs import Totals
from cot_flax.teacher.failures import RequestFailed
from cot_flax.teacher.journal import Journal
from cot_flax.teacher.progress import progress
from cot_flax.teacher.requests import Reply

FAILURES_IN_A_ROW = 20  # With more of them the run stops.


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
