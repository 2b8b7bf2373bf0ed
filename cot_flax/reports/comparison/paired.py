"""Runs against each other on the same questions: differences with tests."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from cot_flax.errors import UserError
from cot_flax.evaluation import statistics
from cot_flax.evaluation.statistics import Paired
from cot_flax.evaluation.summary import cluster_of
from cot_flax.reports.comparison import tables
from cot_flax.reports.comparison.cells import percent, signed
from cot_flax.run_folder import Run, base_of

TITLES = ("change", "95% interval", "gained / lost", "p", "p, all", "shows from")
NOTES = (
    "gained / lost: answers that only this run, or only the other one, has right",
    "p: McNemar's exact test; of several samples a question, sign flips of whole questions",
    "p, all: by Holm over all tasks and runs here",
    "shows from: the smallest change that 80% of such comparisons would show at p 0.05",
)


@dataclass(frozen=True)
class Difference:
    """What one task says of two runs.

    Attributes:
        title: the task's data set and format, for readers.
        run: the place of the run that is measured.
        against: the place of the run that it is measured against.
        found: None where the two cannot be compared.
        why_not: then, a sentence.
        adjusted: the p-value, for all tests of the table (Holm).
    """

    title: tuple[str, str]
    run: int
    against: int
    found: Paired | None
    why_not: str = ""
    adjusted: float = 1.0


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Each run against the base, or the first one, in every task that both have.

    Runs without predictions have none.
    """
    reference = base_of(runs) or 0
    rows = [_by_task(run) for run in runs]
    cards = tables.cards([run.results for run in runs])
    tasks = sorted(cards, key=lambda task: tables.group_of(cards[task]) == tables.GENERAL)
    found = [
        _difference(task, cards[task], rows, i, reference)
        for task in tasks
        for i in range(len(runs))
        if i != reference and task in rows[i] and task in rows[reference]
    ]
    tested = [i for i, difference in enumerate(found) if difference.found]
    adjusted = statistics.holm([found[i].found.p_value for i in tested])
    for i, p_value in zip(tested, adjusted, strict=True):
        found[i] = replace(found[i], adjusted=p_value)
    return found


def cells(difference: Difference) -> tuple[str, ...]:
    """A comparison in words, under `TITLES`."""
    found = difference.found
    ends = f"{signed(found.low)} to {signed(found.high)}"
    smallest = "–" if found.smallest is None else percent(found.smallest)
    counts = f"{found.gained:,} / {found.lost:,}"
    p_values = _written(found.p_value), _written(difference.adjusted)
    return signed(found.difference), ends, counts, *p_values, smallest


def _written(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _difference(task: str, card: Mapping, rows: Sequence, run: int, against: int) -> Difference:
    title = tables.task_title(card)
    first, second = (_outcomes(rows[i][task]) for i in (against, run))
    clusters = {_key(row): cluster_of(row) for row in rows[run][task]}
    try:
        return Difference(title, run, against, statistics.compare(first, second, clusters))
    except UserError as error:
        return Difference(title, run, against, None, str(error))


def _outcomes(rows: Sequence[Mapping]) -> dict[Hashable, bool]:
    return {_key(row): row["right"] for row in rows}


def _key(row: Mapping) -> tuple:
    """An id alone may stand for another question in another version of the data."""
    return row["id"], row["question"], row["sample"]


def _by_task(run: Run) -> Mapping[str, list[dict]]:
    found = defaultdict(list)
    for row in run.predictions:
        found[row["task"]].append(row)
    return found
