"""The converter against our own trainer's batches and SeqIO's own converter."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from cot_flax.data.batches import TaskBatches
from cot_flax.data.converter import DistillationFeatureConverter
from cot_flax.errors import UserError
from cot_flax.students.layouts import EncoderDecoder

LENGTHS = {"inputs": 96, "targets": 72}
TAUGHT = "stories_teacher_zero_shot_cot"


def batches(task, converter, lengths=LENGTHS, *, split="train", size=4, count=2):
    dataset = seqio.get_dataset(
        task,
        lengths,
        converter,
        dataset_split=split,
        shuffle=False,
        num_epochs=None,
        batch_size=size,
    )
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("task", [TAUGHT, "stories_zero_shot_cot"])
def test_batches_are_those_of_our_trainer(task, pack, bound_store):
    own = TaskBatches(task, LENGTHS, 4, pack=pack, shuffle=False)
    found = batches(task, DistillationFeatureConverter(pack=pack))
    for one, other in zip(found, own.batches(EncoderDecoder()), strict=False):
        # SeqIO feeds EOS to the first place of the padding, which nobody looks at.
        real = one["decoder_target_tokens"] > 0
        assert_same(one | {"decoder_input_tokens": one["decoder_input_tokens"] * real}, other)
    assert ("teacher_top_ids" in found[0]) == (task == TAUGHT)
    assert ("decoder_segment_ids" in found[0]) == pack
    if task == TAUGHT:
        assert found[0]["teacher_top_logprobs"].dtype == np.float32
        assert (found[0]["teacher_top_logprobs"] < 0).any()


def test_without_a_teacher_it_is_seqios_converter():
    found, expected = (
        batches("stories_zero_shot_cot", converter(pack=False), split="validation", count=1)
        for converter in (DistillationFeatureConverter, seqio.EncDecFeatureConverter)
    )
    assert_same(found[0], expected[0])


def test_one_converter_serves_tasks_with_and_without_rows(bound_store):
    converter = DistillationFeatureConverter(pack=False)
    for task in (TAUGHT, "stories_zero_shot_cot", TAUGHT):
        found = batches(task, converter, count=1)[0]
        assert ("teacher_top_ids" in found) == (task == TAUGHT)


def rows(length, top_k=2):
    return tf.data.Dataset.from_tensors(
        {
            "inputs": tf.range(2, 2 + length),
            "targets": tf.range(3, 3 + length),
            "teacher_top_ids": tf.fill([length, top_k], 9),
            "teacher_top_logprobs": tf.fill([length, top_k], -0.5),
        }
    )


@pytest.mark.parametrize("pack", [True, False])
def test_what_is_too_long_is_cut_with_its_rows(pack):
    converter = DistillationFeatureConverter(pack=pack)
    found = next(converter(rows(5), {"inputs": 4, "targets": 3}).as_numpy_iterator())
    np.testing.assert_array_equal(found["encoder_input_tokens"], [2, 3, 4, 5])
    np.testing.assert_array_equal(found["decoder_target_tokens"], [3, 4, 5])
    np.testing.assert_array_equal(found["teacher_top_ids"], np.full((3, 2), 9))
    np.testing.assert_array_equal(found["teacher_top_logprobs"], np.full((3, 2), -0.5))


@pytest.mark.parametrize("pack", [True, False])
def test_padding_is_an_absent_entry(pack):
    converter = DistillationFeatureConverter(pack=pack)
    found = next(converter(rows(2), {"inputs": 4, "targets": 3}).as_numpy_iterator())
    np.testing.assert_array_equal(found["teacher_top_ids"], [[9, 9], [9, 9], [-1, -1]])
    np.testing.assert_array_equal(found["teacher_top_logprobs"][2], [0.0, 0.0])
    np.testing.assert_array_equal(found["decoder_loss_weights"], [1, 1, 0])


@pytest.mark.parametrize("pack", [True, False])
def test_every_shape_is_known_beforehand(pack, bound_store):
    task = seqio.get_mixture_or_task(TAUGHT)
    dataset = task.get_dataset(LENGTHS, split="train", shuffle=False)
    spec = DistillationFeatureConverter(pack=pack)(dataset, LENGTHS).element_spec
    assert spec["teacher_top_ids"].shape == (72, 5)
    assert all(None not in value.shape for value in spec.values())


def test_rows_of_unknown_width_are_an_error():
    loose = rows(3).map(
        lambda example: {
            name: tf.ensure_shape(tf.numpy_function(lambda x: x, [value], value.dtype), shape)
            for (name, value), shape in zip(
                example.items(), ([None], [None], [None, None], [None, None]), strict=True
            )
        }
    )
    with pytest.raises(UserError, match="teacher_top_ids of shape"):
        DistillationFeatureConverter(pack=False)(loose, {"inputs": 4, "targets": 3})
