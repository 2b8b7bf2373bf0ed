"""A user's own scenario: `scenario_<format>`, and `scenario_teacher_<format>` from a store.

`scenario_bytes_<format>` and `scenario_bytes_teacher_<format>` are the same of bytes, for ByT5.

The folder is what `cot-flax teach scenario` asks a teacher about. Its settings say of what kind the
answers are, its exemplars are those of the student's few-shot prompts. The labelled inputs of
`test.jsonl`, about which no teacher is asked, are the test split.
"""

import gin
import seqio

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.teacher.scenario import read_scenario, read_settings, read_test
from cot_flax.text.wording import Wording

TOP_K = 5


@gin.configurable(module="cot_flax.tasks.scenario")
def data(directory: str | None = None) -> str:
    """The scenario's folder."""
    if directory is None:
        raise UserError("no scenario", "its folder", "pass --gin.SCENARIO=FOLDER")
    return directory


@gin.configurable(module="cot_flax.tasks.scenario")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def _answer_kind() -> str:
    return read_settings(data()).answer_kind


def _wording() -> Wording:
    return read_settings(data()).wording


def _records(split):
    items = read_scenario(data()).exemplars if split == "train" else read_test(data())
    return [
        {
            "id": item.id,
            "question": item.question,
            "rationale": item.rationale,
            "answer": item.answer,
        }
        for item in items
    ]


SOURCE = records_source(_records, ("train", "test"))

for name, vocabulary in {"scenario": None, "scenario_bytes": seqio.ByteVocabulary()}.items():
    add_cot_task(
        name,
        SOURCE,
        answer_kind=_answer_kind,
        wording=_wording,
        vocabulary=vocabulary,
        teacher_store=teacher_store,
        top_k=TOP_K,
    )
