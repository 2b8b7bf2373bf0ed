"""What an evaluation leaves in its folder, and what it says meanwhile."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, make_folder, new_file, path_at, work_path, write_whole
from cot_flax.run_folder import PREDICTIONS, RESULTS

UNFINISHED = "predictions.unfinished.jsonl"
"""Predictions of the task that is being decoded, as they come."""
_SILENCE = 30.0  # seconds between two lines of one task, off a terminal


class Outputs:
    """The files of one evaluation.

    results.json says from the first prediction on what is evaluated, and what is `unfinished`.
    Predictions are appended to `predictions.unfinished.jsonl` as they come, and an evaluation with
    the same facts goes on behind them. When a task ends, predictions.jsonl and results.json hold
    all tasks so far, each whole or not at all. For a folder in a bucket, where
    files do not grow, the unfinished one lies in the cache on this machine.

    Args:
        output_dir: the folder; it is made.
        facts: what results.json says beside its tasks.
        tasks: all that will be evaluated.
        overwrite: replaces the results of another evaluation.

    Attributes:
        rows: predictions by task: at first those that an evaluation with the same facts left, all
            of them or, when it was killed, some.

    Raises:
        UserError: a folder that cannot be written to, or that holds results of another evaluation.
    """

    def __init__(
        self, output_dir: str, facts: Mapping, tasks: Sequence[str], *, overwrite: bool = False
    ):
        self._folder = make_folder(output_dir)
        self._facts, self._tasks = facts, tasks
        self._summaries: dict[str, dict] = {}
        self.rows: dict[str, list[dict]] = {}
        place = work_path(output_dir) if is_bucket(output_dir) else path_at(output_dir)
        self.unfinished = make_folder(place) / UNFINISHED
        self._begun: list[dict] = []
        self._is_written = not overwrite and self._go_on(output_dir)

    def begun(self, task: str) -> list[dict]:
        """The rows of a task that an evaluation with the same facts left when it was killed."""
        return [row for row in self._begun if row["task"] == task]

    @contextlib.contextmanager
    def growing(self, task: str):
        """A file for the rows of one task, behind those that are begun; on an error it stays, and
        its name is printed."""
        kept = self.begun(task)
        count = len(kept)
        write_whole(self.unfinished, "".join(map(_line, kept)))
        with self.unfinished.open("a", encoding="utf-8") as file:

            def add(rows: Sequence[dict]) -> None:
                nonlocal count
                if not self._is_written:
                    self._write_results()
                count += len(rows)
                file.writelines(map(_line, rows))
                file.flush()

            try:
                yield add
            except BaseException:
                if count:
                    print(f"{count} predictions are in {self.unfinished}", file=sys.stderr)
                else:
                    self.unfinished.unlink()
                raise

    def end_task(self, task: str, rows: list[dict], summary: dict) -> None:
        """Writes all tasks so far: predictions first, so that no result stands without them."""
        self.rows[task], self._summaries[task] = rows, summary
        done = itertools.chain.from_iterable(self.rows[task] for task in self._done())
        write_evaluation(self._folder, done, self.results())
        self.unfinished.unlink(missing_ok=True)

    def _write_results(self) -> None:
        write_whole(self._folder / RESULTS, json.dumps(self.results(), indent=2) + "\n")
        self._is_written = True

    def _whole(self) -> list[dict]:
        """The rows that are not finished, up to a line that a kill broke off."""
        rows: list[dict] = []
        if self.unfinished.is_file():
            with contextlib.suppress(ValueError), self.unfinished.open(encoding="utf-8") as file:
                rows.extend(map(json.loads, file))
        return rows

    def results(self) -> dict:
        """results.json as it is now."""
        return {
            **self._facts,
            "tasks": {task: self._summaries[task] for task in self._done()},
            "unfinished": [task for task in self._tasks if task not in self._summaries],
        }

    def _done(self) -> list[str]:
        return [task for task in self._tasks if task in self._summaries]

    def _go_on(self, output_dir: str) -> bool:
        """Takes what an evaluation with the same facts left; whether there is something."""
        path = self._folder / RESULTS
        if not path.is_file():
            return False
        before, begun = _read(path), self._whole()
        if not (before.get("tasks") or begun) and before.get("unfinished"):
            return False
        if changes := self._changes(before):
            raise _occupied(path, before, begun, changes, output_dir)
        if not before["unfinished"]:
            self._facts = {**self._facts, "date": before["date"]}
        self._begun, self._summaries = begun, before["tasks"]
        if not self._summaries:
            return True
        for line in (self._folder / PREDICTIONS).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            self.rows.setdefault(row["task"], []).append(row)
        return True

    def _changes(self, before: Mapping) -> list[str]:
        """What is not the same as in the results that lie there, by name."""
        wanted = json.loads(json.dumps({**self._facts, "date": None}))  # as JSON gives it back
        old, new = ({**facts, **facts.get("decoding", {})} for facts in (before, wanted))
        names = [n for n in new if n not in ("decoding", "date") and old.get(n) != new[n]]
        tasks = [*before.get("tasks", {}), *before.get("unfinished", [])]
        return names + (["tasks"] if set(tasks) != set(self._tasks) else [])


def write_evaluation(folder: Path, rows: Iterable[dict], results: Mapping) -> None:
    """Writes predictions.jsonl and results.json, each whole or not at all."""
    with new_file(folder / PREDICTIONS) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(map(_line, rows))
    write_whole(folder / RESULTS, json.dumps(results, indent=2) + "\n")


class Reporter:
    """Says how far an evaluation is: a bar a task on a terminal, elsewhere lines.

    Args:
        tasks: questions by task.
        quiet: says nothing; so do all processes but the first.
        console: by default standard error.
    """

    def __init__(self, tasks: Mapping[str, int], *, quiet: bool, console: Console | None = None):
        self._tasks = tasks
        self._console = console or Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[right]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self):
        self._bars.start()
        return self

    def __exit__(self, *error):
        self._bars.stop()

    def begin_task(self, task: str) -> None:
        """Starts the count of a task."""
        self._task, self._questions, self._right, self._scored = task, 0, 0, 0
        self._bar = self._bars.add_task(task, total=self._tasks[task], right="")
        self._said = time.monotonic()
        self._say()

    def add(self, rows: Sequence[dict]) -> None:
        """Counts the scored rows of one question."""
        self._questions += 1
        self._scored += len(rows)
        self._right += sum(row["right"] for row in rows)
        share = f"{self._right / self._scored:.1%} right"
        self._bars.update(self._bar, completed=self._questions, right=share)
        is_last = self._questions == self._tasks[self._task]
        if is_last or time.monotonic() - self._said >= _SILENCE:
            self._say(f", {share}")

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, markup=False)

    def _say(self, right: str = "") -> None:
        self._said = time.monotonic()
        if not self._console.is_terminal:
            place = f"{list(self._tasks).index(self._task) + 1} of {len(self._tasks)}"
            total = self._tasks[self._task]
            self.say(f"{self._task} ({place}): {self._questions} of {total} questions{right}")


def _read(path) -> dict:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _occupied(
    path: Path, before: Mapping, begun: Sequence, changes: Sequence[str], output_dir: str
) -> UserError:
    counts = [summary.get("count", 0) for summary in before.get("tasks", {}).values()]
    counts += [len(begun)] if begun else []
    return UserError(
        f"{path} with {sum(counts):,} predictions of {len(counts)} tasks, not of this evaluation "
        f"(others: {', '.join(changes)})",
        "a folder without results, or with those of the same evaluation",
        f"choose another EVAL_OUTPUT_DIR than {output_dir}, or pass --overwrite to replace them",
    )


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
