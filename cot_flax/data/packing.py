"""Rows of a batch: one example a row, or several packed into one, teacher rows and all."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

Example = Mapping[str, np.ndarray]

_NEVER = np.iinfo(np.int64).max


def pack(examples: Iterable[Example], lengths: Mapping[str, int], *, waiting: int = 256):
    """Yields rows (lists of examples) in which both sides fit; deterministic, nothing cut or lost.

    At most `waiting` examples wait. The one that came first opens a row, so that none is held back
    for more than `waiting` rows; then joins, as long as one fits, whichever leaves the least room:
    the least sum of the squares of what stays free on either side, as shares of the lengths. This
    is greedy vector packing by norms (Panigrahy et al. 2011, "Heuristics for Vector Bin Packing").
    """
    line = _Line(iter(examples), lengths["inputs"], lengths["targets"], waiting)
    while (slot := line.first()) is not None:
        row: list[Example] = []
        s, t = lengths["inputs"], lengths["targets"]
        while slot is not None:
            example = line.leave(slot)
            row.append(example)
            s, t = s - len(example["inputs"]), t - len(example["targets"])
            slot = line.best(s, t)
        yield row


class _Line:
    """Examples that wait, N at most, in slots: whoever leaves is followed by the stream's next."""

    def __init__(self, stream: Iterator[Example], S: int, T: int, N: int):
        self._stream, self._S, self._T = stream, S, T
        self._came = itertools.count()
        self._waiting: list[Example | None] = [None] * N
        self._number_N, self._inputs_N, self._targets_N = np.full((3, N), _NEVER)
        for slot in range(N):
            self._enter(slot)

    def first(self) -> int | None:
        """The slot of the example that came first; None where nobody waits."""
        slot = int(self._number_N.argmin())
        return None if self._waiting[slot] is None else slot

    def best(self, s: int, t: int) -> int | None:
        """The slot of the example that fits s and t tokens best; None where none fits."""
        s_N, t_N = s - self._inputs_N, t - self._targets_N
        # Shares of S and T, times both: whole numbers, so that every machine chooses alike.
        left_N = (s_N * self._T) ** 2 + (t_N * self._S) ** 2
        left_N[(s_N < 0) | (t_N < 0)] = _NEVER
        slot = int(left_N.argmin())
        return None if left_N[slot] == _NEVER else slot

    def leave(self, slot: int) -> Example:
        example = self._waiting[slot]
        self._enter(slot)
        return example

    def _enter(self, slot: int) -> None:
        example = self._waiting[slot] = next(self._stream, None)
        if example is None:
            numbers = _NEVER, self._S + 1, self._T + 1  # that fit nowhere
        else:
            numbers = next(self._came), len(example["inputs"]), len(example["targets"])
        self._number_N[slot], self._inputs_N[slot], self._targets_N[slot] = numbers


def to_batch(
    rows: list[list[Example]], lengths: Mapping[str, int], *, top_k: int, packed: bool
) -> dict[str, np.ndarray]:
    """Lays rows out under T5X's batch keys.

    Args:
        rows: B lists of examples with `inputs`, `targets` and, where top_k > 0, teacher rows.
        lengths: S for `inputs` and T for `targets`.
        packed: also gives segment ids (from 1; 0 is padding) and positions.

    Returns:
        int32 [B, S] or [B, T] each; `decoder_loss_weights` float32; `teacher_top_ids` int32 and
        `teacher_top_logprobs` float32 [B, T, K].
    """
    S, T, B = lengths["inputs"], lengths["targets"], len(rows)
    batch = {
        name: np.zeros((B, size), np.int32)
        for side, size in (("encoder", S), ("decoder", T))
        for name in (f"{side}_segment_ids", f"{side}_positions")
    }
    batch["encoder_input_tokens"] = np.zeros((B, S), np.int32)
    batch["decoder_input_tokens"] = np.zeros((B, T), np.int32)
    batch["decoder_target_tokens"] = np.zeros((B, T), np.int32)
    if top_k:
        batch["teacher_top_ids"] = np.zeros((B, T, top_k), np.int32)
        batch["teacher_top_logprobs"] = np.zeros((B, T, top_k), np.float32)
    for b, row in enumerate(rows):
        s = t = 0
        for segment, example in enumerate(row, 1):
            s = _put_inputs(batch, b, s, segment, example)
            t = _put_targets(batch, b, t, segment, example, top_k)
    batch["decoder_loss_weights"] = (batch["decoder_segment_ids"] > 0).astype(np.float32)
    if not packed:
        batch = {k: v for k, v in batch.items() if not k.endswith(("segment_ids", "positions"))}
    return batch


def batched(rows: Iterable[list[Example]], size: int) -> Iterator[list[list[Example]]]:
    """Groups rows; a last group that is too small is left out."""
    group: list[list[Example]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []


def _put_inputs(batch, b, start, segment, example) -> int:
    end = start + len(example["inputs"])
    batch["encoder_input_tokens"][b, start:end] = example["inputs"]
    _mark(batch, "encoder", b, start, end, segment)
    return end


def _put_targets(batch, b, start, segment, example, top_k) -> int:
    targets = example["targets"]
    end = start + len(targets)
    batch["decoder_target_tokens"][b, start:end] = targets
    batch["decoder_input_tokens"][b, start + 1 : end] = targets[:-1]
    _mark(batch, "decoder", b, start, end, segment)
    if top_k:
        batch["teacher_top_ids"][b, start:end] = example["teacher_top_ids"]
        batch["teacher_top_logprobs"][b, start:end] = example["teacher_top_logprobs"]
    return end


def _mark(batch, side, b, start, end, segment):
    batch[f"{side}_segment_ids"][b, start:end] = segment
    batch[f"{side}_positions"][b, start:end] = np.arange(end - start)
