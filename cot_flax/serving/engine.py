"""Continuous batching: prompts enter slots as they arrive, their tokens leave as they come.

One thread decodes; any thread may submit and cancel.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from cot_flax.generation.generator import Generator

FAILED = "error"
"""In place of a finish reason: the decoder has stopped."""
Tell = Callable[[list[int], str | None], None]
"""Is given the ids so far, without the end, and a finish reason ("stop", "length") with the last.

It is called in the decoding thread, after every block of steps.
"""


class FullError(Exception):
    """More texts than slots and queue hold; later there will be room."""


class ClosedError(Exception):
    """The decoder has stopped, or is about to."""


@dataclass(frozen=True, eq=False)
class Job:
    """One text to be written.

    Attributes:
        prompt: as `Generator.ready` gives it.
        max_tokens: of the text, its end included.
        temperature: as in `Sampling`.
        top_p: likewise.
        seed: of the draws, from 0 to 2^64 - 1.
        sample: its place among the texts of one prompt, of which each is drawn otherwise.
        tell: gets the tokens.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    sample: int
    tell: Tell


class Engine:
    """Decodes jobs, first come, first served, as many at a time as there are slots.

    Args:
        max_tokens: the most that a job may ask for.
        queue: jobs that may wait beside those that decode.

    Attributes:
        failure: what stopped the decoder, if anything did.
    """

    def __init__(self, generator: Generator, *, slots: int, max_tokens: int, queue: int):
        self._generator, self.most = generator, slots + queue
        self._slots = generator.open_slots(slots=slots, max_tokens=max_tokens)
        self._count = slots
        self._waiting: deque[Job] = deque()
        self._decoding: dict[int, Job] = {}
        self._dropped: set[Job] = set()
        self._closed = False
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Jobs that decode and jobs that wait."""
        with self._changed:
            return len(self._decoding), len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all jobs or none.

        Raises:
            FullError: there is no room for all of them now.
            ClosedError: the decoder has stopped, or is about to.
        """
        with self._changed:
            if self._closed or self.failure:
                raise ClosedError
            if len(self._decoding) + len(self._waiting) + len(jobs) > self.most:
                raise FullError
            self._waiting += jobs
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forgets jobs; those that have ended, too, are no error. They may be told once more."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job not in jobs)
            self._dropped |= {*jobs} & {*self._decoding.values()}
            self._changed.notify()

    def close(self) -> None:
        """Takes no more jobs, decodes those that it has, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def warm_up(self) -> None:
        """Decodes one token, so that the first request finds programs compiled.

        Raises:
            Exception: what went wrong with it.
        """
        done = threading.Event()
        prompt = self._generator.ready("")

        def tell(ids: list[int], reason: str | None) -> None:
            if reason:
                done.set()

        self.submit([Job(prompt, 1, 1.0, 1.0, 0, 0, tell)])
        done.wait()
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        try:
            while self._enter():
                self._advance()
        except BaseException as error:  # told to everybody who waits, and to /health
            with self._changed:
                self.failure = error
                left = [*self._decoding.values(), *self._waiting]
            for job in left:
                _tell(job, [], FAILED)

    def _enter(self) -> bool:
        """Waits for work and lets jobs enter free slots; False when there is none to come."""
        with self._changed:
            while not (self._waiting or self._decoding or self._closed):
                self._changed.wait()
            for ticket, job in list(self._decoding.items()):
                if job in self._dropped:
                    self._slots.cancel(ticket)
                    del self._decoding[ticket]
            self._dropped.clear()
            while self._waiting and len(self._decoding) < self._count:
                job = self._waiting.popleft()
                own = {"temperature": job.temperature, "top_p": job.top_p}
                self._decoding[self._slots.submit(job.prompt, _key(job), **own)] = job
            return bool(self._decoding or not self._closed)

    def _advance(self) -> None:
        ended = dict(self._slots.advance())
        for ticket, ids_1T in {**self._slots.written(), **ended}.items():
            job = self._decoding[ticket]
            ids = self._generator.before_end(ids_1T[0].tolist())
            reason = "stop" if ticket in ended and len(ids) < job.max_tokens else None
            if len(ids) >= job.max_tokens:
                reason = "length"
                self._slots.cancel(ticket)
            if reason:
                with self._changed:
                    del self._decoding[ticket]
            _tell(job, ids[: job.max_tokens], reason)


def _key(job: Job):
    """Of all 64 bits of the seed: JAX by itself takes the lower 32."""
    low, high = np.uint32(job.seed % 2**32), np.uint32(job.seed >> 32)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(low), high), job.sample)


def _tell(job: Job, ids: list[int], reason: str | None) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop of one who listened has ended
        job.tell(ids, reason)
