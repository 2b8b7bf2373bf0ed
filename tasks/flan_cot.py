"""FLAN's nine chain-of-thought data sets (Longpre et al. 2023, arXiv 2301.13688).

`flan_cot_<name>_<format>` of each, mixed as `flan_cot_<name>_cot_mix`, which `flan_cot_<name>` is,
too; `flan_cot_mix` mixes all nine in the shares of their sizes. Flan-T5 was trained on them.

The files are `<name>_train.tsv` of flan/v2/cot_data in google-research/FLAN. There are no other
splits: a seeded share of the questions is the split `validation`.
"""

import functools
import os
from typing import Any

import gin
import seqio

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import given_rationales, is_held_out, records_source
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.prompts import FORMATS

DIRECTORY = "FLAN_COT_DIRECTORY"
WHERE = "https://github.com/google-research/FLAN/tree/main/flan/v2/cot_data"
KINDS = {
    "aqua": "choice",  # (C)
    "creak": "yes_no",
    "ecqa": "text",  # the words of an option
    "esnli": "text",  # yes, no, it is not possible to tell
    "gsm8k": "number",
    "qasc": "choice",
    "qed": "text",
    "sensemaking": "text",  # Sentence A
    "strategyqa": "yes_no",
}
"""The answers of each data set."""


@gin.configurable(module="cot_flax.tasks.flan_cot")
def data(directory: str | None = None, validation: float = 0.02) -> dict[str, Any]:
    """Where the files lie, and which share of the questions is the split `validation`.

    Without a directory it is the environment's FLAN_COT_DIRECTORY.
    """
    return {"directory": directory or os.environ.get(DIRECTORY), "validation": validation}


def _records(name: str, split: str) -> list[dict]:
    bound = data()
    return _read(name, bound["directory"], bound["validation"])[split]


@functools.lru_cache(maxsize=32)
def _read(name: str, directory: str | None, validation: float) -> dict[str, list[dict]]:
    path = path_at(directory or ".") / f"{name}_train.tsv"
    if not path.exists():
        got = f"{path}: No such file" if directory else f"no folder with {path.name}"
        remedy = f"take it from {WHERE} and set {DIRECTORY} to its folder"
        raise UserError(got, f"FLAN's file of flan_cot_{name}", remedy)
    splits: dict[str, list[dict]] = {"train": [], "validation": []}
    for record in given_rationales(os.fspath(path)):
        held_out = is_held_out(record["question"], validation)
        splits["validation" if held_out else "train"].append(record)
    return splits


def _rate(name: str):
    """Of a task in the mixture of all: its share of the data set's own, times its size."""

    def rate(task: seqio.Task) -> float:
        own = seqio.MixtureRegistry.get(f"flan_cot_{name}_cot_mix")
        return len(_records(name, "train")) * own.get_rate(task) / own.total_rate

    return rate


for _name, _kind in KINDS.items():
    add_cot_task(
        f"flan_cot_{_name}",
        records_source(functools.partial(_records, _name), ("train", "validation")),
        answer_kind=_kind,
        seen_by_flan=True,
    )
    seqio.MixtureRegistry.add(f"flan_cot_{_name}", [(f"flan_cot_{_name}_cot_mix", 1.0)])

seqio.MixtureRegistry.add(
    "flan_cot_mix",
    [(f"flan_cot_{name}_{format}", _rate(name)) for name in KINDS for format in FORMATS],
)
