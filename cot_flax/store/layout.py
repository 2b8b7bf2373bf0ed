"""The prepared store: kept chains as SeqIO's cached-task layout, with a manifest over it.

    train.tfrecord-00000-of-00007   one tf.train.Example a chain
    info.train.json, stats.train.json, COMPLETED    what SeqIO reads
    manifest.json                   teachers, settings, vocabulary, k, counts, checksums
    dropped.jsonl.gz, rejected.jsonl    every record that is not in it, with the reason
    prepare_report.html, .json      what reports.preparation makes of the manifest

A teacher's row takes 4 bytes an entry: a uint16 id and a uint16 for its probability; 6 where the
vocabulary has ids beyond 16 bits. The tail is what the entries leave of 1. An absent entry has the
largest id of its width. T is the number of a chain's target tokens, K the entries of a row.

Stores of format 1 are read, too: all ids have 16 bits, and id 0, T5's padding, is absent.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.chains.preparation import Record
from cot_flax.chains.tally import Tally
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.pieces import ABSENT_ID
from cot_flax.text.prompts import normalize_question

SPLIT = "train"
FORMAT, OLD_FORMAT = 2, 1  # of the records below; a store of another one has to be made again
MANIFEST, COMPLETED = "manifest.json", "COMPLETED"
INFO, STATS = f"info.{SPLIT}.json", f"stats.{SPLIT}.json"
DROPPED, REJECTED = "dropped.jsonl.gz", "rejected.jsonl"
REPORTS = "prepare_report.*"
FEATURES: dict[str, dict] = {
    "id": {"shape": [], "dtype": "string"},
    "question": {"shape": [], "dtype": "string"},
    "question_hash": {"shape": [], "dtype": "int64"},
    "answer": {"shape": [], "dtype": "string"},
    "first": {"shape": [], "dtype": "int32"},
    "has_chain": {"shape": [], "dtype": "int32"},
    "targets": {"shape": [None], "dtype": "int32"},
    "teacher_top_ids": {"shape": [], "dtype": "string"},
    "teacher_top_logprobs": {"shape": [], "dtype": "string"},
}
ROOTS = (1 << 16) - 1


@dataclass(frozen=True)
class StoredIds:
    """How the ids of a store's rows are written: unsigned, little-endian, one of them no id.

    Attributes:
        bits: 16 or 32.
        absent: the number that stands for an absent entry.
    """

    bits: int
    absent: int

    def encode(self, ids_TK: np.ndarray) -> bytes:
        """Packs int32 ids, ABSENT_ID where there is no entry."""
        ids_TK = np.where(ids_TK == ABSENT_ID, self.absent, ids_TK.astype(np.int64))
        return ids_TK.astype(f"<u{self.bits // 8}").tobytes()

    def decode_tf(self, packed: tf.Tensor) -> tf.Tensor:
        """Unpacks int32 ids, ABSENT_ID where there is no entry."""
        if self.bits == 32:  # TensorFlow unpacks no uint32; as an int32 the absent one is -1
            return tf.io.decode_raw(packed, tf.int32)
        ids = tf.cast(tf.io.decode_raw(packed, tf.uint16), tf.int32)
        return tf.where(ids == self.absent, ABSENT_ID, ids)


def id_bits(vocab_size: int) -> int:
    """The fewest bits for a vocabulary's ids that leave a number for absent entries."""
    return 16 if vocab_size < 1 << 16 else 32


def ids_of(manifest: dict) -> StoredIds:
    """How the ids are written in the store of a manifest, or of a plan."""
    if manifest["format"] == OLD_FORMAT:
        return StoredIds(16, 0)
    return StoredIds(manifest["id_bits"], (1 << manifest["id_bits"]) - 1)


def serialize(record: Record, stored: StoredIds) -> bytes:
    """One chain as a tf.train.Example; absent rows are empty strings."""
    ids = logprobs = b""
    if record.projection is not None:
        ids = stored.encode(record.projection.ids_TK)
        logprobs = encode_logprobs(record.projection.logprobs_TK).tobytes()
    feature = {
        "id": _bytes(record.id.encode()),
        # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
        "question": _bytes(record.question.encode(errors="replace")),
        "question_hash": _ints([question_hash(record.question)]),
        "answer": _bytes(record.answer.encode(errors="replace")),
        "first": _ints([int(record.first)]),
        "has_chain": _ints([int(record.has_chain)]),
        "targets": _ints(record.targets),
        "teacher_top_ids": _bytes(ids),
        "teacher_top_logprobs": _bytes(logprobs),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def encode_logprobs(logprobs_TK: np.ndarray) -> np.ndarray:
    """Packs natural logs into uint16: the square root of the probability in 65,535ths.

    A probability p is then off by 1.6e-5 sqrt(p) at most, so that the mass of five entries, and the
    tail with it, is kept to 3.5e-5 (float16 logs: 8e-4). 1 is exact; less than 2.4e-10 becomes it.
    """
    roots_TK = np.exp(logprobs_TK.astype(np.float64) / 2)
    return np.maximum(np.rint(ROOTS * roots_TK), 1).astype("<u2")


def question_hash(question: str) -> int:
    """63 bits that name a question however it is written: case, white space, punctuation."""
    normal = normalize_question(question).encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest()) >> 1


def shard_name(index: int, count: int) -> str:
    return f"{SPLIT}.tfrecord-{index:05d}-of-{count:05d}"


def write_layout(folder: Path, *, shards: int, tally: Tally, plan: dict) -> None:
    """Writes SeqIO's files and the manifest beside the shards; COMPLETED comes last."""
    info = {"num_shards": shards, "features": FEATURES, "seqio_version": seqio.__version__}
    stats = {"examples": tally.kept, "targets_tokens": tally.tokens}
    _write_json(folder / INFO, info)
    _write_json(folder / STATS, stats)
    names = [*(shard_name(i, shards) for i in range(shards)), INFO, STATS]
    manifest = {
        "format": FORMAT,
        "vocabulary": plan["vocabulary"],
        "id_bits": plan["id_bits"],
        "top_k": plan["settings"]["top_k"],
        "teachers": dict(tally.teachers),
        "prompt_hash": f"{tally.prompts % (1 << 128):032x}",
        "read": tally.read,
        "kept": tally.kept,
        "dropped": tally.dropped,
        "rejected": tally.rejected.total(),
        "plan": plan,
        "tally": tally.to_json(),
        "files": {name: checksum(folder / name) for name in names},
    }
    _write_json(folder / MANIFEST, manifest)
    (folder / COMPLETED).touch()


def remove(folder: Path) -> None:
    """Removes a store's files from a folder, and nothing else."""
    (folder / COMPLETED).unlink(missing_ok=True)
    for pattern in (f"{SPLIT}.tfrecord-*", INFO, STATS, MANIFEST, DROPPED, REJECTED, REPORTS):
        for file in folder.glob(pattern):
            file.unlink()


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with tf.io.gfile.GFile(str(path), "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: str) -> str:
    """SHA-256 of the checksums of a store's files; "" where there is no finished store.

    The same chains give the same, whenever and from wherever they were prepared.
    """
    try:
        files = read_manifest(path).get("files", {})
    except UserError:
        return ""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def read_manifest(path: str) -> dict:
    """Reads a store's manifest; raises UserError where there is none or it is not whole."""
    try:
        return json.loads((path_at(path) / MANIFEST).read_text())
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise UserError(
            f"no readable {MANIFEST} in {path}",
            "a folder that `cot-flax prepare` finished",
            "run `cot-flax prepare`, which goes on where it stopped",
        ) from error


def top_k_of(path: str | None, default: int) -> int:
    """Entries of a teacher's row in a store; the default where there is no finished one."""
    try:
        return read_manifest(path)["top_k"] if path else default
    except UserError:
        return default


def finished(folder: Path, plan: dict, *, overwrite: bool = True) -> Tally | None:
    """The counts of a finished store of this plan; None where there is another one, or none.

    Raises:
        UserError: there is another one, which is not to be overwritten.
    """
    if not (folder / COMPLETED).exists():
        return None
    try:
        manifest = read_manifest(str(folder))
    except UserError:
        return None
    if manifest.get("plan") == plan:
        return Tally.from_json(manifest["tally"])
    if not overwrite:
        made_of = ", ".join(Path(path).name for path, *_ in manifest["plan"]["inputs"])
        raise UserError(
            f"another finished store in {folder}: {manifest['kept']:,} chains of {made_of} "
            f"(it differs in {_difference(manifest['plan'], plan)})",
            "a folder without one",
            "choose another --out, or pass --overwrite, which replaces it: what was trained on it "
            "will no longer find its data",
        )
    return None


def _difference(there: dict, wanted: dict) -> str:
    """Names what differs in two plans: "settings.top_k 5 instead of 3"."""
    there, wanted = _flat(there), _flat(wanted)
    named = []
    for name in {**there, **wanted}:
        old, new = there.get(name), wanted.get(name)
        if old != new:
            named.append(f"{name} {old} instead of {new}" if "settings" in name else name)
    return ", ".join(named)


def _flat(plan: dict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plan.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


@functools.lru_cache(maxsize=8)
def check(path: str, vocabulary: str) -> None:
    """Checks once a process that a store is whole and is for this vocabulary.

    The processes of a run share out the files.

    Args:
        path: the store's folder.
        vocabulary: `fingerprint` of the task's vocabulary.

    Raises:
        UserError: another format or vocabulary; a file that is missing or has other bytes.
    """
    manifest = read_manifest(path)
    wanted = {"vocabulary": (vocabulary,), "format": (FORMAT, OLD_FORMAT)}
    for name, known in wanted.items():
        if manifest.get(name) not in known:
            raise UserError(
                f"a store with {name} {manifest.get(name)} at {path}",
                f"the task's {name} {known[0]}",
                "run `cot-flax prepare` again for this task",
            )
    import jax

    for name in list(manifest["files"])[jax.process_index() :: jax.process_count()]:
        _check_file(f"{path}/{name}", manifest["files"][name])


def record_files(path: str) -> list[str]:
    """The files that hold a store's records."""
    return [f"{path}/{name}" for name in read_manifest(path)["files"] if ".tfrecord-" in name]


def dataset(path: str, shards: int = 1, index: int = 0) -> tf.data.Dataset:
    """Opens every `shards`-th file of a store, from `index` on, as records with its FEATURES."""
    files = record_files(path)[index::shards]
    description = {
        name: tf.io.FixedLenFeature([], tf.string if entry["dtype"] == "string" else tf.int64)
        for name, entry in FEATURES.items()
    }
    # Older stores do not say it.
    description["has_chain"] = tf.io.FixedLenFeature([], tf.int64, 1)
    description["targets"] = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
    return tf.data.TFRecordDataset(files).map(
        lambda raw: tf.io.parse_single_example(raw, description),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _check_file(path: str, expected: str) -> None:
    remedy = "copy the store again, or run `cot-flax prepare` into a new folder"
    try:
        found = checksum(path)
    except tf.errors.OpError as error:
        raise UserError(f"no file {path}", "every file of the manifest", remedy) from error
    if found != expected:
        raise UserError(f"{path} with SHA-256 {found[:12]}", f"{expected[:12]}", remedy)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _ints(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
