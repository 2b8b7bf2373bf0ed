"""The demo: the same small student taught in four ways, measured and compared.

Everything goes through the same gin experiments and functions as a run from the command line.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import typer

from cot_flax import configuration, run_folder
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.samples import write_samples
from cot_flax.errors import UserError, missing_extra
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.reports import comparison, preparation
from cot_flax.store import layout
from cot_flax.store.prepare import prepare


@dataclass(frozen=True)
class Size:
    """How much of everything: stories, chains a story, training steps, test stories."""

    stories: int
    samples: int
    steps: int
    max_examples: int


FULL = Size(stories=6000, samples=2, steps=600, max_examples=400)
FAST = Size(stories=500, samples=2, steps=60, max_examples=40)
FORMATS = ("stories_zero_shot_cot", "stories_few_shot_cot", "stories_zero_shot_answer")
STUDENTS = {
    "answer only": "world_answer",
    "CoT, cross entropy": "world_cot_ce",
    "CoT, top-5 KL": "world_cot_kl",
    "few-shot + zero-shot mix, KL": "world_mix_kl",
}


def run(*, out: Path, seed: int, fast: bool) -> None:
    """Prepares the world, trains and evaluates all students, writes `out/report.html`.

    The same demo once more goes on where it stopped.

    Raises:
        UserError: `out` has a demo of another seed or size; the extra `report` is missing.
    """
    if find_spec("matplotlib") is None:  # or the report would miss it after all the training
        raise missing_extra(ModuleNotFoundError(name="matplotlib"))
    size = FAST if fast else FULL
    _refuse_another(out, size, seed)
    _say("1/3 The teacher writes chains; the right ones are kept and aligned")
    teacher_store = _prepare(out, size, seed)
    _say("2/3 Four students of one size, from the same random weights, for as many steps")
    runs = {}
    for label, experiment in STUDENTS.items():
        _say(f"    {label}")
        runs[label] = out / experiment
        macros = {
            "TRAIN_STEPS": size.steps,
            "EVAL_PERIOD": size.steps // 4 if size is FULL else size.steps,
            "TEACHER_STORE": str(teacher_store),
        }
        _train(experiment, runs[label], seed, macros)
    _say("3/3 Stories of held-out templates")
    for folder in runs.values():
        _evaluate(folder, seed, size)
    comparison.write(out / "report.html", runs, base="base")
    comparison.print_table(runs, base="base")
    typer.echo(f"\nreport: {out / 'report.html'}")


def _refuse_another(out: Path, size: Size, seed: int) -> None:
    """Raises UserError before anything of another demo in `out` is replaced."""
    for experiment in STUDENTS.values():
        begun = run_folder.read_facts(out / experiment).get("training", {})
        if begun and (begun.get("seed"), begun.get("steps")) != (seed, size.steps):
            raise UserError(
                f"{out} with a demo of seed {begun.get('seed')} and {begun.get('steps')} steps",
                f"a folder without one, or with one of seed {seed} and {size.steps} steps",
                "choose another --out, or delete that folder",
            )


def _prepare(out: Path, size: Size, seed: int) -> Path:
    samples = out / "samples.jsonl.gz"
    stories = make_stories(size.stories, split="train", seed=seed)
    write_samples(samples, make_samples(stories, samples=size.samples, seed=seed))
    from cot_flax.tasks.stories import VOCABULARY

    store, settings = str(out / "store"), Preparation()
    prepare([str(samples)], store, vocabulary=VOCABULARY, settings=settings, overwrite=True)
    preparation.write(out / "store", layout.read_manifest(store))
    return out / "store"


def _train(experiment: str, folder: Path, seed: int, macros: dict) -> None:
    macros |= {
        "MODEL_DIR": str(folder),
        "RANDOM_SEED": seed,
        "WORLD_SEED": seed,
        "WARMUP_STEPS": macros["TRAIN_STEPS"] // 6,
    }
    configuration.parse([f"experiments/{experiment}.gin"], _bindings(macros))
    configuration.train(layout.fingerprint)


def _evaluate(folder: Path, seed: int, size: Size) -> None:
    macros = {
        "CHECKPOINT_PATH": str(folder),
        "EVAL_OUTPUT_DIR": str(folder / "test"),
        "MIXTURE_OR_TASK_NAME": FORMATS,
        "MAX_EXAMPLES": size.max_examples,
        "DECODE_BATCH_SIZE": min(size.max_examples, 100),
        "WORLD_SEED": seed,
    }
    configuration.parse(["experiments/world_evaluate.gin"], _bindings(macros))
    configuration.call("evaluation.evaluate", overwrite=True)


def _bindings(macros: dict) -> list[str]:
    return [f"{name}={value!r}" for name, value in macros.items()]


def _say(text: str) -> None:
    typer.echo(text, err=True)
