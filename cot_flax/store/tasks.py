"""SeqIO source and task over a store of `prepare`; T target tokens have K entries each."""

import os
from collections.abc import Callable, Iterable

import seqio
import tensorflow as tf

from cot_flax.data.features import fingerprint
from cot_flax.data.preprocessors import filter_or_stop
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.store import layout


class StoreSource(seqio.DataSource):
    """The train split of a store.

    Args:
        directory: gives the folder when the data is read, so that gin can bind it.
        vocabulary: the task's.
        top_k: the task's entries a position.
        held_out: gives the questions that must not be trained on; their chains are left out (paper
            [1] trained on its validation questions).
    """

    def __init__(
        self,
        directory: Callable[[], str | None],
        *,
        vocabulary: seqio.Vocabulary,
        top_k: int,
        held_out: Callable[[], Iterable[str]] = tuple,
    ):
        self._directory, self._vocabulary = directory, vocabulary
        self.top_k, self._held_out = top_k, held_out
        super().__init__(splits=[layout.SPLIT])

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """SeqIO shares out the records itself where there are fewer files than shards."""
        return False

    def checked_directory(self) -> str:
        """The folder, after `layout.check`; raises UserError where gin has bound none."""
        directory = self._directory()
        if directory is None:
            raise UserError("no teacher store", "a folder", "pass --gin.TEACHER_STORE=\"'FOLDER'\"")
        directory = os.fspath(path_at(directory))
        layout.check(directory, fingerprint(self._vocabulary), self.top_k)
        return directory

    def preprocessors(self) -> list:
        """What comes between a stored record and a task's own preprocessors."""
        return [seqio.CacheDatasetPlaceholder(), self._unpack, self._leave_out]

    def list_shards(self, split: str) -> list[str]:
        return layout.record_files(self.checked_directory())

    def get_dataset(self, split, shuffle=True, seed=None, shard_info=None, **unused):
        """Reads the files of a shard; the order is the store's, whatever is asked for."""
        del split, shuffle, seed, unused
        chosen = (shard_info.num_shards, shard_info.index) if shard_info else ()
        dataset, excluded = layout.dataset(self.checked_directory(), *chosen), self._excluded()
        return dataset.filter(lambda record: _is_new(record, excluded)) if excluded else dataset

    def _unpack(self, dataset):
        stored = layout.ids_of(layout.read_manifest(self.checked_directory()))
        return dataset.map(
            lambda record: _unpacked(record, self.top_k, stored),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def _leave_out(self, dataset):
        """Once more, for a data set that SeqIO read itself; it is repeated already."""
        excluded = self._excluded()
        if not excluded:
            return dataset
        complaint = "whose question is held out; expected some to train on; sample other questions"
        return filter_or_stop(dataset, lambda record: _is_new(record, excluded), complaint)

    def _excluded(self) -> list[int]:
        return sorted({layout.question_hash(question) for question in self._held_out()})


class StoreTask(seqio.Task):
    """A task over a StoreSource: `use_cached=True` reads the same folder in SeqIO's own way.

    The formats of a data set share one store. So the folder is not sought by the task's name under
    SeqIO's cache directories; it is the one that gin binds.
    """

    @property
    def cache_dir(self) -> str:
        return self.source.checked_directory()


def _is_new(record, excluded: list[int]):
    return tf.reduce_all(record["question_hash"] != tf.constant(excluded, tf.int64))


def _unpacked(record, top_k, stored: layout.StoredIds):
    """Unpacks a store's bytes into teacher rows [T, K]; T is 0 where the teacher gave none."""
    roots = tf.io.decode_raw(record["teacher_top_logprobs"], tf.uint16)
    logprobs = 2 * tf.math.log(tf.cast(roots, tf.float32) / layout.ROOTS)
    return record | {
        "targets": tf.cast(record["targets"], tf.int32),
        "teacher_top_ids": tf.reshape(stored.decode_tf(record["teacher_top_ids"]), [-1, top_k]),
        "teacher_top_logprobs": tf.reshape(logprobs, [-1, top_k]),
    }
