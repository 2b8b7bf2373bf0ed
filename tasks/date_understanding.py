"""BIG-bench's date understanding: `date_understanding_<format>`, a date
among choices.

All items are test questions; `ho2022_date_understanding` has splits to train on.
BIG-bench's own `task.json` is read, Ho et al. 2022's file or BIG-Bench Hard's; see
`sources.bigbench_records`.
"""

import gin

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, bigbench_records, records_source

FILE = PublicFile(
    names=("date_understanding", "task"),
    origin="bigbench/benchmark_tasks/date_understanding of google/BIG-bench (Apache-2.0)",
    macro="DATE_UNDERSTANDING_DIRECTORY",
)


@gin.configurable(module="cot_flax.tasks.date_understanding")
def data(directory: str | None = None) -> str | None:
    """The folder of date_understanding.json or task.json."""
    return directory


def _records(split):
    del split
    found = bigbench_records(data(), FILE)
    return [{"id": f"date_understanding-{i}"} | record for i, record in enumerate(found)]


add_cot_task(
    "date_understanding",
    records_source(_records, ("test",)),
    formats=("zero_shot_cot", "zero_shot_answer"),
    answer_kind="choice A-F",
    role="transfer",
)
