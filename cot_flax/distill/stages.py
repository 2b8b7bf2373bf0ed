"""The stages of a recipe: what each reads and leaves, and by what one sees that it is done.

A stage is done where `stages.json` in the recipe's folder has it with the settings that the recipe
has now, and what it read and what it left are still what they were then, by content.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cot_flax import run_folder
from cot_flax.configuration.draft import Draft
from cot_flax.distill.recipe import Recipe, read_recipe, recipe_of, run_of, value
from cot_flax.files import path_at, write_whole

STATE = "stages.json"
BASE = "base"
"""The step that evaluates the checkpoint from which training starts."""
_MANIFEST, _COMPLETED = "manifest.json", "COMPLETED"  # of a store
_LARGE = 2**26  # bytes; a larger file is known by size and time, for hashing it takes seconds

# By the module that has a parameter, from the narrowest on: the steps that depend on it.
_TASKS = ("prepare", "train", BASE, "evaluate")
_READERS = {
    "cot_flax.teacher": ("teach",),
    "cot_flax.chains": ("prepare",),
    "cot_flax.store": ("prepare",),
    "cot_flax.data.batches": ("train",),
    "cot_flax.evaluation.evaluate": (BASE, "evaluate"),
    "cot_flax.evaluation": ("train",),
    "cot_flax.training": ("train",),
    "cot_flax.objectives": ("train",),
    "cot_flax.students": ("train",),
    "cot_flax.weights": ("train",),
    "cot_flax.distill": (),
    "": _TASKS,  # tasks and their texts, ours and others'
}
# How fast and where a stage runs, not what comes of it; a name that ends in _ begins others.
_FREE = (
    *("TEACHER_URL", "TEACHER_KEY_VARIABLE", "TEACHER_TIMEOUT", "TEACHER_ATTEMPTS"),
    *("TEACHER_HEADERS", "TEACHER_PROBE", "TEACHER_JOURNAL", "TEACHER_CONCURRENCY"),
    *("TEACHER_RPM", "TEACHER_TPM", "TEACHER_PRICE_", "TEACHER_MAX_COST", "TEACHER_BATCH_"),
    *("TEACH_PER_REQUEST", "PREPARE_WORKERS", "BEAM_", "OVERWRITE", "ALLOW_PICKLE"),
    *("LOCAL_FILES_ONLY", "DATA_SHARDS", "MESH_", "FSDP", "LOG_PERIOD", "CHECKPOINT_PERIOD"),
    *("KEEP_CHECKPOINTS", "TRACKER", "DECODE_BATCH_SIZE", "trackers.Wandb.project"),
    *("MODEL_DIR", "CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", "TEACHER_STORE"),
)


@dataclass(frozen=True)
class Step:
    """One process of a run.

    Attributes:
        name: a stage, or BASE.
        command: the words behind `cot-flax`.
        settings: what it depends on, by macro or parameter, as gin writes it.
        reads: files and folders, by what they are called.
        leaves: likewise.
        total: training steps, questions or the like, where the recipe says; for a bar.
    """

    name: str
    command: tuple[str, ...]
    settings: Mapping[str, str]
    reads: Mapping[str, str]
    leaves: Mapping[str, str]
    total: int | None = None


@dataclass
class State:
    """What `stages.json` says of a recipe's folder.

    Attributes:
        flags: with which the recipe ran, as NAME=VALUE.
        steps: by name, `settings`, the fingerprints of what was read (`read`) and, of one that
            ended, of what it left (`left`), and its `seconds`.
        written: hashes of the recipe that a command wrote (`text`) and of it with its questions
            (`all`), whether that was a dry run (`is_draft`), and the `examples` of an epoch where
            every chain is kept.
    """

    flags: list[str] = field(default_factory=list)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, out: str | os.PathLike) -> "State":
        path = path_at(out) / STATE
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):  # none yet, or half of one: the stages look for themselves
            return cls()
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{name: found[name] for name in found if name in known})

    def write(self, out: str | os.PathLike) -> None:
        write_whole(path_at(out) / STATE, json.dumps(vars(self), indent=1) + "\n")

    def begin(self, step: Step) -> None:
        self.steps[step.name] = {"settings": dict(step.settings), "read": read_by(step)}

    def end(self, step: Step, seconds: float) -> None:
        self.steps[step.name] |= {"left": left_by(step), "seconds": round(seconds, 1)}

    def changes(self, step: Step) -> list[str]:
        """What the step was begun with and is not so now, in words; empty before its first run."""
        before = self.steps.get(step.name)
        if before is None:
            return []
        old, new = before["settings"], step.settings
        named = [
            f"{name} {old.get(name, 'unset')}, not {new.get(name, 'unset')}"
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ]
        now = read_by(step)
        return named + [
            f"another content of {name}"
            for name, content in before["read"].items()
            if content and now.get(name) and now[name] != content
        ]

    def is_done(self, step: Step) -> bool:
        before = self.steps.get(step.name, {})
        left = left_by(step)
        return all(left.values()) and before.get("left") == left and not self.changes(step)


def steps_of(
    read: Draft, files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()
) -> list[Step]:
    """The processes that a recipe runs, in order.

    Args:
        read: as `recipe.read_recipe` read it from the others.
    """
    recipe = recipe_of(read)
    gin = [f"--gin_file={file}" for file in files]
    gin += [f"--gin_search_paths={','.join(search_paths)}"] if search_paths else []
    gin += [f"--gin.{binding}" for binding in bindings]
    return [_step(name, read, recipe, gin) for name in _names(read, recipe)]


def _names(read: Draft, recipe: Recipe) -> Iterator[str]:
    for stage in recipe.stages:
        if stage == "evaluate" and recipe.evaluate_base and value(read, "INITIAL_CHECKPOINT_PATH"):
            yield BASE
        yield stage


def _step(name: str, read: Draft, recipe: Recipe, gin: Sequence[str]) -> Step:
    student, start = value(read, "CHECKPOINT_PATH"), value(read, "INITIAL_CHECKPOINT_PATH")
    run = run_of(read)
    results = value(read, "EVAL_OUTPUT_DIR")
    has_base = BASE in _names(read, recipe)
    bases = [recipe.base] if has_base else []
    settings = settings_of(read, name)
    total = None
    match name:
        case "teach":
            words, leaves = ("teach", *gin), {"samples": value(read, "SAMPLES_FILE")}
        case "prepare":
            words, leaves = ("prepare", *gin), {"store": value(read, "TEACHER_STORE")}
        case "train":
            words, leaves = ("train", *gin), {"student": value(read, "MODEL_DIR")}
            steps = value(read, "TRAIN_STEPS")
            total = steps if isinstance(steps, int) else None
        case "base":
            places = f"--gin.CHECKPOINT_PATH={start}", f"--gin.EVAL_OUTPUT_DIR={recipe.base}"
            words, leaves = ("evaluate", *gin, *places), {"results": recipe.base}
        case "evaluate":
            words, leaves = ("evaluate", *gin), {"results": results}
        case "report":
            priced = ("--base", recipe.base) if has_base else ()
            words = ("report", *bases, run, *priced, "--out", recipe.report)
            leaves = {"report": recipe.report}
        case _:
            form = recipe.export_format
            settings = {"EXPORT_FORMAT": repr(form)}
            words = ("export", "--checkpoint", student, "--format", form, "--out", recipe.export)
            leaves = {"export": recipe.export}
    reads = {
        "prepare": {"the samples": value(read, "SAMPLES_FILE")},
        "train": {"the store": value(read, "TEACHER_STORE"), "INITIAL_CHECKPOINT_PATH": start},
        BASE: {"INITIAL_CHECKPOINT_PATH": start},
        "evaluate": {"the student": run},
        "report": {"the results": results, "the base's results": recipe.base if has_base else None},
        "export": {"the student": run},
    }.get(name, {})
    found = {key: path for key, path in reads.items() if isinstance(path, str)}
    found |= _files_in(settings, {*found.values(), *leaves.values()})
    # A folder that moves stays what it is.
    inside = {name: text.replace(f"'{recipe.out}/", "'OUT/") for name, text in settings.items()}
    return Step(name, words, inside, found, leaves, total)


class Report(NamedTuple):
    """What `report` is given for a recipe: model directories, the base's, and where to write."""

    runs: tuple[str, ...]
    base: str | None
    out: str


def report_of(files: Sequence[str]) -> Report:
    """The report of a recipe."""
    read = read_recipe(files)
    recipe, student = recipe_of(read), run_of(read)
    base = recipe.base if BASE in _names(read, recipe) else None
    return Report((*([base] if base else ()), student), base, recipe.report)


def settings_of(read: Draft, step: str) -> dict[str, str]:
    """What a step depends on, by macro or parameter, without what only says where and how fast."""
    found = {}
    for (scope, module, owner, parameter), binding in read.parameters.items():
        if step not in _readers(module):
            continue
        holder, bound = read.resolved(binding.value)
        short = f"{module.rpartition('.')[2]}.{owner}.{parameter}"
        name = holder or (f"{scope}/{short}" if scope else short)
        if not is_free(name):
            found[name] = repr(bound)
    return found


def _readers(module: str) -> Sequence[str]:
    known = (name for name in _READERS if f"{module}.".startswith(f"{name}.") or not name)
    return _READERS[max(known, key=len)]


def is_free(name: str) -> bool:
    """Whether a macro or parameter says only how fast and where a stage runs."""
    return any(name == free or (free.endswith("_") and name.startswith(free)) for free in _FREE)


def _files_in(settings: Mapping[str, str], known: set[str]) -> dict[str, str]:
    """Files and folders of this machine that settings name, by the setting."""
    found = {}
    for name, text in settings.items():
        for i, path in enumerate(re.findall(r"'([^']+)'", text)):
            if path not in known and _is_here(path):
                found[f"{name}[{i}]" if i else name] = path
    return found


def _is_here(path: str) -> bool:
    looks = "/" in path or "." in path  # a name of a task may be that of a folder, too
    return looks and "\n" not in path and len(path) < 1024 and Path(path).expanduser().exists()


def read_by(step: Step) -> dict[str, str]:
    """Fingerprints of what a step reads; "" of what is not there, such as a name of the hub."""
    return {name: fingerprint(path) for name, path in step.reads.items()}


def left_by(step: Step) -> dict[str, str]:
    """Fingerprints of what a step leaves when it ends; "" of what is not there or not whole."""
    return {name: fingerprint(path) for name, path in step.leaves.items()}


def fingerprint(path: str) -> str:
    """Of the content of a file, a store, a run, an evaluation or another folder.

    "" where there is nothing, or a stage is not at its end there.
    """
    place = path_at(path)
    if not place.exists():
        return ""
    if place.is_file():
        return _of_file(place)
    if (place / run_folder.CHECKPOINTS).is_dir():
        return _of_run(place)
    if (place / _MANIFEST).is_file():
        files = json.loads((place / _MANIFEST).read_text()).get("files", {})
        whole = (place / _COMPLETED).exists() and all((place / name).exists() for name in files)
        return _hash(json.dumps(files, sort_keys=True)) if whole else ""
    if (place / run_folder.RESULTS).is_file():
        results = run_folder.read_results(place)
        return "" if results.get("unfinished") else _of_file(place / run_folder.RESULTS)
    files = [file for file in sorted(place.rglob("*")) if file.is_file()]
    listed = "\n".join(f"{file.relative_to(place)} {_of_file(file)}" for file in files)
    return _hash(listed) if files else ""


def _of_file(path: Path) -> str:
    about = path.stat()
    if about.st_size > _LARGE:
        return f"{about.st_size}@{about.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_run(place: Path) -> str:
    """The run and its last step, of one that has done all its steps or stopped early."""
    facts = run_folder.read_facts(place)
    steps = [
        int(step.name) for step in (place / run_folder.CHECKPOINTS).iterdir() if step.name.isdigit()
    ]
    wanted = facts.get("training", {}).get("steps")
    wanted = facts.get("stopped", {}).get("step", wanted)
    ended = bool(steps) and wanted is not None and max(steps) >= wanted
    return f"{facts.get('id', '')}@{max(steps)}" if ended else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
