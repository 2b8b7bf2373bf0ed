"""The numbers of a comparison: one column a task and format, one cell a run.

Reasoning tasks are those whose data set is counted by steps; all others are general ability, the
price of specialising.
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
    "": "",
}

Tasks = Mapping[str, Mapping]
"""The `tasks` of a results.json: summaries by task; empty for a run without results."""


@dataclass(frozen=True)
class Column:
    """One measure of all runs, in their order; None where a run does not have it.

    Attributes:
        kind: "accuracy", "many steps", "mean" or "change".
    """

    group: str
    title: str
    subtitle: str
    cells: list[Cell | None]
    kind: str = "accuracy"

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


def compare(runs: Sequence[Tasks], base: int | None = None) -> list[Column]:
    """Returns the columns of the main table; what sums up a group stands first in it.

    Args:
        runs: each run's summaries by task.
        base: the place of the run that the price is measured against, if there is one.
    """
    reasoning = reasoning_datasets(runs)
    columns: list[Column] = []
    for dataset in reasoning:
        columns += many_steps_column(runs, dataset)
        columns += _task_columns(runs, dataset, REASONING)
    general: list[Column] = []
    for dataset in _datasets(runs):
        if dataset not in reasoning:
            general += _task_columns(runs, dataset, GENERAL)
    return columns + _price(general, base) + general


def many_steps_column(runs: Sequence[Tasks], dataset: str) -> list[Column]:
    """Accuracy on questions of at least MANY_STEPS steps, each run in its best format overall.

    Returns:
        One column, or none where no run has such questions.
    """
    cells, longest = [], 0
    for run in runs:
        task = best_task(run, dataset)
        by_steps = run[task].get("by_steps", {}) if task else {}
        many = [steps for steps in by_steps if int(steps) >= MANY_STEPS]
        longest = max([longest, *map(int, many)])
        cells.append(pool((by_steps[steps] for steps in many), task and task_title(task)[1]))
    title = steps_title(MANY_STEPS, longest)
    return [Column(REASONING, _plain(dataset), title, cells, "many steps")] if any(cells) else []


def mean_column(columns: Sequence[Column]) -> Column:
    """The unweighted mean over columns, for the runs that have them all."""
    rows = zip(*(column.cells for column in columns), strict=True)
    cells = [mean(row) if all(row) else None for row in rows]
    return Column(columns[0].group, f"{len(columns)} tasks", "mean", cells, "mean")


def change_column(column: Column, base: int) -> Column:
    """The differences to the base run, which itself has none."""
    reference = column.cells[base]
    cells = [
        difference(cell, reference) if cell and reference and i != base else None
        for i, cell in enumerate(column.cells)
    ]
    return Column(column.group, "against base", "change", cells, "change")


def reasoning_datasets(runs: Iterable[Tasks]) -> list[str]:
    """The data sets that some run has counted by steps, in order of appearance."""
    names = [split_name(task)[0] for run in runs for task in run if run[task].get("by_steps")]
    return list(dict.fromkeys(names))


def dataset_tasks(runs: Iterable[Tasks], dataset: str) -> list[str]:
    """The tasks of a data set that some run has, in the order of FORMATS."""
    tasks = {task for run in runs for task in run if split_name(task)[0] == dataset}
    return sorted(tasks, key=lambda task: (*FORMATS, "").index(split_name(task)[1]))


def best_task(run: Tasks, dataset: str) -> str | None:
    """The task of a data set with the run's highest accuracy; of equals the first in FORMATS."""
    tasks = dataset_tasks([run], dataset)
    return max(tasks, key=lambda task: run[task]["accuracy"], default=None)


def split_name(task: str) -> tuple[str, str]:
    """A task's name as (data set, format); the format is "" where the name does not end in one."""
    format = next((name for name in FORMATS if task.endswith(f"_{name}")), "")
    return (task.removesuffix(f"_{format}"), format) if format else (task, "")


def task_title(task: str) -> tuple[str, str]:
    """The same for readers: ("word sorting", "zero-shot answer")."""
    dataset, format = split_name(task)
    return _plain(dataset), FORMAT_TITLES[format]


def steps_title(first: int, last: int) -> str:
    """First and last number of steps in words: "3–4 steps", "3 steps" if they are the same."""
    numbers = f"{first}–{last}" if last > first else str(first)
    return f"{numbers} step" if numbers == "1" else f"{numbers} steps"


def _price(general: list[Column], base: int | None) -> list[Column]:
    if not general:
        return []
    added = [mean_column(general)] if len(general) > 1 else []
    against = (general + added)[-1]
    if base is not None and against.cells[base]:
        added.append(change_column(against, base))
    return added


def _task_columns(runs: Sequence[Tasks], dataset: str, group: str) -> list[Column]:
    def cells(task):
        return [from_summary(run[task]) if task in run else None for run in runs]

    return [Column(group, *task_title(task), cells(task)) for task in dataset_tasks(runs, dataset)]


def _datasets(runs: Sequence[Tasks]) -> list[str]:
    return list(dict.fromkeys(split_name(task)[0] for run in runs for task in run))


def _plain(name: str) -> str:
    return name.replace("_", " ")
