"""The prepared store: kept chains, tokenized, with the teacher's rows. Made by `prepare`.

A folder with `chains.tfrecord` (one tf.train.Example a chain), `manifest.json`, and
`rejected.jsonl` with every sample that was left out and why.
"""

import collections
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import seqio
import tensorflow as tf

from cot_flax.data.features import fingerprint, pieces
from cot_flax.errors import UserError
from cot_flax.teacher.alignment import align, project_top_k
from cot_flax.teacher.filtering import KEPT, judge
from cot_flax.teacher.samples import Logprobs, Sample
from cot_flax.text.prompts import build_target

CHAINS, MANIFEST, REJECTED = "chains.tfrecord", "manifest.json", "rejected.jsonl"
EOS = 1


def write_store(
    path: str,
    samples: Iterable[Sample],
    *,
    vocabulary: seqio.Vocabulary,
    top_k: int = 5,
    answer_kind: str = "number",
) -> dict:
    """Filters, aligns and tokenizes samples into a store; returns its manifest.

    Raises:
        UserError: no sample is left.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # a store that breaks off must not look whole
    counts: collections.Counter = collections.Counter()
    teachers: set[str] = set()
    with (
        tf.io.TFRecordWriter(str(folder / CHAINS)) as chains,
        open(folder / REJECTED, "w") as rejected,
    ):
        kept = _kept(samples, answer_kind, counts, rejected)
        for record in _records(kept, vocabulary, top_k, counts, teachers):
            chains.write(record.SerializeToString())
    if not counts[KEPT]:
        raise UserError(
            f"no usable chain ({dict(counts)})",
            "at least one with the right answer",
            f"look at {folder / REJECTED}",
        )
    manifest = {
        "vocabulary": fingerprint(vocabulary),
        "top_k": top_k,
        "teachers": sorted(teachers),
        "counts": dict(counts),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_manifest(path: str) -> dict:
    """Reads a store's manifest; raises UserError where there is none."""
    file = Path(path) / MANIFEST
    if not file.exists():
        raise UserError(
            f"no {MANIFEST} in {path}", "a folder that `cot-flax prepare` made", "run prepare first"
        )
    return json.loads(file.read_text())


def dataset(path: str, *, vocabulary: seqio.Vocabulary, top_k: int) -> tf.data.Dataset:
    """Opens a store; raises UserError where its vocabulary or its k is not the task's."""
    manifest = read_manifest(path)
    for name, wanted in (("vocabulary", fingerprint(vocabulary)), ("top_k", top_k)):
        if manifest[name] != wanted:
            raise UserError(
                f"a store with {name} {manifest[name]} at {path}",
                f"the task's {name} {wanted}",
                "run `cot-flax prepare` again for this task",
            )
    ids = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
    logprobs = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
    text, number = tf.io.FixedLenFeature([], tf.string), tf.io.FixedLenFeature([], tf.int64)
    description = {
        "id": text,
        "question": text,
        "answer": text,
        "first": number,
        "targets": ids,
        "teacher_top_ids": ids,
        "teacher_top_logprobs": logprobs,
    }
    records = tf.data.TFRecordDataset(str(Path(path) / CHAINS))
    return records.map(lambda raw: tf.io.parse_single_example(raw, description))


def _kept(samples, answer_kind, counts, rejected) -> Iterator[Sample]:
    for sample, reason in judge(samples, kind=answer_kind):
        counts[reason or KEPT] += 1
        if reason is None:
            yield sample
        else:
            line = {"reason": reason, "id": sample.id, "sample": sample.sample}
            rejected.write(json.dumps(line | {"text": sample.text}) + "\n")


def _records(samples, vocabulary, top_k, counts, teachers) -> Iterator[tf.train.Example]:
    piece_to_id = pieces(vocabulary)
    seen: set[str] = set()
    for sample in samples:
        teachers.add(sample.teacher["model"])
        text = build_target(sample.text, sample.gold_answer, "zero_shot_cot")
        student_pieces = vocabulary.tokenizer.EncodeAsPieces(text)
        targets = [*vocabulary.encode(text), EOS]
        features = {
            "id": _bytes(f"{sample.id}/{sample.sample}"),
            "question": _bytes(sample.question),
            "answer": _bytes(sample.gold_answer),
            "first": _ints([int(sample.id not in seen)]),
            "targets": _ints(targets),
        }
        if sample.logprobs:
            logprobs = _extended(sample.logprobs, text)
            rows = project_top_k(
                align(logprobs.tokens, student_pieces),
                logprobs,
                student_pieces,
                targets[:-1],
                piece_to_id,
                k=top_k,
                eos_id=EOS,
            )
            counts["soft_positions"] += int(rows.soft_T.sum())
            counts["positions"] += len(targets)
            features["teacher_top_ids"] = _ints(rows.ids_TK.ravel())
            features["teacher_top_logprobs"] = tf.train.Feature(
                float_list=tf.train.FloatList(value=rows.logprobs_TK.ravel())
            )
        seen.add(sample.id)
        yield tf.train.Example(features=tf.train.Features(feature=features))


def _extended(logprobs: Logprobs, text: str) -> Logprobs:
    """Adds what `build_target` appended to the teacher's own text, as certain tokens."""
    own = "".join(logprobs.tokens)
    added = text[len(own.strip()) :] if text.startswith(own.strip()) else ""
    tokens = tuple(f" {word}" for word in added.split())
    return Logprobs(
        (*logprobs.tokens, *tokens),
        (*logprobs.token_logprobs, *[0.0] * len(tokens)),
        (*logprobs.top_logprobs, *[{}] * len(tokens)),
    )


def _bytes(text: str) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))


def _ints(values) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
