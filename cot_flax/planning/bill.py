"""What a whole run comes to: hours, chip-hours, money, bytes of teacher data."""

import dataclasses

ENTRY_BYTES = 4
"""Of one entry of a teacher's row in the store (data/store/layout.py)."""


@dataclasses.dataclass(frozen=True)
class Bill:
    """Totals of a run.

    Attributes:
        tokens_per_second: positions of both sides, padding included.
        cost: in the currency of the price; None without a price.
        teacher_bytes: of the rows that the run reads if it reads none twice.
    """

    tokens_per_second: float
    hours: float
    chip_hours: float
    cost: float | None
    teacher_bytes: int


def of(experiment, chips: int, step_seconds: float, price: float | None) -> Bill:
    """The bill of a run.

    Args:
        experiment: a planning.experiment.Experiment.
        chips: all that are paid for, used by the mesh or not.
        step_seconds: of one optimizer step.
        price: of a chip for an hour.
    """
    hours = experiment.steps * step_seconds / 3600
    rows = experiment.steps * experiment.batch_size * experiment.targets
    entries = experiment.top_k if experiment.objective.uses_teacher else 0
    return Bill(
        tokens_per_second=experiment.tokens / step_seconds,
        hours=hours,
        chip_hours=hours * chips,
        cost=None if price is None else hours * chips * price,
        teacher_bytes=rows * entries * ENTRY_BYTES,
    )
