"""What is measured in the middle of a run: functions of a student with its parameters."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import jax

from cot_flax.data.batches import TaskBatches
from cot_flax.data.mixtures import Tasks, task_names
from cot_flax.evaluation.evaluate import (
    Decoding,
    check_golds,
    predict,
    read_examples,
)
from cot_flax.evaluation.summary import summarize
from cot_flax.objectives.losses import Objective
from cot_flax.students.student import Student
from cot_flax.training import sharding, step
from cot_flax.training.selection import Goal, Goals


@dataclass(frozen=True)
class AccuracyEvaluator:
    """The accuracy on the first `max_examples` of a split.

    Raises:
        UserError: gold answers that cannot be read: found before the run begins, not in its middle.
    """

    mixture_or_task_name: Tasks
    split: str = "validation"
    max_examples: int = 100
    decoding: Decoding = Decoding()  # noqa: RUF009 (frozen)

    def __post_init__(self):
        examples = {
            task: read_examples(task, self.split, self.max_examples)
            for task in task_names(self.mixture_or_task_name)
        }
        check_golds(examples, self.decoding.mode)

    @property
    def goals(self) -> Goals:
        """What a checkpoint may be chosen by."""
        found: dict[str, Goal] = {}
        for task in task_names(self.mixture_or_task_name):
            found[f"{task}/accuracy"] = "max"
            found[f"{task}/parse_failure_rate"] = "min"
        return found

    def __call__(self, student: Student, params: dict) -> dict[str, float]:
        metrics = {}
        for task in task_names(self.mixture_or_task_name):
            rows = predict(student, params, task, self.split, self.decoding, self.max_examples)
            summary = summarize(rows)
            metrics[f"{task}/accuracy"] = summary["accuracy"]
            metrics[f"{task}/parse_failure_rate"] = summary["parse_failure_rate"]
        return metrics


@dataclass(frozen=True)
class LossEvaluator:
    """The objective and its companions on the first `batches` of held-out data.

    Data without a teacher's rows are measured by cross entropy alone. The mesh is that of the
    trainer's context.

    Attributes:
        objective: the run's own, so that a run with KL sees its held-out KL.
        prefix: of the names of its metrics, such as "svamp/" where another one measures too.
    """

    data: TaskBatches
    batches: int = 20
    objective: Objective = Objective()  # noqa: RUF009 (frozen)
    prefix: str = ""

    @property
    def split(self) -> str:
        return self.data.split

    @property
    def goals(self) -> Goals:
        """What a checkpoint may be chosen by."""
        names: dict[str, Goal] = {"loss": "min", "cross_entropy": "min", "token_accuracy": "max"}
        if self.data.has_teacher and self.objective.uses_teacher:
            names["kl"] = "min"
        return {f"{self.prefix}{name}": goal for name, goal in names.items()}

    def __call__(self, student: Student, params: dict) -> dict[str, float]:
        objective = self.objective.without_white_box()  # that teacher is the trainer's alone
        if not self.data.has_teacher:
            objective = objective.without_teacher()
        mesh = jax.sharding.get_mesh()
        rows = sharding.Rows(mesh, self.data.batch_size, self.data.shards)
        sums = _loss_sums(student, objective, mesh)
        total: dict[str, float] = {}
        for batch in itertools.islice(
            self.data.batches(student.layout, 0, rows.shards), self.batches
        ):
            for name, value in jax.device_get(sums(params, rows.put(batch))).items():
                total[name] = total.get(name, 0.0) + float(value)
        found = step.summarize(total)
        return {f"{self.prefix}{name}": value for name, value in found.items()}


@lru_cache(maxsize=8)
def _loss_sums(student: Student, objective: Objective, mesh: jax.sharding.Mesh) -> Callable:
    """The compiled function of a run: a new one would compile again at every evaluation."""
    return jax.jit(
        lambda params, batch: step.loss_sums(student, objective, params, batch)[1],
        out_shardings=sharding.replicated(mesh),
    )
