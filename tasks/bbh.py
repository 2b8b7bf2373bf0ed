"""BIG-Bench Hard (Suzgun et al. 2022): `bbh_<task>_<format>`, and all 27 tasks as `bbh`.

6,511 test questions of other abilities than a student is specialised on: on them is seen what that
cost. The few-shot prompts are the authors' own, three exemplars a task, without their first two
lines, which are a canary against training on them. `bbh_cot` are the 27 with chains behind these
prompts, `bbh_answer` those that show answers alone, and `bbh` both.
"""

import functools
import re

import gin
import seqio

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, bigbench_records, records_source
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.answers import BARE_WORDS, add_answer_kind, extract_answer
from cot_flax.text.prompts import Exemplar
from cot_flax.text.templates import Template

ORIGIN = "bbh/ and cot-prompts/ of github.com/suzgunmirac/BIG-Bench-Hard (MIT)"
CANARY = "canary GUID"
_CUE = "\nA: Let's think step by step."
_CLOSING = "So the answer is "
_FOLDERS = ("bbh", "tasks", ".")


def find_options(text: str) -> list[str]:
    """The choice of a text; three golds of BBH are words instead, such as `Monsters, Inc`."""
    if found := extract_answer(text, kind="choice", mode="flexible"):
        return [found]
    words = " ".join(text.split()).casefold().strip(" \"'.")
    return [words] if words and len(words.split()) <= BARE_WORDS else []


def find_truth(text: str) -> list[str]:
    """`true` and `false`."""
    return re.findall(r"\b(?:true|false)\b", text.casefold())


def find_validity(text: str) -> list[str]:
    """`valid` and `invalid`; what is not valid is invalid."""
    found = re.findall(r"\b(not valid|not invalid|invalid|valid)\b", text.casefold())
    return [{"not valid": "invalid", "not invalid": "valid"}.get(word, word) for word in found]


add_answer_kind("option", find_options)
add_answer_kind("truth", find_truth, bare=True)
add_answer_kind("validity", find_validity, bare=True)

_LAST_LETTERS = {
    "B": ("hyperbaton", "snarks"),
    "C": ("logical_deduction_three_objects", "tracking_shuffled_objects_three_objects"),
    "D": ("disambiguation_qa", "temporal_sequences"),
    "E": (
        "logical_deduction_five_objects",
        "penguins_in_a_table",
        "tracking_shuffled_objects_five_objects",
    ),
    "F": ("date_understanding", "salient_translation_error_detection"),
    "G": ("logical_deduction_seven_objects", "tracking_shuffled_objects_seven_objects"),
    "K": ("geometric_shapes",),
    "R": ("reasoning_about_colored_objects",),
}
KINDS = {
    **{task: f"choice A-{last}" for last, tasks in _LAST_LETTERS.items() for task in tasks},
    **dict.fromkeys(("movie_recommendation", "ruin_names"), "option"),
    **dict.fromkeys(("causal_judgement", "navigate", "sports_understanding"), "yes_no"),
    **dict.fromkeys(("multistep_arithmetic_two", "object_counting"), "number"),
    "web_of_lies": "yes_no",
    "boolean_expressions": "truth",
    "formal_fallacies": "validity",
    "dyck_languages": "text",
    "word_sorting": "text",
}
"""The 27 tasks, and how each one's answers are read."""

_LAYOUT = Template(
    cot_input="Q: {question}" + _CUE,
    answer_input="Q: {question}\nA:",
    cot_target="{rationale} So the answer is {answer}.",
    answer_target="{answer}",
    separator="\n\n",
)
LAYOUTS = dict.fromkeys(KINDS, _LAYOUT) | {
    # Here the authors' chains stand on the line of the cue.
    "sports_understanding": Template(**vars(_LAYOUT) | {"cot_gap": " "})
}


@gin.configurable(module="cot_flax.tasks.bbh")
def data(directory: str | None = None) -> str | None:
    """The folder of bbh/ and cot-prompts/; None reads questions of the hub, without prompts."""
    return directory


def _records(split, task):
    del split
    directory = data()
    if directory is not None:
        there = [path_at(directory) / folder for folder in _FOLDERS]
        found = next((path for path in there if (path / f"{task}.json").exists()), there[0])
        directory = str(found)
    hub = {"hub": "lukaemon/bbh", "patterns": (f"{task}/*.parquet",)}
    found = bigbench_records(directory, PublicFile((task,), ORIGIN, "BBH_DIRECTORY", **hub))
    return [{"id": f"bbh-{task}-{i}"} | record for i, record in enumerate(found)]


def prompt(task: str) -> str:
    """The authors' few-shot prompt of a task, without the canary and the line under it.

    Raises:
        UserError: no such file.
    """
    path = path_at(data() or ".") / "cot-prompts" / f"{task}.txt"
    if data() is None or not path.exists():
        raise UserError(f"no {path}", ORIGIN, "set BBH_DIRECTORY to a folder with both")
    text = path.read_text()
    first, _, rest = text.partition("\n-----\n")
    return (rest if CANARY in first else text).strip()


def _parts(task: str) -> list[str]:
    return re.split(r"\n\nQ: ", prompt(task))


def instruction(task: str) -> str | None:
    """What a task's prompt says before its exemplars; None where there is no folder."""
    return None if data() is None else _parts(task)[0]


def exemplars(task: str) -> list[Exemplar]:
    """The three worked examples of a task, in their order."""
    found = []
    for part in _parts(task)[1:]:
        question, _, target = part.partition(_CUE)
        rationale, _, answer = target.rpartition(_CLOSING)
        found.append(Exemplar(question, rationale.strip(), answer.strip().removesuffix(".")))
    return found


for task, kind in KINDS.items():
    add_cot_task(
        f"bbh_{task}",
        records_source(functools.partial(_records, task=task), ("test",)),
        fixed_exemplars=functools.partial(exemplars, task),
        answer_kind=kind,
        template=LAYOUTS[task],
        instruction=functools.partial(instruction, task),
        role="general",
    )

for name, formats in {
    "bbh": ("few_shot_cot", "few_shot_answer"),
    "bbh_cot": ("few_shot_cot",),
    "bbh_answer": ("few_shot_answer",),
}.items():
    seqio.MixtureRegistry.add(
        name, [(f"bbh_{task}_{format}", 1.0) for task in KINDS for format in formats]
    )
