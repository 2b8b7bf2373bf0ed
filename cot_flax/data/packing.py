"""Rows of a batch: one example a row, or several packed into one, teacher rows and all."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

Example = Mapping[str, np.ndarray]


def pack(examples: Iterable[Example], lengths: Mapping[str, int], *, open_rows: int = 32):
    """Yields rows (lists of examples) in which both sides fit; deterministic.

    First fit into at most `open_rows` unfinished rows; when none has room the oldest is given out.
    """
    rows: list[list[Example]] = []
    room: list[tuple[int, int]] = []
    for example in examples:
        need = len(example["inputs"]), len(example["targets"])
        place = next(
            (i for i, free in enumerate(room) if free[0] >= need[0] and free[1] >= need[1]), None
        )
        if place is None:
            if len(rows) == open_rows:
                room.pop(0)
                yield rows.pop(0)
            rows.append([])
            room.append((lengths["inputs"], lengths["targets"]))
            place = len(rows) - 1
        rows[place].append(example)
        free = room[place]
        room[place] = (free[0] - need[0], free[1] - need[1])
    yield from rows


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
