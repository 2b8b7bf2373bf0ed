"""Progress on standard error: a bar on a terminal, elsewhere a line every half minute."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from cot_flax.teacher.costs import Totals

LINE_SECONDS = 30.0


@contextlib.contextmanager
def progress(total: int, totals: Totals) -> Iterator[Callable[[], None]]:
    """Shows done/total, tokens, cost and the time left; yields what counts one more as done."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    printed = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(_spent(totals), total=total)
        (task,) = bar.tasks

        def advance() -> None:
            nonlocal printed
            bar.update(task.id, advance=1, description=_spent(totals))
            if not console.is_terminal and time.monotonic() > printed + LINE_SECONDS:
                printed = time.monotonic()
                _print_line(task)

        yield advance
    if not console.is_terminal:
        _print_line(task)


def _spent(totals: Totals) -> str:
    tokens = f"{totals.prompt_tokens:,} tokens in, {totals.completion_tokens:,} out"
    return tokens if totals.cost is None else f"{tokens}, ${totals.cost:,.2f}"


def _print_line(task: Task) -> None:
    left = "" if task.time_remaining is None else f", {timedelta(seconds=task.time_remaining)} left"
    print(f"{task.completed}/{task.total}, {task.description}{left}", file=sys.stderr, flush=True)
