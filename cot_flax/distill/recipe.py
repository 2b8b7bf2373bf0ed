"""A recipe: one gin file for all stages of a distillation, and what each stage reads of it.

A recipe includes `runs/recipe.gin`, whose header has its form. It is read here as text alone
(`configuration.draft`): nothing that it names is imported.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cot_flax.configuration import checks, draft
from cot_flax.configuration.draft import Binding, Draft, Macro
from cot_flax.errors import UserError

StageName = Literal["teach", "prepare", "train", "evaluate", "report", "export"]
STAGES: tuple[StageName, ...] = ("teach", "prepare", "train", "evaluate", "report", "export")

# By stage: the macros that it must have, in the order in which a user would give them.
NEEDED: dict[str, tuple[str, ...]] = {
    "teach": ("SAMPLES_FILE",),
    "prepare": ("SAMPLES_FILE", "STORE_TASK", "TEACHER_STORE"),
    "train": ("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS"),
    "evaluate": ("CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", "TEST_TASKS"),
    "report": (),
    "export": ("CHECKPOINT_PATH",),
}
QUESTIONS = ("QUESTIONS_FILE", "DATASET", "RECIPE")
"""What `teach` needs, but for a scenario: that is SCENARIO without RECIPE."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe says of the whole way.

    Attributes:
        out: the folder of all that is made.
        stages: what is run, in this order.
        evaluate_base: the checkpoint that training starts from is evaluated, too.
        initial_recipe: the gin file of a recipe whose student this one starts from.
        export_format: of the exported student.
    """

    out: str
    stages: Sequence[StageName] = STAGES
    evaluate_base: bool = True
    initial_recipe: str | None = None
    export_format: Literal["huggingface", "t5x"] = "huggingface"

    @property
    def student(self) -> str:
        return f"{self.out}/student"

    @property
    def base(self) -> str:
        """Where the evaluation of the student before training stands."""
        return f"{self.out}/base"

    @property
    def report(self) -> str:
        return f"{self.out}/report.html"

    @property
    def export(self) -> str:
        return f"{self.out}/export"


def is_recipe(read: Draft) -> bool:
    """Whether the files hold a recipe, and not one stage alone."""
    return {"OUT", "STAGES"} <= read.macros.keys()


def value(read: Draft, name: str, default=None):
    """What a macro is in the end; the default where it has no value."""
    found = read.macros.get(name)
    _, resolved = read.resolved(found.value) if found else (None, None)
    return default if resolved is None or isinstance(resolved, Macro) else resolved


def recipe_of(read: Draft) -> Recipe:
    """The recipe in a draft.

    Raises:
        UserError: OUT has no value, or a stage is unknown or stands before one that it reads.
    """
    out, stages = value(read, "OUT"), value(read, "STAGES", STAGES)
    if not out:
        raise checks.NoValue("OUT")
    order = [STAGES.index(stage) for stage in stages if stage in STAGES]
    if len(order) < len(stages) or order != sorted(set(order)) or not stages:
        raise UserError(
            f"STAGES = {tuple(stages)}", f"some of {STAGES}, in this order", "correct STAGES"
        )
    return Recipe(
        out=os.fspath(out).rstrip("/"),
        stages=tuple(stages),
        evaluate_base=value(read, "EVALUATE_BASE", True),
        initial_recipe=value(read, "INITIAL_RECIPE"),
        export_format=value(read, "EXPORT_FORMAT", "huggingface"),
    )


def check_folder(out: str) -> None:
    """Raises UserError where OUT is no folder in which a recipe can run."""
    if "://" in out:
        raise UserError(
            f"OUT = {out!r}",
            "a folder of this machine, where a lock keeps two runs apart",
            f"choose one, and copy what it leaves (gcloud storage cp -r FOLDER {out})",
        )


def run_of(read: Draft) -> str:
    """The model directory of the student that is evaluated: without the metric that chose it."""
    chosen, model_dir = (str(value(read, name)) for name in ("CHECKPOINT_PATH", "MODEL_DIR"))
    return model_dir if chosen.startswith(f"{model_dir}/") else chosen


def read_recipe(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    after: tuple[str, ...] = (),
) -> Draft:
    """Reads gin files and bindings with what the recipe leaves to OUT filled in.

    Args:
        after: folders of the recipes that start from this one.

    Raises:
        UserError: as of `configuration.parse`; the files hold no recipe, or one that starts from
            itself.
    """
    read = draft.read(files, search_paths)
    for binding in bindings:
        checks.bind(read, binding)
    if not is_recipe(read):
        raise UserError(
            f"{' '.join(files)} without STAGES",
            "a recipe, which includes runs/recipe.gin",
            "see cot-flax experiments for those under recipes/",
        )
    for name, path in places(read, search_paths, after).items():
        read.bind(Binding(name, path))
    return read


def places(
    read: Draft, search_paths: Sequence[str] = (), after: tuple[str, ...] = ()
) -> dict[str, str]:
    """Values of the macros that a recipe leaves to OUT."""
    recipe = recipe_of(read)
    if recipe.out in after:
        raise UserError(
            f"INITIAL_RECIPE that comes back to {recipe.out}",
            "a recipe with another OUT",
            "correct INITIAL_RECIPE or OUT",
        )
    student = value(read, "MODEL_DIR", recipe.student)
    found = {"EVAL_OUTPUT_DIR": f"{student}/test"}
    if "teach" in recipe.stages:
        found["SAMPLES_FILE"] = f"{recipe.out}/samples.jsonl.gz"
    if "prepare" in recipe.stages:
        found["TEACHER_STORE"] = f"{recipe.out}/store"
    if "train" in recipe.stages:
        chosen = "".join(f"/best/{metric}" for metric in value(read, "BEST_METRICS", ())[:1])
        found |= {"MODEL_DIR": student, "CHECKPOINT_PATH": f"{student}{chosen}"}
    if recipe.initial_recipe:
        first = read_recipe([recipe.initial_recipe], (), search_paths, (*after, recipe.out))
        found["INITIAL_CHECKPOINT_PATH"] = value(first, "MODEL_DIR")
    return {name: path for name, path in found.items() if value(read, name) is None}


def of_stage(
    stage: str, files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()
) -> tuple[list[str], tuple[str, ...]] | None:
    """What a stage's own verb needs beside the files: bindings and the macros that must be given.

    None where the files hold no recipe.
    """
    read = draft.read(files, search_paths)
    for binding in bindings:
        checks.bind(read, binding)
    if not is_recipe(read):
        return None
    more = [f"{name}={path!r}" for name, path in places(read, search_paths).items()]
    return more, needed(read, stage)


def needed(read: Draft, stage: str) -> tuple[str, ...]:
    """The macros that must have a value before a stage runs."""
    of_scenario = value(read, "SCENARIO") and not value(read, "RECIPE")
    asks = stage == "teach" and not of_scenario
    counted = {"TRAIN_STEPS"} if value(read, "EPOCHS") else set()
    wanted = NEEDED.get(stage, ()) + (QUESTIONS if asks else ())
    return tuple(name for name in wanted if name not in counted)
