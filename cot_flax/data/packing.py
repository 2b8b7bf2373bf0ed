"""Which examples share a row of a batch; students/layouts.py lays the rows out.

N examples wait; a row has G sides (an encoder-decoder's two, a decoder's one).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from cot_flax.students.layouts import Example, Layout

_NEVER = np.iinfo(np.int64).max


def pack(
    examples: Iterable[Example], layout: Layout, lengths: Mapping[str, int], *, waiting: int = 256
) -> Iterator[list[Example]]:
    """Yields rows whose sides all fit; deterministic, nothing cut or lost.

    At most `waiting` examples wait. The one that came first opens a row, so that none is held back
    for more than `waiting` rows; then joins, as long as one fits, whichever leaves the least room:
    the least sum of the squares of what stays free on every side, as shares of the lengths. This
    is greedy vector packing by norms (Panigrahy et al. 2011, "Heuristics for Vector Bin Packing").

    Args:
        layout: says what an example takes and what a row holds.
        lengths: TASK_FEATURE_LENGTHS.
    """
    queue = _Queue(iter(examples), layout, lengths, waiting)
    while (slot := queue.first()) is not None:
        row: list[Example] = []
        free_G = queue.capacity_G
        while slot is not None:
            free_G = free_G - queue.sizes_GN[:, slot]
            row.append(queue.leave(slot))
            slot = queue.best(free_G)
        yield row


class _Queue:
    """Examples that wait, N at most, in slots: whoever leaves is followed by the stream's next."""

    def __init__(self, stream: Iterator[Example], layout: Layout, lengths, N: int):
        self._stream, self._size_of = stream, layout.size
        self.capacity_G = np.array(layout.capacity(lengths))
        self._came = itertools.count()
        self._waiting: list[Example | None] = [None] * N
        self._number_N = np.full(N, _NEVER)
        self.sizes_GN = np.full((len(self.capacity_G), N), _NEVER)
        # Shares of the lengths, times all of them: whole numbers, so that every machine chooses
        # alike.
        self._scale_G1 = (math.prod(self.capacity_G.tolist()) // self.capacity_G)[:, None]
        for slot in range(N):
            self._enter(slot)

    def first(self) -> int | None:
        """The slot of the example that came first; None where nobody waits."""
        slot = int(self._number_N.argmin())
        return None if self._waiting[slot] is None else slot

    def best(self, free_G: np.ndarray) -> int | None:
        """The slot of the example that fits the free tokens best; None where none fits."""
        left_GN = free_G[:, None] - self.sizes_GN
        score_N = np.sum((left_GN * self._scale_G1) ** 2, axis=0)
        score_N[(left_GN < 0).any(axis=0)] = _NEVER
        slot = int(score_N.argmin())
        return None if score_N[slot] == _NEVER else slot

    def leave(self, slot: int) -> Example:
        example = self._waiting[slot]
        self._enter(slot)
        return example

    def _enter(self, slot: int) -> None:
        example = self._waiting[slot] = next(self._stream, None)
        if example is None:
            number, size = _NEVER, self.capacity_G + 1  # fits nowhere
        else:
            number, size = next(self._came), self._size_of(example)
        self._number_N[slot], self.sizes_GN[:, slot] = number, size


def batched(rows: Iterable[list[Example]], size: int) -> Iterator[list[list[Example]]]:
    """Groups rows; a last group that is too small is left out."""
    group: list[list[Example]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
