"""Where records come from: files, lists made in memory (stores: store/tasks.py)."""

from collections.abc import Callable, Iterable

import seqio
import tensorflow as tf

from cot_flax.chains.records import record_files, records, require
from cot_flax.errors import UserError

Records = list[dict]


def records_source(make: Callable[[str], Records], splits: Iterable[str]) -> seqio.DataSource:
    """A source whose `make(split)` returns all records as dicts of strings and numbers."""

    def dataset_fn(split, shuffle_files, seed=None):
        del shuffle_files, seed
        records = make(split)
        if not records:
            raise UserError(
                f"no records in split {split!r}", "at least one", "check the files and the sizes"
            )
        columns = {name: [record[name] for record in records] for name in records[0]}
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(dataset_fn, splits=list(splits))


def read_fields(directory: str, name: str, fields: Iterable[str]) -> Records:
    """Reads the file `name` of a directory (see `record_files`), keeping `fields` of every record.

    Raises:
        UserError: no such file, an empty or a malformed one, or a missing field, with its place.
    """
    return [
        {field: require(record, field, str, place) for field in fields}
        for path in record_files(directory, name)
        for place, record in records(path)
    ]


def questions(source: seqio.DataSource, split: str) -> Iterable[str]:
    """The questions of one split of a source."""
    for record in source.get_dataset(split, shuffle=False).as_numpy_iterator():
        yield record["question"].decode()
