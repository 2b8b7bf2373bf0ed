"""What the figures of a comparison show: points by run and panel, without drawing any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cot_flax.reports.comparison import tables
from cot_flax.reports.comparison.cells import Cell, from_summary
from cot_flax.run_folder import Run

MOST_POINTS = 200


@dataclass(frozen=True)
class Line:
    """One run's points; `low` and `high` are the ends of whiskers, empty for none."""

    run: int
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def at(self, x: float) -> Cell | None:
        """The point at `x`, for lines that have whiskers."""
        if x not in self.x:
            return None
        i = self.x.index(x)
        return Cell(self.y[i], self.low[i], self.high[i])


@dataclass(frozen=True)
class Panel:
    """One set of axes. `y` is "percent" (shares from 0 to 1) or "nats" (positive numbers)."""

    title: str
    x_label: str
    y_label: str
    y: str
    lines: list[Line]

    @property
    def all_x(self) -> list[float]:
        """Where some line has a point."""
        return sorted({x for line in self.lines for x in line.x})


def steps_panels(runs: Sequence[Run]) -> list[Panel]:
    """Accuracy by number of steps, one panel a reasoning task whose questions have them."""
    results = [run.results for run in runs]
    cards = tables.cards(results)
    panels = []
    for dataset in tables.datasets(results, tables.REASONING):
        for task in tables.dataset_tasks(results, dataset):
            counted = [(i, run.tasks.get(task, {}).get("by_steps")) for i, run in enumerate(runs)]
            lines = [_steps_line(i, by_steps) for i, by_steps in counted if by_steps]
            labels = ("steps that the question needs", "right answers, %")
            panels.append(Panel(_title(cards[task]), *labels, "percent", lines))
    return [panel for panel in panels if panel.lines]


def loss_panels(runs: Sequence[Run]) -> list[Panel]:
    """Training cross entropy over optimizer steps; no panel where no run has any."""
    curves = [(i, _curve(run, "train", "cross_entropy")) for i, run in enumerate(runs)]
    lines = [Line(i, *thin(*curve)) for i, curve in curves if curve[0]]
    title, label = "Training cross entropy", "nats a token (log scale)"
    return [Panel(title, "optimizer step", label, "nats", lines)] if lines else []


def accuracy_panels(runs: Sequence[Run]) -> list[Panel]:
    """Accuracy of the evaluations during training over optimizer steps, one panel a task."""
    names = [
        name
        for run in runs
        for row in run.metrics
        if row["kind"] == "eval"
        for name in row
        if name.endswith("/accuracy")
    ]
    cards, panels = tables.cards([run.results for run in runs]), []
    for name in dict.fromkeys(names):
        curves = [(i, _curve(run, "eval", name)) for i, run in enumerate(runs)]
        lines = [Line(i, *curve) for i, curve in curves if curve[0]]
        task = name.removesuffix("/accuracy")  # one that is only watched in training has no card
        title = f"Accuracy: {_title(cards[task]) if task in cards else task}"
        panels.append(Panel(title, "optimizer step", "right answers, %", "percent", lines))
    return panels


def thin(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Means over equally many neighbours where there are more than MOST_POINTS points.

    A mean stands at the last x of its neighbours, as a logged mean does.
    """
    size = -(-len(x) // MOST_POINTS)
    if size <= 1:
        return x, y
    parts = [y[i : i + size] for i in range(0, len(y), size)]
    ends = [x[min(i + size, len(x)) - 1] for i in range(0, len(x), size)]
    return ends, [sum(part) / len(part) for part in parts]


def _curve(run: Run, kind: str, name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in run.metrics if row["kind"] == kind and name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _steps_line(run: int, by_steps: dict) -> Line:
    steps = sorted(by_steps, key=int)
    points = [from_summary(by_steps[n]) for n in steps]
    return Line(
        run,
        [int(n) for n in steps],
        [point.value for point in points],
        [point.low for point in points],
        [point.high for point in points],
    )


def _title(card: Mapping) -> str:
    return ", ".join(tables.task_title(card))
