"""Batches with a teacher's rows for hosts that go through SeqIO, as T5X does.

S and T are the lengths of inputs and targets, K the entries of a teacher's row.
"""

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.data import packing
from cot_flax.data.features import TEACHER_FEATURES
from cot_flax.errors import UserError
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.text.tokenizers import T5_SPECIAL_IDS, SpecialIds

BLOCK = 1024
LAYOUT = EncoderDecoder()
_Spec = seqio.FeatureConverter.FeatureSpec
_TEACHER = {
    name: _Spec(dtype=dtype, rank=2)
    for name, dtype in zip(TEACHER_FEATURES, (tf.int32, tf.float32), strict=True)
}
_PACKING = {
    f"{side}_{name}": tf.int32
    for side in ("encoder", "decoder")
    for name in ("segment_ids", "positions")
}


class DistillationFeatureConverter(seqio.EncDecFeatureConverter):
    """From a task's features to T5X's batch keys, and a teacher's rows where the task has them.

    One class serves training, evaluation and inference. Rows are laid out and packed as our own
    trainer does it (students/layouts.py, packing.py): SeqIO's converter takes id 0 for padding, and
    its packer refuses features of rank 2 and casts floats to integers. What is longer than its
    length is cut, as SeqIO does; our tasks leave such examples out before. The state of an iterator
    can be saved, as T5X does with `save_dataset`.

    A task has the features of TASK_FEATURES, the teacher's both or neither; whatever else it has is
    left out. Type and rank of both sides are checked, packed or not.

    Example: two packed examples, with K = 2 and lengths 7 and 5; the second has no teacher.

        ds = [{"inputs": [7, 8, 1], "targets": [3, 1],
               "teacher_top_ids": [[3, 9], [1, -1]],
               "teacher_top_logprobs": [[-0.2, -1.9], [0.0, 0.0]]},
              {"inputs": [5, 1], "targets": [4, 1],
               "teacher_top_ids": [[-1, -1], [-1, -1]],
               "teacher_top_logprobs": [[0.0, 0.0], [0.0, 0.0]]}]

        converted = {
            "encoder_input_tokens": [7, 8, 1, 5, 1, 0, 0],
             "encoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
               "encoder_positions": [0, 1, 2, 0, 1, 0, 0],
           "decoder_target_tokens": [3, 1, 4, 1, 0],
            "decoder_input_tokens": [0, 3, 0, 4, 0],
            "decoder_loss_weights": [1., 1., 1., 1., 0.],
             "decoder_segment_ids": [1, 1, 2, 2, 0],
               "decoder_positions": [0, 1, 0, 1, 0],
                 "teacher_top_ids": [[3, 9], [1, -1], [-1, -1], [-1, -1], [-1, -1]],
            "teacher_top_logprobs": [[-0.2, -1.9], [0., 0.], [0., 0.], [0., 0.], [0., 0.]],
        }

    Absent entries, padding among them, are id -1 beside a log-probability of 0.

    Args:
        pack: put several examples into a row, and give segment ids and positions.
        special_ids: of the task's vocabulary; T5's by default.
        settings: SeqIO's others.
    """

    TASK_FEATURES = {"inputs": _Spec(tf.int32), "targets": _Spec(tf.int32)} | _TEACHER
    MODEL_FEATURES = {
        "encoder_input_tokens": _Spec(tf.int32),
        "decoder_target_tokens": _Spec(tf.int32),
        "decoder_input_tokens": _Spec(tf.int32),
        "decoder_loss_weights": _Spec(tf.float32),
    } | _TEACHER
    PACKING_FEATURE_DTYPES = _PACKING

    def __init__(self, pack: bool = True, *, special_ids: SpecialIds = T5_SPECIAL_IDS, **settings):
        super().__init__(pack=pack, **settings)
        self._special_ids = special_ids

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Converts examples.

        Args:
            task_feature_lengths: S of `inputs` and T of `targets`; others are not looked at.

        Raises:
            UserError: a feature that is missing or of another type or rank, lengths that are
                missing, or a teacher's rows whose K is not known beforehand.
        """
        lengths = {side: _length(task_feature_lengths, side) for side in ("inputs", "targets")}
        names = _task_features(ds.element_spec)
        _check(ds.element_spec, {name: self.TASK_FEATURES[name] for name in names}, "the task's")
        entries = teacher_top_k(ds.element_spec) if TEACHER_FEATURES[0] in names else 0
        sizes = {name: lengths["inputs" if name == "inputs" else "targets"] for name in names}
        ds = ds.map(lambda example: {name: example[name][:n] for name, n in sizes.items()})
        convert = _packed if self.pack else _one_a_row
        converted = convert(ds, lengths, self._special_ids, entries)
        _check(converted.element_spec, self._model_features(entries), "the converter's own")
        return converted

    def _model_features(self, top_k: int) -> dict:
        packing = self.PACKING_FEATURE_DTYPES if self.pack else {}
        features = self.MODEL_FEATURES | {name: _Spec(dtype) for name, dtype in packing.items()}
        left_out = () if top_k else TEACHER_FEATURES
        return {name: spec for name, spec in features.items() if name not in left_out}


def _one_a_row(ds, lengths, special_ids, top_k) -> tf.data.Dataset:
    signature = _signature(lengths, special_ids, top_k, packed=False)

    def lay_out(*values):
        example = dict(zip(ds.element_spec, values, strict=True))
        batch = LAYOUT.to_batch([[example]], lengths, special_ids, top_k=top_k, packed=False)
        return [batch[name][0] for name in signature]

    def convert(example):
        values = [example[name] for name in ds.element_spec]
        types = [spec.dtype for spec in signature.values()]
        arrays = tf.numpy_function(lay_out, values, types, stateful=False)
        return {
            name: tf.ensure_shape(array, signature[name].shape)
            for name, array in zip(signature, arrays, strict=True)
        }

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def _packed(ds, lengths, special_ids, top_k) -> tf.data.Dataset:
    """Packs BLOCK examples at a time: a generator's state could not be saved with a checkpoint."""
    signature = _signature(lengths, special_ids, top_k, packed=True)
    names = list(ds.element_spec)

    def lay_out(*columns):
        values, splits = columns[::2], columns[1::2]
        parts = [np.split(v, s[1:-1]) for v, s in zip(values, splits, strict=True)]
        examples = (dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True))
        rows = list(packing.pack(examples, LAYOUT, lengths))
        batch = LAYOUT.to_batch(rows, lengths, special_ids, top_k=top_k, packed=True)
        return [batch[name] for name in signature]

    def convert(block):
        columns = []
        for name in names:
            column = block[name]
            if not isinstance(column, tf.RaggedTensor):  # all of one length
                column = tf.RaggedTensor.from_tensor(column)
            columns += [column.values, column.row_splits]
        types = [spec.dtype for spec in signature.values()]
        arrays = tf.numpy_function(lay_out, columns, types, stateful=False)
        return {
            name: tf.ensure_shape(array, [None, *signature[name].shape])
            for name, array in zip(signature, arrays, strict=True)
        }

    return ds.ragged_batch(BLOCK).map(convert).unbatch().prefetch(tf.data.AUTOTUNE)


def _signature(lengths, special_ids, top_k, *, packed) -> dict[str, tf.TensorSpec]:
    """Shapes and types of a row, as the layout itself gives them."""
    empty = LAYOUT.to_batch([], lengths, special_ids, top_k=top_k, packed=packed)
    return {name: tf.TensorSpec(array.shape[1:], array.dtype) for name, array in empty.items()}


def _task_features(element_spec: Mapping) -> list[str]:
    """`inputs`, `targets` and, where the task has one of them, both of the teacher's features."""
    taught = any(name in element_spec for name in TEACHER_FEATURES)
    return ["inputs", "targets", *(TEACHER_FEATURES if taught else ())]


def _check(element_spec: Mapping, expected: Mapping, whose: str) -> None:
    """Raises UserError where a feature is not as it is declared."""
    for name, wanted in expected.items():
        spec = element_spec.get(name)
        if spec is None:
            found = f"no feature {name!r} among {sorted(element_spec)}"
        elif spec.dtype != wanted.dtype or spec.shape.rank != wanted.rank:
            found = f"{name} of type {spec.dtype.name} and rank {spec.shape.rank}"
        else:
            continue
        raise UserError(
            found,
            f"{name} of type {wanted.dtype.name} and rank {wanted.rank}, {whose} feature",
            "register the task with add_cot_task, or correct its last preprocessor",
        )


def _length(lengths: Mapping[str, int], side: str) -> int:
    if side not in lengths:
        raise UserError(
            f"task feature lengths {dict(lengths)}",
            "lengths of inputs and targets",
            f"add {side} to TASK_FEATURE_LENGTHS",
        )
    return lengths[side]


def teacher_top_k(element_spec: Mapping) -> int:
    """K of the teacher's rows of a data set; raises UserError where it is not known beforehand."""
    widths = {element_spec[name].shape[1] for name in TEACHER_FEATURES}
    if len(widths) > 1 or None in widths:
        shapes = " and ".join(f"{n} of shape {element_spec[n].shape}" for n in TEACHER_FEATURES)
        raise UserError(
            shapes,
            "as many entries at every position, known before the data is read",
            "set the shape in the task's preprocessor, as tf.ensure_shape does",
        )
    return widths.pop()
