"""The model card of an export: what the student was taught, how, and what it can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from cot_flax import run_folder
from cot_flax.weights.opening import HUB_ID

_SETTINGS = {
    "data (SeqIO task or mixture)": ("data", "mixture"),
    "teacher's chains": ("data", "store"),
    "longest example (tokens)": ("data", "lengths"),
    "optimizer steps": ("training", "steps"),
    "batch size": ("training", "batch_size"),
    "optimizer": ("training", "optimizer"),
    "schedule": ("training", "schedule"),
    "peak learning rate": ("training", "learning_rate"),
    "dropout": ("student", "config", "dropout_rate"),
    "LoRA rank (merged here)": ("student", "config", "lora", "rank"),
    "seed": ("training", "seed"),
}
"""What the card says of a run, and where that stands in run.json."""
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
        results: results.json; empty without an evaluation.
        prompt: one that the student was evaluated on; "" without predictions.
    """

    name: str
    parameters: int
    started_from: str
    settings: Mapping[str, object]
    objective: str
    results: Mapping
    prompt: str

    @property
    def example(self) -> str:
        """A prompt as a Python literal."""
        return repr(self.prompt or "Q: QUESTION Let's think step by step")

    @property
    def base_model(self) -> str:
        """Where the run started, if that is a name on the hub."""
        is_name = HUB_ID.fullmatch(self.started_from) and not Path(self.started_from).exists()
        return self.started_from if is_name else ""

    @property
    def knows_mathematics(self) -> bool:
        """Flan-T5's own training data held rationales of some of the usual test sets."""
        return "flan" in self.started_from.lower()


def facts(name: str, parameters: int, folder: Path | None) -> Facts:
    """Gathers what a model directory says about its run; little without one.

    Raises:
        UserError: malformed files of the run.
    """
    run = run_folder.read_facts(folder) if folder else {}
    settings = {label: _value(run, path) for label, path in _SETTINGS.items()}
    has_results = folder is not None and any(
        (folder / sub / run_folder.RESULTS).is_file() for sub in run_folder.FOLDERS
    )
    predictions = run_folder.read_predictions(folder) if has_results else []
    return Facts(
        name=name,
        parameters=parameters,
        started_from=run.get("started_from", ""),
        settings={label: value for label, value in settings.items() if value is not None},
        objective=_objective(run["objective"]) if "objective" in run else "",
        results=run_folder.read_results(folder) if has_results else {},
        prompt=predictions[0]["prompt"] if predictions else "",
    )


def write(name: str, parameters: int, folder: Path | None) -> str:
    """The card of a model; arguments and errors as `facts`."""
    return render(facts(name, parameters, folder))


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
        return "token cross entropy on the chains"
    tail = _TAILS.get(objective["tail"], objective["tail"])
    temperature = objective["temperature"]
    kl = "KL from the teacher's top-k token distribution "
    kl += f"({tail}; temperature {temperature})"
    return kl if weight == 1.0 else f"{weight} x {kl} + {1 - weight:g} x token cross entropy"
