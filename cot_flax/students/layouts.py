"""How examples become the rows of a batch, one layout a kind of student; NumPy only.

An example has `inputs` and `targets` (int ids, each closed by the end id) and, where the task has a
teacher, `teacher_top_ids` and `teacher_top_logprobs` [T, K] beside its targets. Batch keys are
T5X's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from cot_flax.text.pieces import ABSENT_ID, SpecialIds

Example = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], str]]


class Layout(Protocol):
    """How one kind of student reads examples; `lengths` are a run's TASK_FEATURE_LENGTHS."""

    def capacity(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """Tokens that a row holds, on each of its sides."""
        ...

    def size(self, example: Example) -> tuple[int, ...]:
        """Tokens that an example takes, on each of these sides."""
        ...

    def prompt(self, inputs: Sequence[int], special_ids: SpecialIds) -> list[int]:
        """What the generator reads of the `inputs` of an example."""
        ...

    def to_batch(
        self,
        rows: Sequence[Sequence[Example]],
        lengths: Mapping[str, int],
        special_ids: SpecialIds,
        *,
        top_k: int,
        packed: bool,
    ) -> dict[str, np.ndarray]:
        """Lays out B rows, each of one example or, packed, of several.

        Returns:
            int32 token ids; `decoder_loss_weights` float32, 1 on what is learned; where packed,
            segment ids (from 1; 0 is padding) and positions; where top_k > 0, `teacher_top_ids`
            int32 (ABSENT_ID where there is none) and `teacher_top_logprobs` float32 [B, T, K].
        """
        ...

    def shapes(
        self, batch_size: int, lengths: Mapping[str, int], *, top_k: int, packed: bool
    ) -> Shapes:
        """Shape and type of everything that `to_batch` gives."""
        ...


class EncoderDecoder:
    """The encoder reads `inputs`, the decoder learns `targets`, shifted by the start id."""

    def capacity(self, lengths):
        return lengths["inputs"], lengths["targets"]

    def size(self, example):
        return len(example["inputs"]), len(example["targets"])

    def prompt(self, inputs, special_ids):
        return list(inputs)

    def to_batch(self, rows, lengths, special_ids, *, top_k, packed):
        shapes = self.shapes(len(rows), lengths, top_k=top_k, packed=True)
        batch = _empty(shapes, special_ids)
        for b, row in enumerate(rows):
            s = t = 0
            for segment, example in enumerate(row, 1):
                s = _put_tokens(batch, "encoder", "input", b, s, segment, example["inputs"])
                begin, targets = t, example["targets"]
                t = _put_tokens(batch, "decoder", "target", b, t, segment, targets)
                _put_shifted(batch, b, begin, t, special_ids.start)
                batch["decoder_loss_weights"][b, begin:t] = 1.0
                _put_teacher(batch, b, begin, example, top_k)
        return _chosen(batch, packed)

    def shapes(self, batch_size, lengths, *, top_k, packed):
        sides = {"encoder": lengths["inputs"], "decoder": lengths["targets"]}
        found: Shapes = {"encoder_input_tokens": ((batch_size, lengths["inputs"]), "int32")}
        return found | _decoder_shapes(batch_size, lengths["targets"], sides, top_k, packed)


class DecoderOnly:
    """One row of tokens: the start id, the inputs without their end id, then the targets.

    Only targets are learned; the tokens of the inputs weigh nothing.
    """

    def capacity(self, lengths):
        return (lengths["inputs"] + lengths["targets"],)

    def size(self, example):
        return (len(example["inputs"]) + len(example["targets"]),)

    def prompt(self, inputs, special_ids):
        return [special_ids.start, *_without_end(inputs, special_ids)]

    def to_batch(self, rows, lengths, special_ids, *, top_k, packed):
        shapes = self.shapes(len(rows), lengths, top_k=top_k, packed=True)
        batch = _empty(shapes, special_ids)
        for b, row in enumerate(rows):
            t = 0
            for segment, example in enumerate(row, 1):
                inputs = _without_end(example["inputs"], special_ids)
                begin, learned = t, t + len(inputs)
                tokens = np.concatenate([inputs, example["targets"]]).astype(np.int32)
                t = _put_tokens(batch, "decoder", "target", b, t, segment, tokens)
                _put_shifted(batch, b, begin, t, special_ids.start)
                batch["decoder_loss_weights"][b, learned:t] = 1.0
                _put_teacher(batch, b, learned, example, top_k)
        return _chosen(batch, packed)

    def shapes(self, batch_size, lengths, *, top_k, packed):
        (length,) = self.capacity(lengths)
        return _decoder_shapes(batch_size, length, {"decoder": length}, top_k, packed)


def _decoder_shapes(batch_size, length, sides, top_k, packed) -> Shapes:
    decoder = batch_size, length
    found: Shapes = {
        "decoder_input_tokens": (decoder, "int32"),
        "decoder_target_tokens": (decoder, "int32"),
        "decoder_loss_weights": (decoder, "float32"),
    }
    if packed:
        for side, size in sides.items():
            for name in ("segment_ids", "positions"):
                found[f"{side}_{name}"] = ((batch_size, size), "int32")
    if top_k:
        rows = (*decoder, top_k)
        found |= {"teacher_top_ids": (rows, "int32"), "teacher_top_logprobs": (rows, "float32")}
    return found


def _empty(shapes: Shapes, special_ids: SpecialIds) -> dict[str, np.ndarray]:
    def fill(name):
        if name.endswith("_tokens"):
            return special_ids.pad
        return ABSENT_ID if name == "teacher_top_ids" else 0

    return {name: np.full(shape, fill(name), dtype) for name, (shape, dtype) in shapes.items()}


def _put_tokens(batch, side, kind, b, begin, segment, ids) -> int:
    end = begin + len(ids)
    batch[f"{side}_{kind}_tokens"][b, begin:end] = ids
    batch[f"{side}_segment_ids"][b, begin:end] = segment
    batch[f"{side}_positions"][b, begin:end] = np.arange(len(ids))
    return end


def _put_shifted(batch, b, begin, end, start_id) -> None:
    """The decoder reads every token one place late: an example begins with the start id."""
    batch["decoder_input_tokens"][b, begin] = start_id
    batch["decoder_input_tokens"][b, begin + 1 : end] = batch["decoder_target_tokens"][
        b, begin : end - 1
    ]


def _put_teacher(batch, b, begin, example, top_k) -> None:
    if top_k:
        end = begin + len(example["targets"])
        for name in ("teacher_top_ids", "teacher_top_logprobs"):
            batch[name][b, begin:end] = example[name]


def _without_end(inputs: Sequence[int], special_ids: SpecialIds) -> Sequence[int]:
    return inputs[:-1] if len(inputs) and inputs[-1] == special_ids.end else inputs


def _chosen(batch: dict[str, np.ndarray], packed: bool) -> dict[str, np.ndarray]:
    if packed:
        return batch
    names: Iterable[str] = batch
    return {name: batch[name] for name in names if not name.endswith(("segment_ids", "positions"))}
