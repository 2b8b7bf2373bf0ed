"""A large file of records, read once and kept as shuffled shards that SeqIO reads from then on.

A JSON object of two million entries has no place where a second reader could begin: every process
would parse all of it, in the order of its tasks, and begin anew after a restart. So it is read one
time, holding one record and 8 bytes of each that came before. What is left is TFRecord files
(`COT_FLAX_CACHE/shards`) in an order that the records' own texts decide: tf.data reads them in
parallel, hosts share them out, and no shuffle buffer has to reach from one task to the next.

A record is a dict of texts with `question`, `rationale` and `answer`, and of any of its group's
fields. Each gets a `rank`: its place in the order of its group, by which groups are capped.
"""

import functools
import hashlib
import json
import os
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from cot_flax import hub
from cot_flax.chains.file_names import files_of
from cot_flax.chains.readers import written
from cot_flax.chains.records import BadRecord, find_container, reject
from cot_flax.data.sources import slices
from cot_flax.errors import UserError
from cot_flax.files import cache, file_version, new_folder, path_at

MANIFEST = "shards.json"
SPLITS = ("train", "validation")
RANK = "rank"
_FORMAT = 1
_BYTES = 2**24  # of the input a shard, which is sorted in memory
_MOST_SHARDS = 1024
_LOUD = 200_000  # records between two lines of progress
_NAMED = 3  # rejected records
_HEAD = struct.Struct("<QI")  # a record's key and bytes in a shard that is not sorted yet
_PACKED = 4  # times that a packed file may grow

Make = Callable[[Mapping[str, Any], str], dict[str, str]]


@dataclass(frozen=True)
class Recipe:
    """How a file becomes shards.

    Attributes:
        name: of the data set, in ids and messages.
        make: a record's texts of `fields`, from what the file has, and its place; raises BadRecord.
        fields: all that `make` gives.
        group: those of them by which records are ranked.
        validation: the share of the questions, in [0, 1), that is the split `validation`.
        max_rejected: the share of unreadable records at which it stops.
    """

    name: str
    make: Make
    fields: tuple[str, ...]
    group: tuple[str, ...]
    validation: float = 0.001
    max_rejected: float = 0.05


def text_of(record: Mapping[str, Any], name: str, place: str, *, needed: bool = True) -> str:
    """A text or number of a record, for a recipe's `make`; "" where it may be missing and is.

    Raises:
        BadRecord: it is needed and missing, or of another type.
    """
    value = record.get(name)
    text = "" if value is None else written(value, name, place)
    if needed and not text.strip():
        reject("missing_field", place, f"no {name}", f"a text in {name!r}")
    return text


class ShardedSource(seqio.DataSource):
    """A source of the shards of some files, made when they are first read.

    Args:
        files: gives, when the data is read, the folder of shards made before, or the files as a
            user names them (see `file_names.files_of`).
        recipe: gives how they become shards.
        most: gives how many records of a group are read, by the group's values (as in the
            recipe); None is all.
    """

    def __init__(
        self,
        files: Callable[[], str],
        recipe: Callable[[], Recipe],
        most: Callable[[], Callable[..., int | None]] = lambda: lambda *group: None,
    ):
        self._files, self._recipe, self._most = files, recipe, most
        super().__init__(splits=SPLITS)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """SeqIO shares out the records itself where there are fewer files than shards."""
        return False

    def list_shards(self, split: str) -> list[str]:
        """The files of a split; a slice of one is none of SeqIO's files."""
        return self._paths(split) if split in SPLITS else [split]

    def num_input_examples(self, split: str) -> int:
        if split in SPLITS:
            return self._count(split)
        parts = slices(split, SPLITS, self._count)
        return sum(len(range(*part.indices(self._count(name)))) for name, part in parts)

    def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused):
        """Reads the files of a shard, with `shuffle` in an order that the seed decides."""
        del unused
        if split not in SPLITS:
            whole = {name: self._records(self._paths(name)) for name in SPLITS}
            parts = [
                whole[name].skip(part.start or 0).take((part.stop or 0) - (part.start or 0))
                if part.stop is not None
                else whole[name].skip(part.start or 0)
                for name, part in slices(split, SPLITS, self._count)
            ]
            for part in parts[1:]:
                parts[0] = parts[0].concatenate(part)
            return parts[0]
        paths = self._paths(split)
        if not paths:
            raise UserError(
                f"no records in split {split!r} of {self._recipe().name}",
                "at least one",
                "read another split, or hold out a larger share of the questions",
            )
        if shard_info:
            paths = paths[shard_info.index :: shard_info.num_shards]
        return self._records(paths, shuffle=shuffle, seed=seed)

    def _records(self, paths: Sequence[str], *, shuffle: bool = False, seed=None):
        recipe = self._recipe()
        files = tf.data.Dataset.from_tensor_slices(np.array(paths, dtype=str))
        if shuffle:
            files = files.shuffle(len(paths), seed=seed)
        dataset = files.interleave(
            tf.data.TFRecordDataset,
            cycle_length=16,
            block_length=16,
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        description: dict = dict.fromkeys(recipe.fields, tf.io.FixedLenFeature([], tf.string))
        description[RANK] = tf.io.FixedLenFeature([], tf.int64)
        dataset = dataset.map(
            lambda raw: tf.io.parse_single_example(raw, description),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        limits = self._limits()
        if not limits:
            return dataset
        names = tf.lookup.KeyValueTensorInitializer(
            list(limits), tf.constant(list(limits.values()), tf.int64)
        )
        table = tf.lookup.StaticHashTable(names, 2**62)

        def counts(record):
            key = tf.strings.join([record[name] for name in recipe.group], "\t")
            return record[RANK] < table.lookup(key)

        return dataset.filter(counts)

    def _limits(self) -> dict[str, int]:
        """The groups that are larger than they may be."""
        most, groups = self._most(), self.manifest()["groups"]["train"]
        limits = {name: most(*name.split("\t")) for name in groups}
        return {
            name: limit
            for name, limit in limits.items()
            if limit is not None and limit < groups[name]
        }

    def _count(self, split: str) -> int:
        groups, limits = self.manifest()["groups"][split], self._limits()
        return sum(min(count, limits.get(name, count)) for name, count in groups.items())

    def _paths(self, split: str) -> list[str]:
        folder = self._folder()
        return [f"{folder}/{name}" for name in self.manifest()["files"][split]]

    def manifest(self) -> dict:
        """What the shards were made of, and the counts: read = kept + rejected."""
        return read_manifest(self._folder())

    def _folder(self) -> str:
        named = self._files()
        if (path_at(named) / MANIFEST).exists():
            return os.fspath(path_at(named))
        files = _of_hub(named) if hub.is_url(named) else files_of(named)
        return os.fspath(make_shards(files, self._recipe()))


@functools.cache
def _of_hub(url: str) -> list[str]:
    """Asks the hub once a process."""
    return files_of(url)


def read_manifest(folder: str) -> dict:
    """Of shards; see `ShardedSource.manifest`."""
    return json.loads((path_at(folder) / MANIFEST).read_text())


def make_shards(files: Sequence[str], recipe: Recipe) -> Path:
    """The folder of the shards of these files, made unless the cache has them.

    Raises:
        UserError: a file that cannot be used, too many records that cannot be read, or none.
    """
    plan = [_FORMAT, recipe.name, recipe.validation, [file_version(path) for path in files]]
    key = hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
    out = cache() / "shards" / f"{recipe.name}-{key}"
    if not (out / MANIFEST).exists():
        try:
            with new_folder(out) as folder:
                _write(folder, files, recipe, plan)
        except OSError:
            if not (out / MANIFEST).exists():  # another process was sooner
                raise
    return out


class _Groups:
    """The keys of the records of each group, 8 bytes a record."""

    def __init__(self):
        self.keys: dict[str, array] = {}

    def add(self, group: str, key: int) -> None:
        self.keys.setdefault(group, array("Q")).append(key)

    def sort(self) -> None:
        self.keys = {name: np.sort(np.array(keys, np.uint64)) for name, keys in self.keys.items()}

    def rank(self, group: str, key: int) -> int:
        """How many records of the group come before this one; the same texts have one rank."""
        return int(np.searchsorted(self.keys[group], np.uint64(key)))


def _write(folder: Path, files: Sequence[str], recipe: Recipe, plan: list) -> None:
    count = _shard_count(files)
    names = {
        split: [f"{split}-{i:05d}-of-{n:05d}.tfrecord" for i in range(n)]
        for split, n in (("train", count), ("validation", 1))
    }
    groups = {split: _Groups() for split in SPLITS}
    read, rejected, examples = 0, Counter(), []
    with ExitStack() as stack:
        open_ = {
            split: [stack.enter_context(open(folder / f"{name}.new", "wb")) for name in names_]
            for split, names_ in names.items()
        }
        for entry in _entries(files, recipe):
            read += 1
            if read % _LOUD == 0:
                print(f"  {recipe.name}: {read:,} records read", file=sys.stderr)
            if isinstance(entry, BadRecord):
                rejected[entry.reason] += 1
                examples = [*examples, str(entry)][:_NAMED]
                continue
            split, key = _side(entry, recipe.validation), _key(entry)
            groups[split].add("\t".join(entry[name] for name in recipe.group), key)
            packed = json.dumps([entry[name] for name in recipe.fields]).encode()
            shards = open_[split]
            shards[key % len(shards)].write(_HEAD.pack(key, len(packed)) + packed)
    _check(read, rejected, examples, recipe, files)
    for split in SPLITS:
        groups[split].sort()
        names[split] = [
            name for name in names[split] if _sort(folder / name, groups[split], recipe)
        ]
    counts = {
        split: {name: len(keys) for name, keys in sorted(groups[split].keys.items())}
        for split in SPLITS
    }
    manifest = {
        "plan": plan,
        "read": read,
        "kept": sum(sum(found.values()) for found in counts.values()),
        "rejected": dict(rejected),
        "rejected_examples": examples,
        "files": names,
        "groups": counts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    print(summary(recipe.name, manifest), file=sys.stderr)


def summary(name: str, manifest: Mapping) -> str:
    """The counts in one line, which adds up."""
    rejected, groups = manifest["rejected"], manifest["groups"]
    train, held_out = (sum(groups[split].values()) for split in SPLITS)
    why = ", ".join(f"{reason} {count:,}" for reason, count in rejected.items())
    text = (
        f"{name}: {manifest['read']:,} read = {train:,} train + {held_out:,} validation"
        f" + {sum(rejected.values()):,} rejected"
    )
    return text + (f" ({why}; first: {manifest['rejected_examples'][0]})" if why else "")


def _shard_count(files: Sequence[str]) -> int:
    """A power of two, so that hosts get as many each."""
    size = 0
    for path in files:
        packed = str(path).endswith((".gz", ".bz2", ".xz", ".zst", ".parquet"))
        size += file_version(path)[1] * (_PACKED if packed else 1)
    return min(_MOST_SHARDS, 1 << max(0, (size - 1) // _BYTES).bit_length())


def _entries(files: Sequence[str], recipe: Recipe) -> Iterator[dict[str, str] | BadRecord]:
    for path in files:
        for place, record in find_container(path).read(path):
            try:
                if isinstance(record, BadRecord):
                    raise record
                entry = recipe.make(record, place)
                "".join(entry.values()).encode()
                yield entry
            except BadRecord as error:
                yield error
            except UnicodeEncodeError as error:
                yield BadRecord("bad_text", place, f"half a character ({error.reason})", "UTF-8")


def _check(read, rejected, examples, recipe: Recipe, files) -> None:
    bad = rejected.total()
    if bad == read or bad > recipe.max_rejected * read:
        raise UserError(
            f"{bad:,} of {read:,} records of {', '.join(map(str, files))} that cannot be read "
            f"({dict(rejected)}), first {'; '.join(examples) or 'none'}",
            f"at most {recipe.max_rejected:.0%}, and one that can",
            "repair the file",
        )


def _hash(*texts: str) -> int:
    joined = "\0".join(texts).encode()
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest())


def _key(entry: Mapping[str, str]) -> int:
    return _hash(entry["question"], entry["answer"], entry["rationale"])


def _side(entry: Mapping[str, str], validation: float) -> str:
    """By the question alone, however it is spaced: none stands on both sides."""
    question = " ".join(entry["question"].casefold().split())
    return "validation" if _hash("side", question) < validation * 2**64 else "train"


def _sort(path: Path, groups: _Groups, recipe: Recipe) -> bool:
    """Writes a shard in the order of its keys; says whether there is anything in it."""
    raw = path.with_name(path.name + ".new")
    content, place, found = raw.read_bytes(), 0, []
    while place < len(content):
        key, size = _HEAD.unpack_from(content, place)
        place += _HEAD.size
        found.append((key, content[place : place + size]))
        place += size
    if found:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for key, packed in sorted(found):
                texts = dict(zip(recipe.fields, json.loads(packed), strict=True))
                group = "\t".join(texts[name] for name in recipe.group)
                writer.write(_serialized(texts, groups.rank(group, key)))
    raw.unlink()
    return bool(found)


def _serialized(texts: Mapping[str, str], rank: int) -> bytes:
    feature = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
        for name, text in texts.items()
    }
    feature[RANK] = tf.train.Feature(int64_list=tf.train.Int64List(value=[rank]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
