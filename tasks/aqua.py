"""AQuA-RAT (Ling et al. 2017): `aqua_<format>`, algebra with five choices.

Flan-T5 was trained on its rationales. The question is written as Ho et al. 2022 write it.
"""

import functools

import gin

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, first_field, records_source, with_choices

_ORIGIN = "github.com/google-deepmind/AQuA (Apache-2.0)"
_FILE = functools.partial(
    PublicFile, origin=_ORIGIN, macro="AQUA_DIRECTORY", hub="deepmind/aqua_rat"
)
FILES = {
    "train": _FILE(("train",), patterns=("raw/train*.parquet",)),
    "validation": _FILE(("dev", "validation"), patterns=("raw/validation*.parquet",)),
    "test": _FILE(("test", "aqua"), patterns=("raw/test*.parquet",)),
}


@gin.configurable(module="cot_flax.tasks.aqua")
def data(directory: str | None = None) -> str | None:
    """The folder of train.json, dev.json and test.json; None reads the hub."""
    return directory


@gin.configurable(module="cot_flax.tasks.aqua")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def read(split: str) -> list[dict]:
    """The records of a split."""
    found = (_parse(record, place) for place, record in FILES[split].read(data()))
    return [{"id": f"aqua-{split}-{i}"} | record for i, record in enumerate(found)]


def _parse(record, place):
    question = first_field(record, ("question",), str, place)
    if "options" in record:  # else the choices are in the question already
        options = first_field(record, ("options",), list, place)
        question = with_choices(question, (option.split(")", 1) for option in options))
    return {
        "question": question.strip(),
        "rationale": str(record.get("rationale") or "").strip(),
        "answer": first_field(record, ("correct", "answer"), str, place),
    }


SOURCE = records_source(read, FILES)

add_cot_task(
    "aqua", SOURCE, answer_kind="choice A-E", seen_by_flan=True, teacher_store=teacher_store
)
