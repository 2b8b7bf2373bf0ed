"""Scores the predictions of an evaluation again, without a model and without its data."""

import os

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.evaluation import error_classes
from cot_flax.evaluation.outputs import write_evaluation
from cot_flax.evaluation.summary import summarize
from cot_flax.files import path_at
from cot_flax.text import scoring
from cot_flax.text.answers import MODES, described_kind


def rescore(folder: str | os.PathLike, mode: str | None = None) -> dict:
    """Reads all answers anew; predictions.jsonl and results.json are replaced.

    Texts and gold answers stay as they are, so that nothing is lost.

    Args:
        folder: of an evaluation, or a model directory with one.
        mode: as in `answers.extract_answer`; None keeps that of the evaluation.

    Returns:
        results.json.

    Raises:
        UserError: no results or predictions, several evaluations, an unknown mode, or a gold
            answer or an answer kind that cannot be read.
    """
    if mode not in (None, *MODES):
        raise UserError(f"extraction mode {mode!r}", f"one of {MODES}", "correct the name")
    place = _place(folder)
    results, rows = run_folder.read_results(place), run_folder.read_predictions(place)
    if not rows:
        remedy = "evaluate the run again"
        raise UserError(f"no predictions in {place}", run_folder.PREDICTIONS, remedy)
    mode = mode or results["decoding"]["mode"]
    tasks = {}
    for task, before in results["tasks"].items():
        for description in before.get("answer_kinds", ()):
            described_kind(description)
        own = [row for row in rows if row["task"] == task]
        _score(own, mode)
        kept = {name: before[name] for name in ("prompts_with_unknown",) if name in before}
        tasks[task] = summarize(own) | error_classes.summarize(own, mode=mode) | kept
    results |= {"tasks": tasks, "decoding": results["decoding"] | {"mode": mode}}
    write_evaluation(place, rows, results)
    return results


def _place(folder: str | os.PathLike):
    place = path_at(folder)
    if (place / run_folder.RESULTS).is_file():
        return place
    found = run_folder.evaluations(folder)
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        wanted = f"the folder of one evaluation, with its {run_folder.RESULTS}"
        raise UserError(f"{folder} with these: {names}", wanted, "name one of them")
    return found[0]


def _score(rows: list[dict], mode: str) -> None:
    texts, golds, kinds = ([row[name] for row in rows] for name in ("text", "gold", "answer_kind"))
    scores = scoring.score(texts, golds, kind=kinds, mode=mode)
    for row, score in zip(rows, scores, strict=True):
        row.pop("undecided", None)
        row |= {"extracted": score.extracted, "right": score.right}
        row |= {"undecided": True} if score.undecided else {}
