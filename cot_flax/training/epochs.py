"""TRAIN_STEPS from EPOCHS, by counting the data."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

from cot_flax.errors import UserError
from cot_flax.students.layouts import Layout
from cot_flax.students.student import build
from cot_flax.text.tokenizers import SpecialIds
from cot_flax.training import logs


class Countable(Protocol):
    """Data that know how much an epoch is; see data/batches.py for the SeqIO ones."""

    batch_size: int
    special_ids: SpecialIds

    def epoch(self, layout: Layout) -> tuple[int, int, int]:
        """Examples that fit their lengths, those that do not, and rows that the former fill."""


def steps(
    train_steps: int | None, epochs: float | None, data: Callable[[], Countable], model: Any
) -> int:
    """The optimizer steps of a run: TRAIN_STEPS, or what EPOCHS come to where it is given.

    An epoch is as many examples as the tasks of a mixture have together, after overlong ones are
    left out; rates then say how often each task's are read. With packing it is the rows that so
    many examples of the stream fill. The last batch of all is filled up from the next epoch.

    Args:
        data: makes the data, which are read only to count.
        model: the config of a student, which lays out its rows.

    Raises:
        UserError: neither is given, epochs that are none, or no example fits.
    """
    if epochs is None:
        if train_steps is None:
            raise UserError(
                "neither TRAIN_STEPS nor EPOCHS", "one of them", "pass --gin.TRAIN_STEPS=VALUE"
            )
        return train_steps
    if not epochs > 0:
        raise UserError(f"EPOCHS {epochs}", "above 0", "correct EPOCHS")
    counted = data()
    examples, overlong, rows = counted.epoch(build(model, counted.special_ids).layout)
    if not rows:
        raise UserError(
            f"an epoch of no examples ({overlong:,} are longer than TASK_FEATURE_LENGTHS)",
            "examples that fit",
            "raise TASK_FEATURE_LENGTHS",
        )
    # Of the decimal that was written: 0.1 epochs of 10 examples are one.
    total = math.ceil(Fraction(str(epochs)) * rows / counted.batch_size)
    left_out = f" ({overlong:,} longer ones left out)" if overlong else ""
    packed = f" in {rows:,} packed rows" if rows != examples else ""
    data_of_one = f"{examples:,} examples{left_out}{packed}"
    size = counted.batch_size
    logs.say(f"EPOCHS {epochs:g} x {data_of_one} / BATCH_SIZE {size} = {total:,} steps")
    return total
