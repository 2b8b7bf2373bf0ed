"""The model card of an export: what the student was taught, how, and what it can do."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.weights.opening import HUB_ID

_SETTINGS = {
    "MIXTURE_OR_TASK_NAME": "data (SeqIO task or mixture)",
    "TEACHER_STORE": "teacher's chains",
    "TASK_FEATURE_LENGTHS": "longest example (tokens)",
    "TRAIN_STEPS": "optimizer steps",
    "BATCH_SIZE": "batch size",
    "OPTIMIZER": "optimizer",
    "SCHEDULE": "schedule",
    "LEARNING_RATE": "peak learning rate",
    "DROPOUT_RATE": "dropout",
    "LORA_RANK": "LoRA rank (merged here)",
    "RANDOM_SEED": "seed",
}
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
        settings: label and value of what the run was bound to; empty without a run.
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
    macros = read_macros(folder / run_folder.CONFIG) if folder else {}
    has_results = folder is not None and any(
        (folder / sub / run_folder.RESULTS).is_file() for sub in run_folder.FOLDERS
    )
    predictions = run_folder.read_predictions(folder) if has_results else []
    return Facts(
        name=name,
        parameters=parameters,
        started_from=str(macros.get("INITIAL_CHECKPOINT_PATH") or ""),
        settings={label: macros[macro] for macro, label in _SETTINGS.items() if macros.get(macro)},
        objective=_objective(macros) if macros else "",
        results=run_folder.read_results(folder) if has_results else {},
        prompt=predictions[0]["prompt"] if predictions else "",
    )


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


def read_macros(path: Path) -> dict[str, object]:
    """The macros of a saved configuration; values that are no Python literal stay text.

    A file that is not there has none: a checkpoint may be of a run outside the command line.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}", "a gin file", "export from the whole run") from error
    found = re.findall(r"^([A-Z][A-Z0-9_]*) = (?:\\\n\s+)?(.+)$", text, re.MULTILINE)
    return {name: _value(value) for name, value in found}


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return re.sub(r"^@(?:\w+\.)*(\w+)(?:\(\))?$", r"\1", text)


def _objective(macros) -> str:
    weight = macros.get("KL_WEIGHT", 0.0)
    if not weight:
        return "token cross entropy on the chains"
    tail = _TAILS.get(str(macros.get("TAIL", "bucket")), macros.get("TAIL"))
    kl = f"KL from the teacher's top-k token distribution ({tail}"
    kl += f"; temperature {macros['KL_TEMPERATURE']})" if "KL_TEMPERATURE" in macros else ")"
    return kl if weight == 1.0 else f"{weight} x {kl} + {1 - weight:g} x token cross entropy"
