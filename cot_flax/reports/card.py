"""The model card of an export: what the student was taught, how, and what it can do."""

import contextlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from cot_flax import hub, run_folder
from cot_flax.files import path_at
from cot_flax.text.prompts import FORMATS, Exemplar, build_input, is_few_shot
from cot_flax.text.templates import find_template
from cot_flax.text.wording import Wording

_PUBLIC = "gs://t5-data/"

_SETTINGS = {
    "data (SeqIO task or mixture)": ("data", "mixture"),
    "longest example (tokens)": ("data", "lengths"),
    "batch size": ("training", "batch_size"),
    "optimizer": ("training", "optimizer"),
    "schedule": ("training", "schedule"),
    "peak learning rate": ("training", "learning_rate"),
    "dropout": ("student", "config", "dropout_rate"),
    "LoRA rank (merged here)": ("student", "config", "lora", "rank"),
    "seed": ("training", "seed"),
}
"""What the card says of a run, and where that stands in run.json."""
_LICENCES = {"google/flan-t5-": "Apache-2.0", "google/t5-": "Apache-2.0", "gsm8k": "MIT"}
"""By how the name of a model or data set begins, as docs/data.md says."""
_LOCAL_PATH = re.compile(r"(?<!\S)[/~.][^\s,()]*/([^\s,()/]+)")
_TAILS = {
    "bucket": "the rest of the mass as one class",
    "ignore": "the rest of the mass left out",
    "renormalize": "the teacher's k renormalised",
}


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        name: of the model.
        parameters: how many.
        started_from: the checkpoint that the run began with, "" for random parameters.
        settings: label and value of what the run was set to; empty without a run.
        objective: a sentence; "" without a run.
        results: what results.json says of the exported checkpoint, an evaluation each.
        left_out: the steps of other evaluations, whose results are not this checkpoint's.
        teachers: kept chains by teacher, recipe and who scored, of the store that it learned from;
            empty where there was none or it is no longer there.
        datasets: the data sets of these chains.
        license: of this student, as whoever exports it says; "" where nobody does.
        prompt: the layout of those that the student was evaluated on, without anybody's words.
    """

    name: str
    parameters: int
    started_from: str
    settings: Mapping[str, object]
    objective: str
    results: Sequence[Mapping]
    left_out: Sequence[str]
    prompt: str
    teachers: Mapping[str, int]
    datasets: Sequence[str]
    license: str

    @property
    def example(self) -> str:
        """The prompt as a Python literal."""
        return repr(self.prompt)

    @property
    def base_model(self) -> str:
        """Where the run started, if that is a name on the hub."""
        is_path = Path(self.started_from).exists() or not hub.is_name(self.started_from)
        return "" if is_path else self.started_from

    @property
    def start(self) -> str:
        """Where the run started, for readers who have no use for a path on another machine."""
        if not self.started_from:
            return "random parameters"
        is_public = self.base_model or self.started_from.startswith(_PUBLIC)
        return (
            self.started_from
            if is_public
            else f"a checkpoint called {Path(self.started_from).name}"
        )

    @property
    def licences(self) -> list[tuple[str, str]]:
        """What stands behind the student, and under which licence as far as that is known."""
        unknown = "not recorded: look it up before you publish"
        teachers = {source.partition(" (")[0].partition(", scored")[0] for source in self.teachers}
        terms = "not recorded: its licence or its provider's terms hold for what it wrote"
        return [
            *([("this student", self.license)] if self.license else []),
            *(
                [(f"started from {self.base_model}", _licence(self.base_model, unknown))]
                if self.base_model
                else []
            ),
            *((f"teacher {name}", _licence(name, terms)) for name in sorted(teachers)),
            *((f"data set {name}", _licence(name, unknown)) for name in self.datasets),
        ]

    @property
    def knows_mathematics(self) -> bool:
        """Flan-T5's own training data held rationales of some of the usual test sets."""
        return "flan" in self.started_from.lower()


def facts(
    name: str, parameters: int, folder: Path | None, place: str = "", license: str = ""
) -> Facts:
    """Gathers what a model directory says about its run; little without one.

    Args:
        folder: the model directory.
        place: of the exported checkpoint; evaluations of another step are left out.
        license: of the student.

    Raises:
        UserError: malformed files of the run.
    """
    run = run_folder.read_facts(folder) if folder else {}
    step = run_folder.step_of(place)
    settings = {label: _value(run, path) for label, path in _SETTINGS.items()}
    store = _value(run, ("data", "store"))
    tally = _tally(store)
    known = {
        "teacher's chains": Path(store).name if store else None,
        "optimizer steps": _value(run, ("training", "steps")) if step is None else step,
    }
    evaluated = run_folder.evaluations(folder) if folder else []
    results = [run_folder.read_results(place) for place in evaluated]
    steps = [run_folder.step_of(found.get("checkpoint", "")) for found in results]
    is_shown = [step is None or of is None or of == step for of in steps]
    shown = list(itertools.compress(results, is_shown))
    return Facts(
        name=name,
        parameters=parameters,
        started_from=run.get("started_from", ""),
        settings={n: value for n, value in (settings | known).items() if value is not None}
        if run
        else {},
        objective=_objective(run["objective"]) if "objective" in run else "",
        results=shown,
        left_out=sorted({f"{of:,}" for of, ok in zip(steps, is_shown, strict=True) if not ok}),
        teachers=_teachers(tally),
        datasets=sorted(tally.get("datasets", {})),
        license=license,
        prompt=_layout([card for found in shown for card in found["cards"].values()]),
    )


def write(
    name: str, parameters: int, folder: Path | None, place: str = "", license: str = ""
) -> str:
    """The card of a model; arguments and errors as `facts`."""
    return render(facts(name, parameters, folder, place, license))


def _tally(store: str | None) -> Mapping:
    """The counts of a store; none where it is not there, which a card can do without."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads((path_at(store) / "manifest.json").read_text())["tally"] if store else {}
    return {}


def _teachers(tally: Mapping) -> dict[str, int]:
    """Kept chains by source, without paths of the machine that taught; stores of before have no
    sources.
    """
    sources = {name: fates.get("kept", 0) for name, fates in tally.get("sources", {}).items()}
    kept = {name: n for name, n in (sources or tally.get("teachers", {})).items() if n}
    return {_LOCAL_PATH.sub(r"\1", name): n for name, n in kept.items()}


def _licence(name: str, otherwise: str) -> str:
    return next((of for begin, of in _LICENCES.items() if name.startswith(begin)), otherwise)


def _layout(cards: Sequence[Mapping]) -> str:
    """A prompt in the first format that was evaluated, with names in place of the user's texts."""
    if not cards:
        return build_input("QUESTION", FORMATS[0])
    card = min(cards, key=lambda card: FORMATS.index(card["format"]))
    shots = range(1, 1 + card["shots"]) if is_few_shot(card["format"]) else ()
    exemplars = [Exemplar(f"QUESTION {i}", f"CHAIN {i}.", f"ANSWER {i}") for i in shots]
    # Results of before these were settings have neither.
    words = {name: card[name] for name in ("cue", "closing") if name in card}
    template = find_template(card.get("template", "t5"))
    instruction = "INSTRUCTION" * card.get("instructed", False)
    asked = ("QUESTION", card["format"], exemplars, template, Wording(**words), instruction)
    return build_input(*asked)


def render(facts: Facts) -> str:
    """Returns the card in Markdown with the hub's YAML header."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("card.md.jinja").render(facts=facts)


def _value(run: Mapping, path: Sequence[str]):
    """What stands at a path of names in run.json; None where one of them is missing or null."""
    value = run
    for name in path:
        value = (value or {}).get(name)
    return value


def _objective(objective: Mapping) -> str:
    weight = objective.get("kl_weight", 0.0)
    if not weight:
        return "token cross entropy"
    tail = _TAILS.get(objective["tail"], objective["tail"])
    temperature = objective["temperature"]
    kl = "KL from the teacher's top-k token distribution "
    kl += f"({tail}; temperature {temperature})"
    mixed = kl if weight == 1.0 else f"{weight} x {kl} + {1 - weight:g} x token cross entropy"
    return f"{mixed}; token cross entropy where the teacher gave none"
