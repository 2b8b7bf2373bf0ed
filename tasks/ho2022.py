"""The twelve tasks of Ho et al. 2022 (arXiv 2212.10071) in its own splits: `ho2022_<key>_<format>`.

The folder is `data` of github.com/itsnamgyu/reasoning-teacher, with what its README links to:
`dataset/<key>.json`, `split/<key>__default.json`, `split/<key>__template.json` and
`few_shot_cot_prompts.json`. GSM8K and AQuA, which are large, may be those of their own modules
instead; a default split without a file is made by the authors' rule.

- `ho2022_<key>`: the default split, in which questions of one template stand on both sides.
- `ho2022_<key>_template`: whole templates are held out (MultiArith, date understanding).
- `ho2022_fs_<key>`: the default split behind the authors' few-shot prompt, in its own layout.
- `subset.size = 32` keeps the first 32 of the training questions in a random order.
"""

import functools
import re

import gin
import numpy as np

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import (
    PublicFile,
    first_field,
    number_text,
    random_split,
    read_json,
    records_source,
)
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.tasks import aqua, gsm8k
from cot_flax.text.answers import FLOAT, LETTERS
from cot_flax.text.prompts import Exemplar
from cot_flax.text.templates import Template

KINDS = {
    **dict.fromkeys(("multiarith", "gsm8k"), "number"),
    **dict.fromkeys(("single_eq", "addsub", "svamp"), FLOAT),
    "aqua": "choice A-E",
    "date_understanding": "choice A-F",
    "tracking_shuffled_objects": "choice A-C",
    "last_letter_concatenation": LETTERS,
    "coin_flip": "yes_no",
    "commonsense_qa": "choice A-E",
    "strategy_qa": "yes_no",
}
SEEN = {"gsm8k", "aqua", "svamp", "single_eq", "addsub", "multiarith", "commonsense_qa"}
SEEN |= {"strategy_qa"}
TEMPLATES = ("multiarith", "date_understanding")
WITHOUT_PROMPT = "tracking_shuffled_objects"
ORIGIN = "data/ of github.com/itsnamgyu/reasoning-teacher (MIT), its README's dataset.tar.gz"
# Where there is an official split: how many of the first records are not test questions.
_OFFICIAL = {"gsm8k": 7473, "commonsense_qa": 9741, "aqua": 97467}
_AQUA_TRAIN = 10_000
# The authors' `fs_cot`: the prompt file, a line break, `Q: ...` and `A:`.
FEW_SHOT = Template(
    cot_input="Q: {question}\nA:",
    answer_input="Q: {question}\nA:",
    cot_target="{rationale} The answer is {answer}.",
    answer_target="The answer is {answer}.",
    cot_gap=" ",
    separator="\n",
)


@gin.configurable(module="cot_flax.tasks.ho2022")
def data(directory: str | None = None) -> str:
    """The folder of the authors' data.

    Raises:
        UserError: none is bound.
    """
    if directory is None:
        raise UserError("no HO2022_DIRECTORY", ORIGIN, "set HO2022_DIRECTORY to this folder")
    return directory


@gin.configurable(module="cot_flax.tasks.ho2022")
def subset(size: int | None = None) -> int | None:
    """How many training questions are kept: the paper has 8, 32 and 128; None is all.

    They are the first of the training split in the order of `RandomState(0).permutation`. Chains of
    a teacher on the others are left out.
    """
    if size is not None and size < 1:
        raise UserError(f"subset.size {size}", "1 or more, or None", "correct it")
    return size


@gin.configurable(module="cot_flax.tasks.ho2022")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples on one of the tasks."""
    return directory


def read(key: str) -> list[dict]:
    """All records of a task, in the order that its splits count."""
    file = PublicFile((key,), ORIGIN, "HO2022_DIRECTORY")
    if key in _LARGE and not (path_at(data()) / "dataset" / f"{key}.json").exists():
        found = _LARGE[key]()
    else:
        folder = str(path_at(data()) / "dataset")
        found = [_parse(record, place) for place, record in file.read(folder)]
    return [record | {"id": f"ho2022-{key}-{i}"} for i, record in enumerate(found)]


def _gsm8k():
    records = gsm8k.read("train") + gsm8k.read("test")
    return [{k: v for k, v in record.items() if k != "steps"} for record in records]


_LARGE = {"gsm8k": _gsm8k, "aqua": lambda: aqua.read("train") + aqua.read("test")}


def _parse(record, place):
    answer = first_field(record, ("answer",), str | int | float, place)
    return {
        "question": first_field(record, ("question",), str, place).strip(),
        "rationale": str(record.get("rationale") or record.get("reasoning") or "").strip(),
        "answer": number_text(answer),
    }


def split_of(key: str, kind: str = "default") -> dict[str, list[int]]:
    """The indices of the train and the test split: those of the authors' file, or their rule.

    Args:
        key: of the task.
        kind: "default" or "template"; there is no rule for the latter.
    """
    path = path_at(data()) / "split" / f"{key}__{kind}.json"
    if kind == "default" and not path.exists():
        return default_split(key, len(read(key)))
    found = read_json(path)
    if not isinstance(found, dict) or not {"train", "test"} <= found.keys():
        raise UserError(f"{path} without train and test", "lists of indices", "fetch it again")
    return found


def default_split(key: str, count: int) -> dict[str, list[int]]:
    """The authors' rule: official where there is one, else 70 to 30 by `random_split`.

    Of AQuA's training questions 10,000 are kept, drawn in the same way.
    """
    if key not in _OFFICIAL:
        return random_split(count)
    train = list(range(min(_OFFICIAL[key], count)))
    if key == "aqua":
        train = sorted(np.random.RandomState(0).permutation(len(train))[:_AQUA_TRAIN].tolist())
    return {"train": train, "test": list(range(min(_OFFICIAL[key], count), count))}


def _records(split, key, kind="default"):
    found, places = read(key), split_of(key, kind)[split]
    if places and max(places) >= len(found):
        raise UserError(
            f"{len(found)} records of {key}", f"more than {max(places)}", "fetch the whole file"
        )
    if split == "train" and (size := subset()):
        places = _permuted(places)[:size]
    return [found[place] for place in places]


def _permuted(places):
    return np.random.RandomState(0).permutation(places).tolist()


def _left_out(key, kind="default"):
    """The training questions that are not in the subset."""
    if not (size := subset()):
        return []
    found = read(key)
    return [found[place]["question"] for place in _permuted(split_of(key, kind)["train"])[size:]]


def few_shot_prompt(key: str) -> str:
    """The authors' few-shot prompt of a task, without a question."""
    prompts = read_json(path_at(data()) / "few_shot_cot_prompts.json")
    if key not in prompts:
        raise UserError(f"no few-shot prompt of {key}", f"one of {', '.join(prompts)}", "take one")
    return prompts[key]["prompt"]


def exemplars(key: str) -> list[Exemplar]:
    """The worked examples of a few-shot prompt, in its order."""
    found = []
    for block in re.split(r"(?:\A|\n)Q: ", few_shot_prompt(key))[1:]:
        question, _, target = block.partition("\nA: ")
        rationale, _, answer = target.rpartition(" The answer is ")
        found.append(Exemplar(question, rationale, answer.strip().removesuffix(".")))
    return found


def _add(name, key, kind="default", **how):
    if key != WITHOUT_PROMPT:
        how["fixed_exemplars"] = functools.partial(exemplars, key)
    add_cot_task(
        name,
        records_source(
            functools.partial(_records, key=key, kind=kind),
            ("train", "test"),
            left_out=functools.partial(_left_out, key, kind),
        ),
        answer_kind=KINDS[key],
        seen_by_flan=key in SEEN,
        **how,
    )


for key in KINDS:
    formats = ["zero_shot_cot", "zero_shot_answer"]
    if key != WITHOUT_PROMPT:
        formats.append("few_shot_cot")
        _add(f"ho2022_fs_{key}", key, template=FEW_SHOT, formats=["few_shot_cot"])
    how = {"template": "ho2022", "formats": formats, "teacher_store": teacher_store}
    _add(f"ho2022_{key}", key, **how)
    if key in TEMPLATES:
        _add(f"ho2022_{key}_template", key, "template", **how)
