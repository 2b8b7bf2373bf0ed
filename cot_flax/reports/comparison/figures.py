"""The figures of a comparison: small panels with a line a run, drawn as inline SVG."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cot_flax.reports.comparison import tables
from cot_flax.reports.comparison.cells import Cell, from_summary
from cot_flax.run_folder import Run

MOST_POINTS = 200
COLORS = ("#0072b2", "#d55e00", "#009e73", "#a8508a", "#8c6d00", "#3a3a3a")
"""Okabe and Ito's palette, its light members darkened to be seen as lines on white."""
BASE_COLOR = "#767676"
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}


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


@dataclass(frozen=True)
class Look:
    """How a run is drawn everywhere on the page; `glyph` is its marker as a character."""

    color: str
    marker: str

    @property
    def glyph(self) -> str:
        return MARKERS[self.marker]


def looks(runs: Sequence[Run]) -> list[Look]:
    """A colour and marker a run; the base run is grey, the others take the palette in turn."""
    found, used = [], 0
    for run in runs:
        marker = list(MARKERS)[len(found) % len(MARKERS)]
        found.append(Look(BASE_COLOR if run.is_base else COLORS[used % len(COLORS)], marker))
        used += not run.is_base
    return found


def draw(panel: Panel, styles: Sequence[Look], labels: Sequence[str]) -> str:
    """The panel as an <svg> element that scales with its place on the page."""
    with rc_context({**_STYLE, "svg.hashsalt": panel.title}):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for place, line in enumerate(panel.lines):
            shift = _shift(place, len(panel.lines)) if line.low else 0
            _draw_line(axes, line, styles[line.run], shift)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        _scale_x(axes, panel)
        (_scale_percent if panel.y == "percent" else _scale_nats)(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    named = ", ".join(labels[line.run] for line in panel.lines)
    return _inline(file.getvalue(), f"{panel.title}: {panel.y_label} by {panel.x_label}; {named}")


def _draw_line(axes: Axes, line: Line, look: Look, shift: float) -> None:
    x = [value + shift for value in line.x]
    style = {"color": look.color, "linewidth": 1.6, "marker": look.marker, "markersize": 4.5}
    style["clip_on"] = False  # a marker at 0 or 100% is whole
    if line.low:
        below = [y - low for y, low in zip(line.y, line.low, strict=True)]
        above = [high - y for y, high in zip(line.y, line.high, strict=True)]
        axes.errorbar(x, line.y, (below, above), elinewidth=0.9, capsize=0, **style)
    else:
        every = max(1, len(x) // 8)
        axes.plot(x, line.y, markevery=(line.run % every, every), **style)


def _scale_x(axes: Axes, panel: Panel) -> None:
    if all(line.low for line in panel.lines):
        axes.set_xticks(panel.all_x)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _scale_percent(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([i / 5 for i in range(6)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))


def _scale_nats(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _shift(place: int, lines: int) -> float:
    """Moves lines apart a little, so that their whiskers do not hide each other."""
    return 0.07 * (place - (lines - 1) / 2)


def _inline(svg: str, label: str) -> str:
    """Leaves out what a page with several figures must not repeat: header, styles, element ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    opening, rest = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', opening).group()
    return f'<svg {view_box} role="img" aria-label="{escape(label)}" {_XLINK}>{rest}'


_XLINK = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
