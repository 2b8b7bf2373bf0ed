"""BIG-bench's tracking of shuffled objects: `tracking_shuffled_objects_<format>`.

All items are test questions; `ho2022_tracking_shuffled_objects` has splits to train on.
BIG-bench's own `task.json` is read, Ho et al. 2022's file or BIG-Bench Hard's; see
`sources.bigbench_records`.
"""

import gin

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, bigbench_records, records_source

FILE = PublicFile(
    names=("tracking_shuffled_objects", "tracking_shuffled_objects_three_objects", "task"),
    origin="benchmark_tasks/tracking_shuffled_objects of google/BIG-bench (Apache-2.0)",
    macro="TRACKING_SHUFFLED_OBJECTS_DIRECTORY",
)


@gin.configurable(module="cot_flax.tasks.tracking_shuffled_objects")
def data(directory: str | None = None) -> str | None:
    """The folder of tracking_shuffled_objects.json or task.json."""
    return directory


def _records(split):
    del split
    found = bigbench_records(data(), FILE)
    return [{"id": f"tracking_shuffled_objects-{i}"} | record for i, record in enumerate(found)]


add_cot_task(
    "tracking_shuffled_objects",
    records_source(_records, ("test",)),
    formats=("zero_shot_cot", "zero_shot_answer"),
    answer_kind="choice A-G",
    role="transfer",
)
