"""Prepares chunks of records in several processes, in order, with a bounded number in flight."""

import collections
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from cot_flax.chains.preparation import Outcome, Preparation, prepare_records
from cot_flax.chains.readers import Format, Raw
from cot_flax.text import answers
from cot_flax.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Chunk:
    """Records of one file that are prepared together, all chains of a question among them."""

    index: int
    format: Format
    raws: list[Raw]


@dataclass(frozen=True)
class Job:
    """What a process needs to know: the student's tokenizer, and the settings."""

    tokenizer: Tokenizer
    settings: Preparation

    def __getstate__(self) -> dict:
        """With the answer kind where somebody added it: other processes do not know it yet."""
        kind = self.settings.filters.answer_kind
        marked, base = answers.MARKED.get(kind), answers.base_kind(kind)
        own = {"base": base, "marked": (marked.markers, marked.stop) if marked else ((), "")}
        return vars(self) | own | {"added": answers.ADDED.get(base)}

    def __setstate__(self, state: dict):
        added, base, marked = (state.pop(name) for name in ("added", "base", "marked"))
        vars(self).update(state)
        if added:
            answers.add_answer_kind(base, added.find, bare=added.bare)
        answers.marked_kind(base, *marked)


_STATE: dict = {}  # of a worker process


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def prepare_chunks(
    chunks: Iterable[Chunk], job: Job, *, workers: int
) -> Iterator[tuple[Chunk, Outcome]]:
    """Yields every chunk with its outcome, in order.

    At most `workers` + 2 chunks are held at a time. A single chunk, or a single worker, needs no
    other process.
    """
    chunks = iter(chunks)
    start = list(itertools.islice(chunks, 2))
    chunks = itertools.chain(start, chunks)
    if workers == 1 or len(start) < 2:
        for chunk in chunks:
            yield chunk, _prepare(chunk, job)
        return
    # Not a fork: the parent runs TensorFlow's threads. A fresh process imports none of it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (job,)) as pool:
        try:
            yield from _in_order(pool, chunks, in_flight=workers + 2)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool, chunks: Iterator[Chunk], in_flight: int) -> Iterator[tuple[Chunk, Outcome]]:
    waiting: collections.deque = collections.deque()
    for chunk in chunks:
        waiting.append((Chunk(chunk.index, chunk.format, []), pool.submit(_work, chunk)))
        if len(waiting) == in_flight:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _start(job: Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _STATE["job"] = job


def _end_with_parent() -> None:
    """Waits for the end of the parent, which cannot end its workers when it is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(chunk: Chunk) -> Outcome:
    return _prepare(chunk, _STATE["job"])


def _prepare(chunk: Chunk, job: Job) -> Outcome:
    outcome = prepare_records(chunk.raws, chunk.format, job.tokenizer, job.settings)
    written = len(outcome.kept) + len(outcome.dropped) + len(outcome.rejected)
    assert len(chunk.raws) == written == outcome.tally.read, "a record was lost"
    return outcome
