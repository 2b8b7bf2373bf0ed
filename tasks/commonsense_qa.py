"""CommonsenseQA (Talmor et al. 2019): `commonsense_qa_<format>`, five choices.

Flan-T5 was trained on it, and on the rationales that ECQA adds. The golds of its own test split are
secret: as in Ho et al. 2022, the test split here is its development set, and the last 1,000
training questions are the validation split. It has no rationales, so few-shot prompts show answers
alone; `ho2022_commonsense_qa` has chains to show.
"""

import functools

import gin

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, first_field, records_source, with_choices
from cot_flax.errors import UserError

VALIDATION = 1000
_FILE = functools.partial(
    PublicFile,
    origin="www.tau-nlp.org/commonsenseqa (MIT)",
    macro="COMMONSENSE_QA_DIRECTORY",
    hub="tau/commonsense_qa",
)
FILES = {
    "train": _FILE(("train_rand_split", "train"), patterns=("*train*.parquet",)),
    "test": _FILE(("dev_rand_split", "dev", "validation"), patterns=("*validation*.parquet",)),
}


@gin.configurable(module="cot_flax.tasks.commonsense_qa")
def data(directory: str | None = None) -> str | None:
    """The folder of train_rand_split.jsonl and dev_rand_split.jsonl; None reads the hub."""
    return directory


@gin.configurable(module="cot_flax.tasks.commonsense_qa")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def read(file: str) -> list[dict]:
    """All records of the training file or of the development file, which is `test`."""
    found = (_parse(record, place) for place, record in FILES[file].read(data()))
    return [{"id": f"commonsense_qa-{file}-{i}"} | record for i, record in enumerate(found)]


def _parse(record, place):
    asked = record.get("question")
    if isinstance(asked, dict):  # the authors' own file
        question = first_field(asked, ("stem",), str, place)
        choices = [(one["label"], one["text"]) for one in asked["choices"]]
    else:  # the hub's
        question = first_field(record, ("question",), str, place)
        listed = first_field(record, ("choices",), dict, place)
        choices = list(zip(listed["label"], listed["text"], strict=True))
    return {
        "question": with_choices(question, choices),
        "rationale": "",
        "answer": first_field(record, ("answerKey",), str, place),
    }


def _records(split):
    found = read("test" if split == "test" else "train")
    if split == "test":
        return found
    if len(found) <= VALIDATION:
        raise UserError(
            f"{len(found)} training questions of CommonsenseQA",
            f"more than the {VALIDATION} of the validation split",
            "fetch the whole file",
        )
    return found[-VALIDATION:] if split == "validation" else found[:-VALIDATION]


SOURCE = records_source(_records, ("train", "validation", "test"))

add_cot_task(
    "commonsense_qa",
    SOURCE,
    formats=("zero_shot_cot", "zero_shot_answer", "few_shot_answer"),
    answer_kind="choice A-E",
    seen_by_flan=True,
    teacher_store=teacher_store,
)
