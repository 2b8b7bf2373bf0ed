"""Tables of results for the command line, readable at 80 columns."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.reports.comparison import paired, tables
from cot_flax.reports.comparison.cells import (
    Cell,
    from_summary,
    interval,
    percent,
    pool,
    signed,
    signed_interval,
)
from cot_flax.reports.comparison.tables import Column
from cot_flax.reports.terminal import heading, new_table
from cot_flax.text.prompts import is_cot

LABEL_WIDTH = 16
"""Longer labels are folded."""
GAP = 3
"""Characters between columns."""


def print_results(results: dict, console: Console | None = None) -> None:
    """Prints one results.json: a row a task, questions of few and of many steps apart.

    Args:
        results: what `evaluate.evaluate` returns.
        console: where to; by default standard output.
    """
    tasks = results["tasks"]
    console = console or Console()
    heading(console, f"Right answers in %, split {results['split']}")
    table = _table("task")
    labelled = any("majority" in summary for summary in tasks.values())
    calculated = any(
        summary.get("accuracy_with_calculator", summary["accuracy"]) != summary["accuracy"]
        for summary in tasks.values()
    )
    names = ["all", *(["calcu-\nlated"] if calculated else []), "95%\ninterval", "n", "unparsed"]
    names += ["majority"] if labelled else []
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    halves = _halves(tasks)
    for half in halves:
        header = tables.steps_title(half[0], half[-1]).replace(" ", "\n")
        table.add_column(header, justify="right", no_wrap=True)
    notes = ["majority: right for a student that always gives the most frequent label"]
    notes = notes if labelled else []
    notes += ["calculated: with the equations of each chain put right"] if calculated else []
    for task, summary in tasks.items():
        title = " ".join(tables.task_title(results["cards"][task]))
        table.add_row(Text(title), *_result_row(summary, halves, labelled, calculated))
        cell = from_summary(summary)
        if cell.is_off_format:
            share = f"{percent(cell.off_format)}% of the outputs"
            wanted = "no chain" if is_cot(results["cards"][task]["format"]) else "a chain"
            notes.append(f"{title}: {share} are {wanted}")
        if cell.unknown:
            notes.append(f"{title}: {cell.unknown:,} prompts with unknown characters")
        notes += [f"{title}: {words}" for words in _beside(summary)]
    table.caption = "\n".join(notes)
    console.print(table)


def print_table(
    runs: Mapping[str, Path], console: Console | None = None, base: str | None = None
) -> None:
    """Prints the comparison of runs: a row a run, the best of a column in bold.

    Args:
        runs: as in `write`.
        console: where to; by default standard output.
        base: as in `write`.

    Raises:
        UserError: as `write`.
    """
    found = run_folder.read_runs(runs, base)
    console = console or Console()
    columns = tables.compare([run.results for run in found], run_folder.base_of(found))
    labels = max(len(run.label) for run in found)
    console.print(
        "Right answers in %, below them the 95% interval; bold is the best of a column.\n"
    )
    for title, part in parts(columns, console.width - min(labels, LABEL_WIDTH) - GAP):
        heading(console, title)
        table = _table("run")
        for column in part:
            table.add_column(_header(column), justify="right", no_wrap=True)
        if part[0].kind == "many steps":
            table.caption = f"{part[0].subtitle}: in the format that a run does best over all"
        for i, run in enumerate(found):
            table.add_row(Text(run.label), *(_cell(column, column.cells[i]) for column in part))
        console.print(table)
        console.print()
    for labels, verb, sentence in run_folder.shared_notes(found):
        console.print(f"{labels} {verb} {sentence}.", markup=False, highlight=False)


def print_differences(
    runs: Mapping[str, Path], console: Console | None = None, base: str | None = None
) -> None:
    """Prints each run against the base, or the first one, on the questions that both answered.

    Args:
        runs: as in `write`.
        console: where to; by default standard output.
        base: as in `write`.

    Raises:
        UserError: as `write`, or no task whose questions two runs share.
    """
    found = run_folder.read_runs(runs, base)
    differences = paired.differences(found)
    if not any(difference.found for difference in differences):
        reasons = [f"{' '.join(one.title)}: {one.why_not}" for one in differences]
        raise UserError(
            f"no task to compare in {' and '.join(map(str, runs.values()))}"
            + "".join(f" ({reason})" for reason in reasons),
            "predictions of the same questions by each",
            "evaluate the runs with the same suite, split and settings",
        )
    console = console or Console()
    against = found[differences[0].against].label
    console.print(f"Differences from {against} on the same questions, in points.\n", markup=False)
    for title, group in itertools.groupby(differences, key=lambda one: one.title):
        heading(console, ", ".join(title))
        table = _table("run")
        for name in paired.TITLES:
            table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
        why_not = []
        for one in group:
            label = found[one.run].label
            table.add_row(Text(label), *(paired.cells(one) if one.found else ()))
            why_not += [f"{label}: {one.why_not}"] if one.why_not else []
        console.print(table)
        for line in why_not:
            console.print(line, markup=False, highlight=False)
        console.print()
    for note in paired.NOTES:
        console.print(note, markup=False, highlight=False)


def parts(columns: Sequence[Column], width: int) -> list[tuple[str, list[Column]]]:
    """The main table as tables of at most `width` characters without their first column.

    One a reasoning data set and one of general ability; what does not fit is continued.
    """
    found: list[tuple[str, list[Column]]] = []
    for title, group in itertools.groupby(columns, key=_title):
        room = 0
        for column in group:
            needed = _width(column) + GAP
            if needed > room:
                again = bool(found) and found[-1][0].startswith(title)
                found.append((f"{title}, continued" if again else title, []))
                room = width
            found[-1][1].append(column)
            room -= needed
    return found


def _title(column: Column) -> str:
    reasoning = column.group == tables.REASONING
    return f"{column.group}, {column.title}" if reasoning else column.group


def _width(column: Column) -> int:
    texts = [Text(_header(column)), *(_cell(column, cell) for cell in column.cells)]
    return max(line.cell_len for text in texts for line in text.split())


def _table(first: str) -> Table:
    table = new_table()
    table.add_column(first, overflow="fold")
    return table


def _halves(tasks: Mapping[str, Mapping]) -> list[list[int]]:
    """The step counts that occur: the few, then the many; without an empty half."""
    numbers = sorted({int(n) for summary in tasks.values() for n in summary.get("by_steps", {})})
    few = [n for n in numbers if n < tables.MANY_STEPS]
    return [half for half in (few, numbers[len(few) :]) if half]


def _result_row(
    summary: Mapping, halves: list[list[int]], labelled: bool, calculated: bool
) -> list[str]:
    cell, by_steps = from_summary(summary), summary.get("by_steps", {})
    majority, after = (
        percent(summary[name]) if name in summary else "–"
        for name in ("majority", "accuracy_with_calculator")
    )
    pooled = [pool(by_steps[str(n)] for n in half if str(n) in by_steps) for half in halves]
    return [
        percent(cell.value),
        *([after] if calculated else []),
        interval(cell),
        str(cell.count),
        percent(cell.no_answer),
        *([majority] if labelled else []),
        *(percent(part.value) if part else "–" for part in pooled),
    ]


def _beside(summary: Mapping) -> Iterator[str]:
    """The other ways to read and to count, where they find something else."""
    if summary.get("mode_disagreement_rate"):
        strict, flexible = (percent(summary[f"{mode}_accuracy"]) for mode in ("strict", "flexible"))
        share = percent(summary["mode_disagreement_rate"])
        yield f"{strict} read strictly, {flexible} flexibly; {share}% are read differently"
    counted = []
    for name in ("maj", "pass"):
        if by_k := summary.get(f"{name}_at_k"):
            k = max(by_k, key=int)
            ends = (percent(by_k[k][f"accuracy_{end}"]) for end in ("low", "high"))
            counted.append(f"{name}@{k} {percent(by_k[k]['accuracy'])} ({'–'.join(ends)})")
    if counted:
        yield ", ".join(counted)


def _header(column: Column) -> str:
    words = column.title if column.is_general_task else column.subtitle
    if column.kind in ("mean", "change"):
        words = f"{column.subtitle} {column.title}"
    return "\n".join(words.split(" ", 1))


def _cell(column: Column, cell: Cell | None) -> Text:
    if cell is None:
        return Text("–")
    change = column.kind == "change"
    value = Text(signed(cell.value) if change else percent(cell.value))
    if column.is_best(cell) and not change:
        value.stylize("bold")
    ends = signed_interval(cell) if change else interval(cell)
    return Text("\n").join([value, Text(ends, style="dim")])
