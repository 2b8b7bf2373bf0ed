"""From predictions to an accuracy with its uncertainty: the core of metrics and reports."""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

from cot_flax.errors import UserError
from cot_flax.text.answers import answers_match, base_kind, extract_answer, whole_text
from cot_flax.text.formulas import Undecided


class Score(NamedTuple):
    """One scored prediction.

    Attributes:
        right: whether it is.
        extracted: the answer that was found in it; None: none.
        undecided: whether comparing it with the gold answer was ended without a verdict, as may
            happen with formulas. It is not right then, and has to be counted and named.
    """

    right: bool
    extracted: str | None
    undecided: bool = False


def score(
    predictions: Sequence[str], golds: Sequence[str], *, kind: str | Sequence[str], mode: str
) -> list[Score]:
    """Scores each prediction against the gold answer of the same place.

    A prediction of kind `text` that is the gold answer and nothing else is right in mode
    `flexible`, though without a marker a long text is no answer.

    Args:
        predictions: generated texts.
        golds: gold answers, bare or at the end of their solutions.
        kind: as in `answers.extract_answer`, of all answers or of each.
        mode: as in `answers.extract_answer`.

    Raises:
        UserError: unequal lengths, unknown `kind` or `mode`, or a gold without an answer of that
            kind.
    """
    if len(predictions) != len(golds):
        raise UserError(
            f"{len(predictions)} predictions for {len(golds)} gold answers",
            "one each",
            "predict every item once, in the order of the data",
        )
    kinds = [kind] * len(golds) if isinstance(kind, str) else kind
    items = zip(predictions, golds, kinds, strict=True)
    return [_score(text, gold, own, mode) for text, gold, own in items]


def _score(text: str, gold: str, kind: str, mode: str) -> Score:
    answer = extract_answer(text, kind=kind, mode=mode)
    if answer is None and base_kind(kind) == "text" and mode == "flexible":
        answer = whole_text(text, gold, kind)
    try:
        return Score(answers_match(answer, gold, kind=kind, mode=mode), answer)
    except Undecided:
        return Score(False, answer, undecided=True)


def summarize(records: Iterable[tuple[bool, str | None, bool]]) -> dict[str, float]:
    """Sums up scores: shares between 0 and 1 and a count.

    Returns:
        `accuracy`; `accuracy_low` and `accuracy_high`, its 95% Wilson interval;
        `parse_failure_rate`, the share of predictions in which no answer was found (they count as
        wrong); `count`; where there are some, `undecided`, the number of those without a verdict.

    Raises:
        UserError: no records.
    """
    scores = [Score(*record) for record in records]
    right = sum(score.right for score in scores)
    low, high = wilson_interval(right, len(scores))
    undecided = sum(score.undecided for score in scores)
    return {
        "accuracy": right / len(scores),
        "accuracy_low": low,
        "accuracy_high": high,
        "parse_failure_rate": sum(score.extracted is None for score in scores) / len(scores),
        "count": len(scores),
        **({"undecided": undecided} if undecided else {}),
    }


def wilson_interval(right: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion: the p with |right/total - p| <= z
    sqrt(p(1-p)/total).

    Unlike the normal interval it stays within [0, 1] and keeps its width at 0 and `total` right,
    where a small student on a hard test often is (E. B. Wilson, JASA 22, 1927).

    Raises:
        UserError: not 0 <= right <= total, or total is 0: an accuracy of nothing is not 0.
    """
    if not 0 <= right <= total or total == 0:
        raise UserError(
            f"{right} right of {total}",
            "0 <= right <= total and at least one item",
            "score at least one prediction",
        )
    share = right / total
    weight = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / weight
    half = z / weight * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The share lies within; at 0 and 1 rounding could leave it outside by a bit.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
