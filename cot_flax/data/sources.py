"""Where records come from: files, lists made in memory (stores: store/tasks.py)."""

import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from cot_flax.chains.records import record_files, records, require
from cot_flax.errors import UserError

Records = list[dict]


def records_source(
    make: Callable[[str], Records], splits: Iterable[str], optional: Iterable[str] = ()
) -> seqio.DataSource:
    """A source whose `make(split)` returns all records as dicts of strings and numbers.

    The `optional` splits may have no record; they have id, question, rationale and answer then.

    A split may be asked for as TFDS writes slices: `test[:10]`, `train[:5%]`, `train+test[2:]`.
    """
    return _RecordsSource(make, splits, optional)


class _RecordsSource(seqio.FunctionDataSource):
    def __init__(self, make, splits, optional):
        self._make, self._optional = make, frozenset(optional)
        super().__init__(self._read, splits=tuple(splits))

    def num_input_examples(self, split: str) -> int:
        return len(self._chosen(split))

    def _read(self, split, shuffle_files, seed=None):
        del shuffle_files, seed
        records = self._chosen(split)
        if not records and split_names(split) <= self._optional:
            names = ("id", "question", "rationale", "answer")
            return tf.data.Dataset.from_tensor_slices(
                {n: tf.constant([], tf.string) for n in names}
            )
        if not records:
            raise UserError(
                f"no records in split {split!r}", "at least one", "check the files and the sizes"
            )
        columns = {name: [record[name] for record in records] for name in records[0]}
        return tf.data.Dataset.from_tensor_slices(columns)

    def _chosen(self, split: str) -> Records:
        if split in self.splits:
            return self._make(split)
        parts = slices(split, self.splits, lambda name: len(self._make(name)))
        return [record for name, kept in parts for record in self._make(name)[kept]]


def slices(
    split: str, splits: Iterable[str], count: Callable[[str], int]
) -> list[tuple[str, slice]]:
    """What `test[:10]` or `train[:5%]+test` asks for: splits, and their records from here to there.

    Args:
        split: as TFDS spells it; percentages are rounded to the closest record.
        splits: those there are.
        count: gives the number of records of one of them.

    Raises:
        UserError: a split that is not there, or a slice that reaches beyond it.
    """
    names = split_names(split) & set(splits)
    infos = {name: SimpleNamespace(num_examples=count(name)) for name in names}
    try:
        if not infos or re.search(r"\dshard", split):  # there are no files to count
            raise ValueError
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError, AssertionError) as error:  # TFDS raises all three
        sizes = ", ".join(f"{name} of {info.num_examples:,}" for name, info in infos.items())
        raise UserError(
            f"split {split!r}" + (f" ({sizes} records)" if sizes else ""),
            f"one of {tuple(splits)} or a slice of it, such as test[:10] or train[:5%]",
            "correct the split",
        ) from error
    return [(part.splitname, slice(part.from_, part.to)) for part in parts]


def split_names(split: str) -> set[str]:
    """The splits that `test[:10]` or `train[:5%]+test` names."""
    return set(re.findall(r"(\w+)(?:\[[^]]*\])?", split))


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
