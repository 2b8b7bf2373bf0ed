"""The figures of a comparison as inline SVG: one small panel a task, one line a run."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cot_flax.reports.comparison.panels import Line, Panel
from cot_flax.run_folder import Run

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
    if line.low:
        below = [y - low for y, low in zip(line.y, line.low, strict=True)]
        above = [high - y for y, high in zip(line.y, line.high, strict=True)]
        axes.errorbar(x, line.y, (below, above), elinewidth=0.9, capsize=0, **style)
    else:
        every = max(1, len(x) // 8)
        axes.plot(x, line.y, markevery=(line.run % every, every), clip_on=False, **style)


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
