"""SeqIO source and task over a store of `prepare`; T target tokens have K entries each."""

import functools
import logging
import os
from collections.abc import Callable, Iterable

import gin
import numpy as np
import seqio
import tensorflow as tf

from cot_flax.data import sources
from cot_flax.data.features import fingerprint
from cot_flax.data.preprocessors import filter_or_stop
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.store import layout
from cot_flax.text.templates import Template

_BLOCK = 4096
TOP_K = 5
_OF_TARGETS = ("cot_target", "stop", "full_stop")


class StoreSource(seqio.DataSource):
    """A store as the train split, beside the data set's own held-out splits.

    Chains on questions of the held-out splits, or that are left out of the train split
    (`sources.records_source`), are left out, and their number is logged. Records of
    the held-out splits have a rationale and no teacher's rows.

    Args:
        directory: gives the folder when the data is read, so that gin can bind it.
        vocabulary: the task's.
        data: the data set about whose questions the teacher was asked.
        parse: makes a record of `data` into `id`, `question`, `rationale` and `answer`; None where
            it has them already.
    """

    def __init__(
        self,
        directory: Callable[[], str | None],
        *,
        vocabulary: seqio.Vocabulary,
        data: seqio.DataSource,
        parse: Callable[[dict], dict] | None = None,
    ):
        self._directory, self._vocabulary = directory, vocabulary
        self._data, self._parse = data, parse
        self._held_out = [split for split in data.splits if split != layout.SPLIT]
        # Read when it is first needed, and again when gin has bound something else.
        self._held_out_hashes = functools.lru_cache(maxsize=1)(self._read_hashes)
        super().__init__(splits=[layout.SPLIT, *self._held_out])

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
        layout.check(directory, fingerprint(self._vocabulary))
        return directory

    def top_k(self) -> int:
        """The store's entries a position; `TOP_K` where there is no finished store."""
        return layout.top_k_of(self._directory(), TOP_K)

    def check_template(self, template: Template) -> None:
        """Raises UserError where the store's chains were closed as another template does."""
        directory = self.checked_directory()
        manifest = layout.read_manifest(directory)
        stored = manifest["plan"]["settings"].get("template", {})
        direct = ("answer_target",) if manifest["tally"].get("direct") else ()
        for name in (*_OF_TARGETS, *direct):
            own = getattr(template, name)
            if stored.get(name, own) != own:
                raise UserError(
                    f"a store whose chains have {name} {stored[name]!r} at {directory}",
                    f"the {own!r} of the task's template",
                    "run `cot-flax prepare` again for this task, or bind the template of the store",
                )

    def preprocessors(self) -> list:
        """What comes between a stored record and a task's own preprocessors."""
        return [seqio.CacheDatasetPlaceholder(), self._unpack, self._leave_out]

    def list_shards(self, split: str) -> list[str]:
        whole = split == layout.SPLIT  # SeqIO itself shares out a slice
        return layout.record_files(self.checked_directory()) if whole else [split]

    def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused):
        """Reads the files of a shard; the order is the store's, whatever is asked for."""
        del shuffle, seed, unused
        if split == layout.SPLIT:
            return self._chains(*(shard_info.num_shards, shard_info.index) if shard_info else ())
        names = sources.split_names(split)
        if names and names <= set(self._held_out):
            dataset = self._data.get_dataset(split, shuffle=False)
            return dataset.map(self._parse) if self._parse else dataset
        if names - {layout.SPLIT}:
            raise UserError(
                f"split {split!r} of a teacher's task",
                f"train or slices of it, or among {tuple(self._held_out)}",
                "correct the split; chains and held-out questions do not mix",
            )
        (first, *others) = (
            self._chains().skip(part.start or 0).take(_length(part))
            for _, part in sources.slices(split, [layout.SPLIT], lambda _: self._count())
        )
        return functools.reduce(tf.data.Dataset.concatenate, others, first)

    def _chains(self, shards: int = 1, index: int = 0) -> tf.data.Dataset:
        directory, excluded = self.checked_directory(), self._excluded()
        dataset = layout.dataset(directory, shards, index)
        if not excluded:
            return dataset
        _report(directory, excluded)
        return dataset.filter(lambda record: _is_new(record, excluded))

    def _count(self) -> int:
        directory = self.checked_directory()
        kept = layout.read_manifest(directory)["kept"]
        return kept - _count_held_out(directory, self._excluded())

    def _unpack(self, dataset):
        if _is_human(dataset):
            return dataset
        manifest = layout.read_manifest(self.checked_directory())
        stored, top_k = layout.ids_of(manifest), manifest["top_k"]
        if not manifest["tally"].get("direct"):
            dataset = dataset.map(_of_chains)
        return dataset.map(
            lambda record: _unpacked(record, top_k, stored),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def _leave_out(self, dataset):
        """Once more, for a data set that SeqIO read itself; it is repeated already."""
        if _is_human(dataset) or not (excluded := self._excluded()):
            return dataset
        _report(self.checked_directory(), excluded)
        complaint = "whose question is held out; expected some to train on; sample other questions"
        return filter_or_stop(dataset, lambda record: _is_new(record, excluded), complaint)

    def _excluded(self) -> tuple[int, ...]:
        return self._held_out_hashes(gin.config_str())

    def _read_hashes(self, config: str) -> tuple[int, ...]:
        del config
        left_out: Iterable[str] = getattr(self._data, "left_out", tuple)()  # of `records_source`
        found = set(map(layout.question_hash, left_out))
        for split in self._held_out:
            if self._data.num_input_examples(split) == 0:
                continue
            dataset = self._data.get_dataset(split, shuffle=False)
            if self._parse:
                dataset = dataset.map(self._parse)
            texts = dataset.map(lambda record: record["question"]).batch(_BLOCK)
            for block in texts.as_numpy_iterator():
                found |= {layout.question_hash(text.decode()) for text in block}
        return tuple(sorted(found))


class StoreTask(seqio.Task):
    """A task over a StoreSource: `use_cached=True` reads the same folder in SeqIO's own way.

    The formats of a data set share one store. So the folder is not sought by the task's name under
    SeqIO's cache directories; it is the one that gin binds.
    """

    @property
    def cache_dir(self) -> str:
        return self.source.checked_directory()

    def get_dataset(self, sequence_length=None, split="train", use_cached=False, **settings):
        """As SeqIO's; the held-out splits, and slices, are never in the cache."""
        cached = use_cached and split == layout.SPLIT
        return super().get_dataset(sequence_length, split, cached, **settings)


def _length(part: slice) -> int:
    """As tf.data counts: -1 is all there is."""
    return -1 if part.stop is None else part.stop - (part.start or 0)


def _is_human(dataset: tf.data.Dataset) -> bool:
    return "question_hash" not in dataset.element_spec


@functools.lru_cache(maxsize=8)
def _count_held_out(directory: str, excluded: tuple[int, ...]) -> int:
    """How many chains of a store are on these questions."""
    hashes = layout.dataset(directory).map(lambda record: record["question_hash"]).batch(_BLOCK)
    return sum(int(np.isin(block, excluded).sum()) for block in hashes.as_numpy_iterator())


@functools.lru_cache(maxsize=8)
def _report(directory: str, excluded: tuple[int, ...]) -> None:
    """Says once a process what is left out of a store."""
    if count := _count_held_out(directory, excluded):
        kept = layout.read_manifest(directory)["kept"]
        text = "left out %s of %s chains of %s: their questions are held out"
        logging.getLogger(__name__).warning(text, f"{count:,}", f"{kept:,}", directory)


def _is_new(record, excluded: tuple[int, ...]):
    return tf.reduce_all(record["question_hash"] != tf.constant(excluded, tf.int64))


def _of_chains(record):
    """A record of a store that has a chain in each, so that none needs to say so."""
    return {name: value for name, value in record.items() if name != "has_chain"}


def _unpacked(record, top_k, stored: layout.StoredIds):
    """Unpacks a store's bytes into teacher rows [T, K]; T is 0 where the teacher gave none."""
    roots = tf.io.decode_raw(record["teacher_top_logprobs"], tf.uint16)
    logprobs = 2 * tf.math.log(tf.cast(roots, tf.float32) / layout.ROOTS)
    return record | {
        "targets": tf.cast(record["targets"], tf.int32),
        "teacher_top_ids": tf.reshape(stored.decode_tf(record["teacher_top_ids"]), [-1, top_k]),
        "teacher_top_logprobs": tf.reshape(logprobs, [-1, top_k]),
    }
