"""SeqIO preprocessors: from a record to `inputs`, `targets` and teacher rows.

A record has `id`, `question`, `rationale` and `answer` (strings). A record of a store
has instead of a rationale its `targets` (ids with EOS) and the teacher's rows (stored.py).
"""

from collections.abc import Callable

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.errors import UserError
from cot_flax.text.prompts import ExemplarPool, build_input, build_target, is_cot, is_few_shot

MOST_DROPPED = 10_000


def write_prompt(
    dataset: tf.data.Dataset,
    *,
    format: str,
    pool: Callable[[], ExemplarPool],
    settings: Callable[[], dict],
) -> tf.data.Dataset:
    """Adds `inputs_pretokenized`, and `targets_pretokenized` where the record has no tokens.

    Exemplars depend on the seed and the record's id alone, so neither sharding nor a restart
    changes them.

    Args:
        pool: the exemplars' source, called when the data set is built.
        settings: shots, style and seed; see registration.prompting.
    """
    chosen = settings()
    exemplars = pool() if is_few_shot(format) else None
    if exemplars and chosen["shots"] >= len(exemplars):
        # Found out here, since an error from inside tf.data reaches nobody in one line.
        raise UserError(
            f"a pool of {len(exemplars)} exemplars for {chosen['shots']} shots",
            "more exemplars than shots",
            "lower registration.prompting.shots or give a larger train split",
        )

    def inputs(question, key):
        question, key = question.decode(), f"{chosen['seed']}/{key.decode()}"
        shown = exemplars.draw(question, chosen["shots"], key) if exemplars else ()
        return build_input(question, format, shown, chosen["style"]).encode()

    def targets(rationale, answer):
        return build_target(rationale.decode(), answer.decode(), format).encode()

    def add(record):
        record["inputs_pretokenized"] = _string(inputs, record["question"], record["id"])
        if "rationale" in record or not is_cot(format):
            rationale = record.get("rationale", "")
            record["targets_pretokenized"] = _string(targets, rationale, record["answer"])
        return record

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


@seqio.map_over_dataset
def tokenize(record, *, vocabulary: seqio.Vocabulary, format: str, top_k: int):
    """Adds token ids, each closed by EOS, and teacher rows [T, K] (zeros where there are none)."""

    def encode(text):
        return tf.concat([vocabulary.encode_tf(text), [vocabulary.eos_id]], axis=0)

    stored = is_cot(format) and "targets" in record
    targets = record["targets"] if stored else encode(record["targets_pretokenized"])
    record = record | {
        "inputs": encode(record["inputs_pretokenized"]),
        "targets": tf.cast(targets, tf.int32),
    }
    if stored:
        record["targets_pretokenized"] = vocabulary.decode_tf(record["targets"][:-1])
    if top_k:
        record |= _teacher_rows(record, tf.shape(record["targets"])[0], stored, top_k)
    return record


def first_samples(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps one record a question: the answer formats need no second chain (paper [1], 1.1)."""
    return dataset.filter(lambda record: record.get("first", 1) == 1)


def drop_overlong(
    dataset: tf.data.Dataset, sequence_length: dict[str, int] | None
) -> tf.data.Dataset:
    """Drops examples longer than the run's lengths: a cut chain would lose its answer.

    Our own trainer asks for no lengths here; it drops and counts by itself (batches.py). Where
    nothing fits, a data set that repeats for ever would be searched for ever: it stops with
    InvalidArgumentError.
    """
    if not sequence_length:
        return dataset

    def fits(example):
        return tf.reduce_all(
            [tf.size(example[name]) <= sequence_length[name] for name in ("inputs", "targets")]
        )

    return filter_or_stop(
        dataset,
        fits,
        f"longer than {dict(sequence_length)} tokens; expected some that fit; "
        "raise TASK_FEATURE_LENGTHS or show fewer exemplars",
    )


def filter_or_stop(
    dataset: tf.data.Dataset, keeps: Callable[[dict], tf.Tensor], complaint: str
) -> tf.data.Dataset:
    """Filters; raises InvalidArgumentError where MOST_DROPPED examples in a row are dropped."""

    def judge(dropped, example):
        kept = keeps(example)
        dropped = tf.where(kept, 0, dropped + 1)
        text = f"got {MOST_DROPPED} examples in a row {complaint}"
        with tf.control_dependencies([tf.debugging.Assert(dropped < MOST_DROPPED, [text])]):
            return dropped, (tf.identity(kept), example)

    judged = dataset.scan(tf.constant(0), judge)
    return judged.filter(lambda kept, example: kept).map(lambda kept, example: example)


def _teacher_rows(record, length, stored: bool, top_k: int):
    ids = tf.zeros([0, top_k], tf.int32)
    logprobs = tf.zeros([0, top_k], tf.float32)
    if stored:
        ids, logprobs = record["teacher_top_ids"], record["teacher_top_logprobs"]
    # A stored chain without log-probabilities has no rows either.
    missing = [[0, length - tf.shape(ids)[0]], [0, 0]]
    return {
        "teacher_top_ids": tf.pad(ids, missing),
        "teacher_top_logprobs": tf.pad(logprobs, missing),
    }


def _string(function, *args):
    result = tf.numpy_function(
        lambda *values: np.asarray(function(*values), dtype=object), args, tf.string, stateful=False
    )
    return tf.ensure_shape(result, [])
