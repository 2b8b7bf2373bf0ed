"""One number of a report with its 95% interval: the arithmetic, and how it is written."""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from cot_flax.text.scoring import wilson_interval

OFF_FORMAT = 0.05
"""From here on a reader is told."""


class Cell(NamedTuple):
    """A share, or a difference of shares, with its interval.

    Attributes:
        count: predictions behind it.
        no_answer: the share of them in which no answer was found.
        note: what a reader must know beside the number.
        off_format: the share of chains where none was asked for, or the reverse.
        unknown: how many prompts hold pieces that the student's vocabulary lacks.
    """

    value: float
    low: float
    high: float
    count: int = 0
    no_answer: float = 0.0
    note: str = ""
    off_format: float = 0.0
    unknown: int = 0

    @property
    def is_off_format(self) -> bool:
        """Whether so many outputs are that the column does not show what its title says."""
        return self.off_format >= OFF_FORMAT


def from_summary(summary: Mapping) -> Cell:
    """The cell of one summary in a results.json."""
    keys = ("accuracy", "accuracy_low", "accuracy_high", "count", "parse_failure_rate")
    off_format = summary.get("off_format_rate", 0.0)
    unknown = summary.get("prompts_with_unknown", 0)
    return Cell(*(summary[key] for key in keys), off_format=off_format, unknown=unknown)


def pool(summaries: Iterable[Mapping], note: str = "") -> Cell | None:
    """One accuracy of several summaries, from their numbers of right predictions.

    Returns:
        None where there is nothing to pool.
    """
    listed = list(summaries)
    parts = [from_summary(summary) for summary in listed]
    total = sum(part.count for part in parts)
    if not total:
        return None
    right = sum(round(part.value * part.count) for part in parts)
    failures = sum(part.no_answer * part.count for part in parts)
    # Samples of one question are not independent (see `summary.summarize`).
    questions = sum(summary.get("questions", summary["count"]) for summary in listed)
    ends = wilson_interval(right * questions / total, questions)
    return Cell(right / total, *ends, total, failures / total, note)


def mean(cells: Sequence[Cell]) -> Cell:
    """The mean of independent shares; its interval joins theirs (Zou and Donner 2008, MOVER)."""
    n = len(cells)
    value = sum(cell.value for cell in cells) / n
    below = sqrt(sum((cell.value - cell.low) ** 2 for cell in cells)) / n
    above = sqrt(sum((cell.high - cell.value) ** 2 for cell in cells)) / n
    return Cell(value, value - below, value + above, sum(cell.count for cell in cells))


def difference(cell: Cell, reference: Cell) -> Cell:
    """`cell` - `reference`; the interval takes them as independent (Newcombe 1998, method 10).

    Runs that answer the same questions are not independent, which makes it wider than need be.
    """
    value = cell.value - reference.value
    below = sqrt((cell.value - cell.low) ** 2 + (reference.high - reference.value) ** 2)
    above = sqrt((cell.high - cell.value) ** 2 + (reference.value - reference.low) ** 2)
    return Cell(value, value - below, value + above, cell.count)


def percent(share: float) -> str:
    """0.6325 as "63.2"."""
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    """-0.125 as "−12.5", with a real minus."""
    return f"{100 * share:+.1f}".replace("-", "−")


def interval(cell: Cell) -> str:
    """The ends of an accuracy's interval: "58.4–67.8"."""
    return f"{percent(cell.low)}–{percent(cell.high)}"


def signed_interval(cell: Cell) -> str:
    """The ends of a change's interval: "−20.1 to −4.9"."""
    return f"{signed(cell.low)} to {signed(cell.high)}"
