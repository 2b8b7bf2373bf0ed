"""Batches with a teacher's rows for hosts that go through SeqIO, as T5X does."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from cot_flax.data import packing
from cot_flax.data.features import TEACHER_FEATURES
from cot_flax.errors import UserError
from cot_flax.students.layouts import ABSENT_ID, EncoderDecoder
from cot_flax.text.tokenizers import T5_SPECIAL_IDS

LAYOUT = EncoderDecoder()
_ROWS = {
    name: seqio.FeatureConverter.FeatureSpec(dtype=dtype, rank=2)
    for name, dtype in zip(TEACHER_FEATURES, (tf.int32, tf.float32), strict=True)
}


class DistillationFeatureConverter(seqio.EncDecFeatureConverter):
    """From a task's features to T5X's batch keys, and a teacher's rows where the task has them.

    One class serves training, evaluation and inference. Rows are packed as our own trainer packs
    them (packing.py): SeqIO's packer refuses features of rank 2 and casts floats to integers. What
    is longer than its length is cut, as SeqIO does; our tasks leave such examples out before.

    The features are `inputs` and `targets` [T] and, both or neither, `teacher_top_ids` int32 and
    `teacher_top_logprobs` float32 [T, K]. Padding of the latter is id 0, which marks an absent
    entry, beside a log-probability of 0.
    """

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Converts examples.

        Args:
            task_feature_lengths: of `inputs` and `targets`; others are not looked at.

        Raises:
            UserError: teacher's rows whose K is not known beforehand.
        """
        rows = {name: spec for name, spec in _ROWS.items() if name in ds.element_spec}
        lengths = {side: task_feature_lengths[side] for side in ("inputs", "targets")}
        lengths |= dict.fromkeys(rows, lengths["targets"])
        top_k = _top_k(ds)
        ds = ds.map(lambda example: {name: example[name][:n] for name, n in lengths.items()})
        if self.pack:
            return _packed(ds, lengths, top_k)
        plain = seqio.EncDecFeatureConverter(pack=False, passthrough_features=rows)
        return plain(ds, lengths).map(_padded_as_absent)


def _padded_as_absent(batch: dict) -> dict:
    """SeqIO pads with 0, which is an id; beyond the targets an entry is absent."""
    if "teacher_top_ids" not in batch:
        return batch
    real = batch["decoder_loss_weights"][..., None] > 0
    return batch | {"teacher_top_ids": tf.where(real, batch["teacher_top_ids"], ABSENT_ID)}


def _packed(ds: tf.data.Dataset, lengths: Mapping[str, int], top_k: int) -> tf.data.Dataset:
    def batch_of(row):
        return LAYOUT.to_batch([row], lengths, T5_SPECIAL_IDS, top_k=top_k, packed=True)

    def rows():
        for row in packing.pack(ds.as_numpy_iterator(), LAYOUT, lengths):
            yield {name: array[0] for name, array in batch_of(row).items()}

    signature = {
        name: tf.TensorSpec(array.shape[1:], array.dtype) for name, array in batch_of([]).items()
    }
    return tf.data.Dataset.from_generator(rows, output_signature=signature)


def _top_k(ds: tf.data.Dataset) -> int:
    """K of the teacher's rows; 0 where there are none."""
    if "teacher_top_ids" not in ds.element_spec:
        return 0
    top_k = ds.element_spec["teacher_top_ids"].shape[1]
    if top_k is None:
        raise UserError(
            "teacher_top_ids of shape [length, unknown]",
            "as many entries at every position, known before the data is read",
            "set the shape in the task's preprocessor, as tf.ensure_shape does",
        )
    return top_k
