"""A few questions with every run's answer, chosen by a rule and not by a person."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cot_flax.reports.comparison import tables
from cot_flax.run_folder import Run


@dataclass(frozen=True)
class Example:
    """One question and one row of predictions.jsonl a run; None where a run has none."""

    id: str
    question: str
    gold: str
    steps: int | None
    rows: list[dict | None]


def examples(runs: Sequence[Run], group: str = tables.REASONING, count: int = 6) -> list[Example]:
    """Up to `count` questions of every data set of a group, each run in its best format there.

    Of several samples a question the first one is shown. Questions are those that all runs with
    predictions have answered.
    """
    found = []
    for dataset in tables.datasets([run.results for run in runs], group):
        rows = [_rows(run, tables.best_task(run.results, dataset)) for run in runs]
        present = [by_id for by_id in rows if by_id]
        common = set.intersection(*map(set, present)) if present else set()
        marks = {
            id: (present[0][id].get("steps"), tuple(by_id[id]["right"] for by_id in present))
            for id in common
        }
        found += [_example(id, [by_id.get(id) for by_id in rows]) for id in pick(marks, count)]
    return found


def pick(marks: Mapping[str, tuple[int | None, tuple]], count: int) -> list[str]:
    """Picks ids over all step counts and over as many patterns of right and wrong as there are.

    The longest questions come first in turn; within a step count ids are tried in the order of
    their hashes, and one whose pattern has not been shown yet goes before the others.

    Args:
        marks: by id, the step count and who was right.
        count: how many to pick.

    Returns:
        Ids in the order of their step counts.
    """
    order = sorted(marks, key=lambda id: hashlib.sha256(id.encode()).digest())
    levels = sorted({steps for steps, _ in marks.values()}, key=_level, reverse=True)
    levels = levels[:: -(-len(levels) // count)] if levels else []
    chosen: list[str] = []
    seen: set[tuple] = set()
    for steps in itertools.islice(itertools.cycle(levels), count):
        left = [id for id in order if marks[id][0] == steps and id not in chosen]
        if left:
            chosen.append(min(left, key=lambda id: marks[id][1] in seen))
            seen.add(marks[chosen[-1]][1])
    return sorted(chosen, key=lambda id: _level(marks[id][0]))


def _rows(run: Run, task: str | None) -> dict[str, dict]:
    return {r["id"]: r for r in run.predictions if r["task"] == task and not r["sample"]}


def _example(id: str, rows: list[dict | None]) -> Example:
    first = next(row for row in rows if row)
    return Example(id, first["question"], first["gold"], first.get("steps"), rows)


def _level(steps: int | None) -> int:
    return -1 if steps is None else steps
