"""What training and evaluation leave in a model directory, read back without a model."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from cot_flax.errors import UserError
from cot_flax.files import path_at, write_whole

CONFIG, FACTS, METRICS = "config.gin", "run.json", "metrics.jsonl"
PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
"""The folders of the steps, and of TensorBoard's files."""
BEST = "best"
"""`MODEL_DIR/best/METRIC` names the step that a validation metric chose; it is no folder."""
FOLDERS = (".", "test")
"""Where an evaluation lies as a rule, seen from the model directory; any folder in it may."""


@dataclass(frozen=True)
class Run:
    """One trained and evaluated student.

    Attributes:
        label: its name in tables and plots.
        folder: its model directory.
        results: results.json with the tasks and cards of all its evaluations; empty where there is
            none.
        predictions: the rows of predictions.jsonl, of these tasks.
        metrics: the rows of metrics.jsonl.
        missing: one sentence for each part that was not there or is not shown, and for each
            evaluation on questions that the training data give away.
        is_base: whether the other runs are measured against this one.
        further: results.json of the evaluations after the first, of which tasks are shown.
        chosen: a sentence for each metric by which the run kept its best checkpoint.
    """

    label: str
    folder: Path
    results: dict
    predictions: list[dict]
    metrics: list[dict]
    missing: tuple[str, ...] = ()
    is_base: bool = False
    further: tuple[dict, ...] = ()
    chosen: tuple[str, ...] = ()

    @property
    def tasks(self) -> dict[str, dict]:
        """The summaries by task; empty where the run was not evaluated."""
        return self.results.get("tasks", {})

    @property
    def cards(self) -> dict[str, dict]:
        """The task cards by task, as JSON; empty where the run was not evaluated."""
        return self.results.get("cards", {})

    @property
    def last_step(self) -> int | None:
        """The last step in metrics.jsonl."""
        return max((row["step"] for row in self.metrics), default=None)


@dataclass(frozen=True)
class Leaks:
    """How many questions of a held-out split the training questions give away.

    Attributes:
        questions: of the split.
        same: that stand among the training questions but for case, white space and punctuation.
        template: that do when numbers and names are masked, the same ones among them.
        overlap: of whose 8-grams 70% stand in training questions; of 8 words or more alone.
    """

    questions: int = 0
    same: int = 0
    template: int = 0
    overlap: int = 0

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return any((self.same, self.template, self.overlap))

    def __str__(self):
        return (
            f"of {self.questions:,} questions {self.same:,} stand in the training data, "
            f"{self.template:,} with numbers and names masked, {self.overlap:,} by 70% of their "
            "8-grams"
        )


def write_facts(model_dir: str | os.PathLike, facts: Mapping) -> None:
    """Writes run.json: what is known of a run when it starts, as data.

    Args:
        model_dir: the model directory, on this machine or in a bucket; it is made.
        facts: JSON values by name, of which a reader must expect any to be absent:

            - `id`: of the run, for the services that follow it.
            - `student`: `family`, `special_ids`, `config` (its fields), `parameters` (how many,
              adapters included) and `vocabulary` (its fingerprint).
            - `started_from`: the checkpoint; "" for random parameters.
            - `taught_by`: the checkpoint of the teacher of a white-box objective.
            - `data`: `mixture` (or task), `lengths` (tokens, by feature), `rates` (shares, by
              task), `split`, `pack`, `shuffle`, `seed`, `cached`, `by_task` (of micro-batches
              of one task each: how many, of how many rows), `settings` (what is bound to
              functions of tasks, such as the shots of prompts), `store` (of the teacher's chains),
              `stores` (the fingerprints of several, by data set), `prompts` (by task its `dataset`,
              `format` and the fields of `text.prompting.Prompting`),
              `leaks` (by `<dataset>/<split>`, how many of a held-out split's `questions` the
              training questions give away: the `same`, a `template`, an `overlap`),
              `fingerprint` (SHA-256 of the checksums of the store's files),
              `shards`.
            - `objective`: the fields of `objectives.losses.Objective`.
            - `training`: `optimizer` and `schedule` (names), `settings` (what is bound to them),
              `learning_rate` (the peak), `steps`, `batch_size`, `microbatches`,
              `equal_microbatches`, `mesh` (devices by
              axis, and `fsdp`), `seed`; where checkpoints are chosen `best_metrics` ("max" or "min"
              by name, the first one for `early_stopping`).
            - `stopped`: of a run that ended early, `step` and `reason`.
            - `versions`: of `cot_flax`, `jax` and `python`, with which it began.
            - `resumed`: of a run that went on with other values, which the sections above have: for
              each time `after` (steps) and `changes` (the old and the new value, by path).
    """
    write_whole(path_at(model_dir) / FACTS, json.dumps(facts, indent=1) + "\n")


def write_config(model_dir: str | os.PathLike, text: str, step: int) -> None:
    """Keeps a run's gin configuration: config.gin; config-STEP.gin where it goes on with another.

    Args:
        step: after which the run goes on; 0 begins it.
    """
    first = path_at(model_dir) / CONFIG
    if step and first.exists():
        if first.read_text() == text:
            return
        first = first.with_name(f"{first.stem}-{step}{first.suffix}")
    write_whole(first, text)


def clear(model_dir: str | os.PathLike) -> None:
    """Deletes what training and evaluation left in a model directory, and nothing else."""
    folder = path_at(model_dir)
    for name in (CHECKPOINTS, TENSORBOARD):
        if (folder / name).is_dir():
            epath.Path(folder / name).rmtree()
    others = [place for place in evaluations(folder) if not (place / FACTS).is_file()]  # no runs
    places = dict.fromkeys([*(folder / sub for sub in FOLDERS), *others])
    evaluated = [place / name for place in places for name in (RESULTS, PREDICTIONS)]
    configs = folder.glob(f"{Path(CONFIG).stem}*{Path(CONFIG).suffix}") if folder.is_dir() else ()
    for path in (*evaluated, *configs, folder / FACTS, folder / METRICS):
        path.unlink(missing_ok=True)


def read_facts(model_dir: str | os.PathLike) -> dict:
    """Reads run.json; empty where there is none.

    Raises:
        UserError: it is not a JSON object.
    """
    path = path_at(model_dir) / FACTS
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text())
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise UserError(str(path), "one JSON object", "restore the file, or delete it")
    return facts


def leaks_of(checkpoint: str) -> dict[str, Leaks]:
    """What run.json says of leaks, for a checkpoint of ours; empty for others and without it."""
    if step_of(checkpoint) is None:
        return {}
    return leaks_in(read_facts(checkpoint.rpartition(f"/{CHECKPOINTS}/")[0]))


def leaks_in(facts: Mapping) -> dict[str, Leaks]:
    """What facts say of leaks, by `<dataset>/<split>`."""
    return {name: Leaks(**n) for name, n in facts.get("data", {}).get("leaks", {}).items()}


def read_runs(runs: Mapping[str, Path], base: str | None = None) -> list[Run]:
    """Reads runs by label; what one of them lacks stands in its `missing`.

    Args:
        runs: model directories by label.
        base: the label of the one that the others are measured against.

    Raises:
        UserError: no runs, a folder that is not there, a malformed file, or no results at all.
    """
    found = [_read_run(label, path_at(folder), label == base) for label, folder in runs.items()]
    if not any(run.tasks for run in found):
        folders = ", ".join(map(str, runs.values())) or "no folders"
        raise _no_results(folders)
    return found


def evaluations(model_dir: str | os.PathLike) -> list[Path]:
    """The folders with a results.json: a model directory, `test` in it, then its other folders."""
    folder = path_at(model_dir)
    others = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
    places = dict.fromkeys([*(folder / sub for sub in FOLDERS), *others])
    return [place for place in places if (place / RESULTS).is_file()]


def read_results(folder: Path) -> dict:
    """Reads the results.json of an evaluation.

    Raises:
        UserError: it is not what `cot-flax evaluate` writes, or lacks a task's card.
    """
    path = folder / RESULTS
    results = _json(path.read_text(), str(path))
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
        raise UserError(
            f"{path} without tasks",
            f"the {RESULTS} of cot-flax evaluate",
            "evaluate the run again",
        )
    if not results["tasks"].keys() <= results.get("cards", {}).keys():
        raise UserError(
            f"results without cards at {path}", "those of this version", "evaluate the run again"
        )
    return results


def read_predictions(folder: Path) -> list[dict]:
    """Reads the predictions.jsonl of an evaluation; an empty list if it is not there."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return []
    with path.open() as file:
        return [_json(line, f"{path}, line {i}") for i, line in enumerate(file, 1)]


def step_of(checkpoint: str) -> int | None:
    """The step of a checkpoint of ours, from its place; None for one of another kind."""
    folder, _, step = checkpoint.rpartition("/")
    return int(step) if step.isdigit() and folder.endswith(CHECKPOINTS) else None


def read_metrics(folder: str | os.PathLike) -> list[dict]:
    """Reads metrics.jsonl, which may not be there; of a step that stands twice the later stays.

    Raises:
        UserError: a malformed line.
    """
    path = path_at(folder) / METRICS
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return list({(row["step"], row["kind"]): row for row in rows}.values())
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(
            f"a malformed line in {path} ({error})",
            "one JSON object a line, with step and kind",
            "delete the line; a run that was killed may have left half of one",
        ) from error


def shared_notes(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """What is to be said of runs, `chosen` and `missing`: their labels, "has" or "have", what."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for sentence in dict.fromkeys((*run.chosen, *run.missing)):
            found.setdefault(sentence, []).append(run.label)
    return [
        (", ".join(labels), "has" if len(labels) == 1 else "have", sentence)
        for sentence, labels in found.items()
    ]


def base_of(runs: Sequence[Run]) -> int | None:
    """The place of the base run, if there is one."""
    return next((i for i, run in enumerate(runs) if run.is_base), None)


def _read_run(label: str, folder: Path, is_base: bool) -> Run:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "a model directory", "correct the path")
    places = evaluations(folder)
    first, *others = map(read_results, places) if places else [{}]
    shown, predictions, notes = [first], _predictions(places[:1], first), _unfinished(first)
    notes += first.get("leaks", [])
    tasks, cards = dict(first.get("tasks", {})), dict(first.get("cards", {}))
    for place, results in zip(places[1:], others, strict=True):
        new = {task: summary for task, summary in results["tasks"].items() if task not in tasks}
        if results.get("checkpoint") != first.get("checkpoint"):
            notes.append(f"results of another checkpoint in {place.name}, which are not shown")
            continue
        if len(new) < len(results["tasks"]):
            count = len(results["tasks"]) - len(new)
            notes.append(f"{count} tasks in {place.name} that it has before, which are not shown")
        if new:
            tasks |= new
            cards |= {task: results["cards"][task] for task in new}
            predictions += _predictions([place], {"tasks": new})
            shown.append(results)
            notes += _unfinished(results) + results.get("leaks", [])
    metrics = read_metrics(folder)
    lacks = {
        f"no {RESULTS}, so it has no accuracies here (run cot-flax evaluate)": places,
        f"no {PREDICTIONS}, so it has no sample chains": predictions or not places,
        f"no {METRICS}, so it has no learning curves": metrics,
    }
    missing = [sentence for sentence, present in lacks.items() if not present]
    return Run(
        label,
        folder,
        {**first, "tasks": tasks, "cards": cards} if places else {},
        predictions,
        metrics,
        (*missing, *notes),
        is_base,
        tuple(shown[1:]),
        _chosen(folder, metrics, cards),
    )


def _chosen(folder: Path, metrics: Sequence[Mapping], cards: Mapping) -> tuple[str, ...]:
    """Which checkpoint is best by each metric that chose: the first of equals, as in training."""
    sentences = []
    for name, goal in read_facts(folder).get("training", {}).get("best_metrics", {}).items():
        sign = 1 if goal == "max" else -1
        rows = [
            row
            for row in metrics
            if row["kind"] == "eval" and math.isfinite(row.get(name, math.nan))
        ]
        if rows:
            best = max(rows, key=lambda row: sign * row[name])
            role = cards.get(name.rpartition("/")[0], {}).get("role")
            sentences.append(
                f"its best {name}{f' ({role})' if role else ''}, {best[name]:.4g}, at step "
                f"{best['step']:,}: {folder}/{BEST}/{name}"
            )
    return tuple(sentences)


def _predictions(places: Sequence[Path], results: Mapping) -> list[dict]:
    rows = (row for place in places for row in read_predictions(place))
    return [row for row in rows if row.get("task") in results["tasks"]]


def _unfinished(results: Mapping) -> list[str]:
    left = results.get("unfinished")
    return [f"an evaluation that did not end, without {', '.join(left)}"] if left else []


def _json(text: str, place: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: {error}", "JSON", "evaluate the run again") from error


def _no_results(where: str) -> UserError:
    return UserError(
        f"no {RESULTS} in {where}",
        f"one there or in its subfolder {FOLDERS[1]}",
        "run cot-flax evaluate with EVAL_OUTPUT_DIR there first",
    )
