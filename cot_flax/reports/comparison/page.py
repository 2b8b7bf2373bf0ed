"""The HTML page of a report, made of page.html.jinja and style.css."""

import itertools
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

import cot_flax
from cot_flax.reports.comparison import cells, examples, figures, paired, tables
from cot_flax.reports.comparison.cells import Cell
from cot_flax.reports.pages import template
from cot_flax.run_folder import Run, base_of, shared_notes

TEMPLATE = Path(__file__).parent / "page.html.jinja"
BLUE, RED = "0, 114, 178", "213, 94, 0"


def render(runs: Sequence[Run], path: str | Path) -> str:
    """The page as text; `path` is where it will lie, for the command in its footer."""
    base = base_of(runs)
    columns = tables.compare([run.results for run in runs], base)
    groups = itertools.groupby(column.group for column in columns)
    named = (cells.percent, cells.signed, cells.interval, cells.signed_interval, shade)
    return template(TEMPLATE, named).render(
        runs=runs,
        notes=shared_notes(runs),
        looks=figures.looks(runs),
        base=base,
        columns=columns,
        groups=[(name, len(list(part))) for name, part in groups],
        differences=paired.differences(runs),
        paired=paired,
        figures=_drawn(runs),
        width=width(columns),
        examples=examples.examples(runs),
        general=examples.examples(runs, tables.GENERAL, 2),
        titles=tables.FORMAT_TITLES,
        decodings=decodings(runs),
        command=command(runs, path),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=cot_flax.__version__,
    )


def width(columns: Sequence[tables.Column]) -> int:
    """About how many pixels the main table needs; on what is narrower it scrolls."""
    return 90 + 98 * len(columns)


def shade(cell: Cell | None, kind: str) -> str:
    """A cell's light background: blue grows with the value; a change below 0 is red."""
    if cell is None:
        return "transparent"
    change = kind == "change"
    strength = min(1.0, abs(cell.value) * (2 if change else 1))
    return f"rgba({RED if change and cell.value < 0 else BLUE}, {0.22 * strength:.3f})"


def decodings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The different evaluation settings in words, with its runs' labels; without unset ones."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for results in (run.results, *run.further) if run.results else ():
            settings = {name: results.get(name) for name in ("split", "max_examples")}
            settings |= results.get("decoding", {})
            given = {name: value for name, value in settings.items() if value is not None}
            words = ", ".join(f"{name} {value}" for name, value in given.items())
            labels = found.setdefault(words, [])
            labels += [run.label] if run.label not in labels else []
    return list(found.items())


def command(runs: Sequence[Run], path: str | Path) -> str:
    """What makes the page again, with folders' names as labels."""
    folders = [str(run.folder) for run in runs]
    base = [part for run in runs if run.is_base for part in ("--base", str(run.folder))]
    return shlex.join(["cot-flax", "report", *folders, *base, "--out", str(path)])


def _drawn(runs: Sequence[Run]) -> dict[str, list[tuple[figures.Panel, Markup]]]:
    looks, labels = figures.looks(runs), [run.label for run in runs]
    groups = {
        "steps": figures.steps_panels(runs),
        "loss": figures.loss_panels(runs),
        "accuracy": figures.accuracy_panels(runs),
    }
    return {
        name: [(panel, Markup(figures.draw(panel, looks, labels))) for panel in group]
        for name, group in groups.items()
    }
