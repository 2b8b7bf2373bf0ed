"""`ferries_<format>` and `ferries_cot_mix`, our own; `river_mix`, with the world's stories.

`ferries_teacher_<format>` and `ferries_teacher_cot_mix` are read from a teacher's store; in
`river_teacher_mix` chains without a teacher's rows stand beside them.

A gin file that imports this module can name them all. Nothing is read before a run needs it.
"""

from pathlib import Path

import gin

from cot_flax.data.mixtures import mixture
from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import read_fields, records_source
from cot_flax.tasks import stories
from river_tasks.clock import TIME

DATA = Path(__file__).with_name("data")
FIELDS = ("id", "question", "rationale", "answer")


@gin.configurable(module="river_tasks.tasks")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of a teacher's chains; river_kl.gin binds it."""
    return directory


def _records(split: str) -> list[dict]:
    return read_fields(str(DATA), split, FIELDS)


def _exemplars(split: str) -> list[dict]:
    del split  # there is one file of them
    return _records("exemplars")


add_cot_task(
    "ferries",
    records_source(_records, ("train", "validation", "test")),
    exemplars=records_source(_exemplars, ("train",)),  # without it they come from our train split
    answer_kind=TIME,
    teacher_store=teacher_store,
    vocabulary=stories.VOCABULARY,  # a mixture has one vocabulary; without it this is T5's
)

# Any tasks and mixtures, theirs and ours, at any rates.
mixture({"ferries_cot_mix": 2, "stories_zero_shot_cot": 1}, name="river_mix")
mixture({"ferries_teacher_cot_mix": 2, "stories_zero_shot_cot": 1}, name="river_teacher_mix")
