"""The numbers of a comparison: one column a task and format, one cell a run.

A task's card says where it stands: the skill that students are taught, and the same skill on other
data, are reasoning; general ability is the price of specialising.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cot_flax.reports.comparison.cells import Cell, difference, from_summary, mean, pool
from cot_flax.text.prompts import FORMATS

MANY_STEPS = 3
"""From here on a question needs many steps: one pooled column, the headline."""
REASONING, GENERAL = "Reasoning", "General ability"
FORMAT_TITLES = {
    "zero_shot_cot": "zero-shot CoT",
    "few_shot_cot": "few-shot CoT",
    "zero_shot_answer": "zero-shot answer",
    "few_shot_answer": "few-shot answer",
}

Results = Mapping[str, Mapping]
"""A results.json, of which `tasks` and `cards` are read; empty for a run without results."""


@dataclass(frozen=True)
class Column:
    """One measure of all runs, in their order; None where a run does not have it.

    Attributes:
        kind: "accuracy", "many steps", "mean" or "change".
        majority: the accuracy of always giving the most frequent label; None where answers are no
            labels.
    """

    group: str
    title: str
    subtitle: str
    cells: list[Cell | None]
    kind: str = "accuracy"
    majority: float | None = None

    @property
    def is_headline(self) -> bool:
        """Whether the column sums up those after it."""
        return self.kind in ("many steps", "mean")

    @property
    def is_general_task(self) -> bool:
        """Whether the data set tells the column from its neighbours, and not the format."""
        return self.group == GENERAL and self.kind == "accuracy"

    @property
    def count(self) -> int | None:
        """The number of predictions if it is the same in all cells, else None."""
        counts = {cell.count for cell in self.cells if cell}
        return counts.pop() if len(counts) == 1 else None

    def is_best(self, cell: Cell | None) -> bool:
        """Whether no run is better and at least one is worse."""
        values = [other.value for other in self.cells if other]
        return cell is not None and min(values) < cell.value == max(values)


def compare(runs: Sequence[Results], base: int | None = None) -> list[Column]:
    """Returns the columns of the main table; what sums up a group stands first in it.

    Args:
        runs: each run's results.
        base: the place of the run that the price is measured against, if there is one.
    """
    columns: list[Column] = []
    for dataset in datasets(runs, REASONING):
        columns += many_steps_column(runs, dataset)
        columns += _task_columns(runs, dataset, REASONING)
    general: list[Column] = []
    for dataset in datasets(runs, GENERAL):
        general += _task_columns(runs, dataset, GENERAL)
    return columns + _price(general, base) + general


def many_steps_column(runs: Sequence[Results], dataset: str) -> list[Column]:
    """Accuracy on questions of at least MANY_STEPS steps, each run in its best format overall.

    Returns:
        One column, or none where no run has such questions.
    """
    cells, longest = [], 0
    for run in runs:
        task = best_task(run, dataset)
        by_steps = run["tasks"][task].get("by_steps", {}) if task else {}
        many = [steps for steps in by_steps if int(steps) >= MANY_STEPS]
        longest = max([longest, *map(int, many)])
        note = task_title(run["cards"][task])[1] if task else ""
        cells.append(pool((by_steps[steps] for steps in many), note))
    title = steps_title(MANY_STEPS, longest)
    return [Column(REASONING, _plain(dataset), title, cells, "many steps")] if any(cells) else []


def mean_column(columns: Sequence[Column], of_format: str = "") -> Column:
    """The unweighted mean over columns of different questions, for the runs that have them all."""
    rows = zip(*(column.cells for column in columns), strict=True)
    cells = [mean(row) if all(row) else None for row in rows]
    title = f"{len(columns)} tasks"
    return Column(columns[0].group, title, _with_format("mean", of_format), cells, "mean")


def change_column(column: Column, base: int, of_format: str = "") -> Column:
    """The differences to the base run, which itself has none."""
    reference = column.cells[base]
    cells = [
        difference(cell, reference) if cell and reference and i != base else None
        for i, cell in enumerate(column.cells)
    ]
    subtitle = _with_format("change", of_format)
    return Column(column.group, "against base", subtitle, cells, "change")


def cards(runs: Iterable[Results]) -> dict[str, Mapping]:
    """The cards of all tasks that some run has, in order of appearance."""
    found: dict[str, Mapping] = {}
    for run in runs:
        for task in run.get("tasks", {}):
            found.setdefault(task, run["cards"][task])
    return found


def datasets(runs: Iterable[Results], group: str) -> list[str]:
    """The data sets of REASONING or of GENERAL that some run has, in order of appearance."""
    found = [card["dataset"] for card in cards(runs).values() if group_of(card) == group]
    return list(dict.fromkeys(found))


def group_of(card: Mapping) -> str:
    """Where a task stands, by its role."""
    return GENERAL if card["role"] == "general" else REASONING


def dataset_tasks(runs: Iterable[Results], dataset: str) -> list[str]:
    """The tasks of a data set that some run has, in the order of FORMATS."""
    found = {task: card for task, card in cards(runs).items() if card["dataset"] == dataset}
    return sorted(found, key=lambda task: FORMATS.index(found[task]["format"]))


def best_task(run: Results, dataset: str) -> str | None:
    """The task of a data set with the run's highest accuracy; of equals the first in FORMATS."""
    tasks = dataset_tasks([run], dataset)
    return max(tasks, key=lambda task: run["tasks"][task]["accuracy"], default=None)


def task_title(card: Mapping) -> tuple[str, str]:
    """Data set and format for readers: ("word sorting", "zero-shot answer")."""
    return _plain(card["dataset"]), FORMAT_TITLES[card["format"]]


def steps_title(first: int, last: int) -> str:
    """First and last number of steps in words: "3–4 steps", "3 steps" if they are the same."""
    numbers = f"{first}–{last}" if last > first else str(first)
    return f"{numbers} step" if numbers == "1" else f"{numbers} steps"


def _price(general: list[Column], base: int | None) -> list[Column]:
    """Means and changes, a format by itself: formats of one data set ask the same questions."""
    added: list[Column] = []
    formats = list(dict.fromkeys(column.subtitle for column in general))
    for title in formats:
        columns = [column for column in general if column.subtitle == title]
        name = title if len(formats) > 1 else ""
        means = [mean_column(columns, name)] if len(columns) > 1 else []
        against = (columns + means)[-1]
        added += means
        if base is not None and against.cells[base]:
            added.append(change_column(against, base, name))
    return added


def _with_format(word: str, of_format: str) -> str:
    return f"{word}, {of_format}" if of_format else word


def _task_columns(runs: Sequence[Results], dataset: str, group: str) -> list[Column]:
    columns = []
    for task in dataset_tasks(runs, dataset):
        summaries = [run.get("tasks", {}).get(task) for run in runs]
        cells = [from_summary(summary) if summary else None for summary in summaries]
        known = {s["majority"] for s in summaries if s and s.get("majority") is not None}
        majority = known.pop() if len(known) == 1 else None
        title = task_title(cards(runs)[task])
        columns.append(Column(group, *title, cells, majority=majority))
    return columns


def _plain(name: str) -> str:
    return name.replace("_", " ")
