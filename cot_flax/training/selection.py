"""Which checkpoints of a run are the best by its validation metrics, and since when none is better.

All of it lies in the metadata of each checkpoint, so that a run that was killed goes on with what
its newest checkpoint knew. A value as good as the best one is no gain: the earlier step stays.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cot_flax.errors import UserError

Goal = Literal["max", "min"]
Goals = Mapping[str, Goal]
"""Whether more or less is better, by the names of metrics."""


@dataclass(frozen=True)
class Best:
    """The best value of a metric so far, and the step that had it."""

    goal: Goal
    step: int
    value: float


@dataclass(frozen=True)
class Selection:
    """What the evaluations of a run have shown.

    Attributes:
        best: by the names of the metrics that choose, in their order; those without a finite value
            so far are absent.
        evaluated: the step of the last evaluation; 0 before the first.
        without_gain: evaluations since the first of the metrics had its best value.
    """

    best: Mapping[str, Best] = field(default_factory=dict)
    evaluated: int = 0
    without_gain: int = 0

    @property
    def steps(self) -> set[int]:
        """Those of the best checkpoints."""
        return {best.step for best in self.best.values()}

    def after(self, step: int, metrics: Mapping[str, float], goals: Goals) -> "Selection":
        """What is known after one more evaluation."""
        best = {name: self._better(name, step, metrics[name], goal) for name, goal in goals.items()}
        found = {name: one for name, one in best.items() if one is not None}
        first = found.get(next(iter(goals), ""))
        gained = first is not None and first.step == step
        return Selection(found, step, 0 if gained else self.without_gain + 1)

    def stops(self, patience: int | None) -> bool:
        """Whether there were so many evaluations without gain; None is never."""
        return patience is not None and self.without_gain >= patience

    @property
    def standstill(self) -> str:
        """How long the first metric has not gained, in words."""
        count = f"{self.without_gain} evaluations without gain"
        if not self.best:
            return f"{count}, none of them finite"
        name, best = next(iter(self.best.items()))
        return f"{count} of {name}, {best.value:.4g} at step {best.step:,}"

    def going_on(self, goals: Goals) -> "Selection":
        """Of a run that goes on, with other goals perhaps: what still holds."""
        kept = {name: b for name, b in self.best.items() if goals.get(name) == b.goal}
        same_first = next(iter(self.best), None) == next(iter(goals), None)
        return Selection(kept, self.evaluated, self.without_gain if same_first else 0)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> "Selection":
        if stored is None:
            return cls()
        best = {name: Best(**fields) for name, fields in stored["best"].items()}
        return cls(best, stored["evaluated"], stored["without_gain"])

    def _better(self, name: str, step: int, value: float, goal: Goal) -> Best | None:
        before = self.best.get(name)
        sign = 1 if goal == "max" else -1
        if math.isfinite(value) and (before is None or sign * value > sign * before.value):
            return Best(goal, step, float(value))
        return before


def check(names: Sequence[str], patience: int | None, period: int) -> None:
    """Raises UserError where BEST_METRICS or EARLY_STOPPING lacks what it needs.

    Args:
        patience: EARLY_STOPPING.
        period: EVAL_PERIOD.
    """
    if patience is not None and not names:
        raise UserError(
            f"EARLY_STOPPING {patience} without BEST_METRICS",
            "a metric that says what a gain is",
            "set BEST_METRICS",
        )
    if names and not period:
        raise UserError(
            f"BEST_METRICS {', '.join(names)} with EVAL_PERIOD 0, which evaluates at the end alone",
            "several evaluations to choose from",
            "set EVAL_PERIOD",
        )


def goals_of(names: Sequence[str], evaluators: Sequence[Any]) -> dict[str, Goal]:
    """The goals of the metrics by which a run keeps its best checkpoints.

    Args:
        names: BEST_METRICS.
        evaluators: those with `goals` and `split` (see `loop.Evaluator`) can choose.

    Raises:
        UserError: a metric that no evaluator measures or that two do, or one of a test split: what
            a test chooses it no longer tests.
    """
    known: dict[str, tuple[Goal, str]] = {}
    for evaluator in evaluators:
        for name, goal in getattr(evaluator, "goals", {}).items():
            if name in known:
                raise UserError(
                    f"two EVALUATORS that measure {name}",
                    "a name for each metric",
                    "set LossEvaluator.prefix of one of them, or drop one",
                )
            known[name] = goal, getattr(evaluator, "split", "")
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"BEST_METRICS {', '.join(unknown)}",
            f"some of {', '.join(known)}" if known else "metrics of EVALUATORS, of which none is",
            "correct BEST_METRICS, or add an evaluator",
        )
    tests = {name: known[name][1] for name in names if re.search(r"\btest", known[name][1])}
    if tests:
        listed = ", ".join(f"{name} of split {split}" for name, split in tests.items())
        raise UserError(
            f"BEST_METRICS {listed}",
            "metrics of held-out data that are no test",
            "evaluate another split in training, such as validation",
        )
    return {name: known[name][0] for name in names}
