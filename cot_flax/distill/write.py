"""What a one-line distillation writes: a scenario's folder of questions, and its recipe."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_flax.distill.defaults import Training
from cot_flax.distill.questions import Item, Splits
from cot_flax.distill.student import Student
from cot_flax.text.answers import GoldKind

SHOWN = 4
"""Worked examples that the teacher sees: paper [1] shows its students so many."""
CHAINS = 8
"""Chains a question: D of paper [3]."""
_SELECTED_BY = "scenario_zero_shot_cot"
_EVALUATOR = (
    "evaluators.AccuracyEvaluator:",
    "  mixture_or_task_name = %EVAL_TASKS",
    "  decoding = @evaluation.Decoding()",
)
_CLOSE = 'End with a line "The answer is X."'


@dataclass(frozen=True)
class Teacher:
    """Who is asked, and how.

    Attributes:
        shown: worked examples in a prompt; without any it is asked as paper [3] did.
        top_logprobs: that its server gives; 0 for none.
    """

    model: str
    url: str | None
    chat: bool
    shown: int
    top_logprobs: int
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None


def exemplars(items: Iterable[Item]) -> list[Item]:
    """Worked examples to show: of each answer one before a second of any, in their order."""
    worked = [item for item in items if item.rationale]
    seen: dict[str, int] = {}
    turns = []
    for place, item in enumerate(worked):
        label = item.answer.casefold()
        turns.append((seen.get(label, 0), place))
        seen[label] = seen.get(label, 0) + 1
    return [worked[place] for _, place in sorted(turns)[:SHOWN]]


def instruction(answers: GoldKind) -> str:
    """What the teacher is told."""
    what = {
        "labels": f"Read the text and decide which of these it is: {', '.join(answers.labels)}.",
        "yes_no": "Answer the question with yes or no.",
        "choice": "Choose the right answer by its letter.",
        "number": "Answer the question with a number.",
    }.get(answers.kind, "Answer the question.")
    return f"{what} First reason step by step, in a few sentences. {_CLOSE}\n"


def scenario_files(name: str, splits: Splits, answers: GoldKind, shown: int) -> dict[str, str]:
    """The files of the scenario's folder, by name; `chains.jsonl` are those of the training split.

    Args:
        name: of the data set.
        shown: worked examples for the teacher.
    """
    settings: dict[str, Any] = {"dataset": name, "samples": CHAINS}
    if answers.labels:
        settings["labels"] = list(answers.labels)
    else:
        settings["answer_kind"] = answers.kind
    files = {
        "instruction.md": instruction(answers),
        "settings.json": json.dumps(settings, ensure_ascii=False, indent=1) + "\n",
        "inputs.jsonl": _lines(map(_labelled, splits.train)),
        "validation.jsonl": _lines(map(_labelled, splits.validation)),
        "test.jsonl": _lines(map(_labelled, splits.test)),
    }
    if chosen := exemplars(splits.train)[:shown]:
        files["exemplars.jsonl"] = _lines(
            _labelled(item) | {"reasoning": item.rationale} for item in chosen
        )
    worked = [item for item in splits.train if item.rationale]
    if worked:
        files["chains.jsonl"] = _lines(
            {"id": item.id, "question": item.question, "rationale": rationale}
            | {"answer": item.answer, "dataset": name}
            for item in worked
            for rationale in item.rationales
        )
    return files


def _labelled(item: Item) -> dict[str, str]:
    return {"id": item.id, "input": item.question, "answer": item.answer}


def _lines(records: Iterable[Mapping]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def recipe(
    *,
    command: str,
    out: str,
    scenario: str,
    dataset: str,
    student: Student,
    teacher: Teacher | None,
    samples: str | None,
    soft: bool,
    training: Training,
    lengths: Mapping[str, int],
    notes: Sequence[str],
    seed: int,
) -> str:
    """The text of a recipe's file.

    Args:
        command: what wrote it.
        out: the recipe's folder.
        scenario: the folder with the questions.
        teacher: None where chains are there.
        samples: the file of these chains.
        soft: the chains have log-probabilities.
        lengths: TASK_FEATURE_LENGTHS.
        notes: lines for the header: what was found and chosen, and why.
    """
    stages = ("teach",) * bool(teacher) + ("prepare", "train", "evaluate", "report", "export")
    chosen = training.eval_period > 0
    lines = [
        f"# {dataset}, taught in one line. Change what is to be changed, then:",
        f"#   cot-flax distill --gin_file={out}/recipe.gin",
        f"# It was written by: {command}",
        *(f"# - {' '.join(note.split())}" for note in notes),
    ]
    lines += [
        "from __gin__ import dynamic_registration",
        *(["from cot_flax.evaluation import evaluate as evaluation"] if chosen else []),
        *(["from cot_flax.evaluation import evaluators"] if chosen else []),
        "from cot_flax.tasks import scenario",
        "from cot_flax.training import optimizers",
        "",
        "include 'runs/recipe.gin'",
        student.model,
        *(["include 'models/lora.gin'"] if training.lora else []),
        f"include 'objectives/{'topk_kl' if soft else 'cross_entropy'}.gin'",
        "",
    ]
    macros: dict[str, Any] = {"OUT": out, "STAGES": stages, "RANDOM_SEED": seed}
    macros |= {"SCENARIO": scenario, "T5_VOCABULARY_FILE": student.vocabulary}
    if teacher:
        macros |= _teaching(teacher, scenario, dataset)
    else:
        macros["SAMPLES_FILE"] = samples
    macros |= {
        "STORE_TASK": "scenario_teacher_zero_shot_cot",
        "MIXTURE_OR_TASK_NAME": {
            f"scenario_teacher_{format}": round(rate, 3) for format, rate in training.rates.items()
        },
        "INITIAL_CHECKPOINT_PATH": student.start,
        "TASK_FEATURE_LENGTHS": dict(lengths),
        "EPOCHS": training.epochs,
        "BATCH_SIZE": training.batch_size,
        "LEARNING_RATE": training.learning_rate,
        "TEST_TASKS": ("scenario_zero_shot_cot", "scenario_zero_shot_answer"),
        "MAX_DECODE_LENGTH": lengths["targets"],
    }
    if chosen:
        macros |= {"EVAL_PERIOD": training.eval_period, "EVAL_TASKS": _SELECTED_BY}
        macros |= {"BEST_METRICS": (f"{_SELECTED_BY}/accuracy",)}
    lines += [f"{name} = {value!r}" for name, value in macros.items()]
    lines += [
        "OPTIMIZER = @optimizers.adamw()",
        "SCHEDULE = @optimizers.constant()",
        *(["EVALUATORS = (@evaluators.AccuracyEvaluator(),)"] if chosen else []),
        "",
        *(_EVALUATOR if chosen else []),
        "scenario.teacher_store.directory = %TEACHER_STORE",
    ]
    return "\n".join(lines) + "\n"


def _teaching(teacher: Teacher, scenario: str, dataset: str) -> dict[str, Any]:
    macros: dict[str, Any] = {"TEACHER_MODEL": teacher.model, "TEACHER_URL": teacher.url}
    macros |= {"TEACH_CHAT": teacher.chat, "TEACH_TOP_LOGPROBS": teacher.top_logprobs}
    prices = {
        "TEACHER_PRICE_IN": teacher.price_in,
        "TEACHER_PRICE_OUT": teacher.price_out,
        "TEACHER_MAX_COST": teacher.max_cost,
    }
    macros |= {name: value for name, value in prices.items() if value is not None}
    if not teacher.shown:
        macros |= {
            "RECIPE": "ho2022",
            "QUESTIONS_FILE": f"{scenario}/inputs.jsonl",
            "DATASET": dataset,
            "TEACH_SAMPLES": CHAINS,
            "TEACH_MAX_TOKENS": 256,
        }
    return macros
