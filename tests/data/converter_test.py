"""The converter against our own trainer's batches and SeqIO's own converter."""

import ast
import inspect
import itertools
import textwrap

import numpy as np
import pytest
import seqio
import tensorflow as tf

from cot_flax.data.batches import TaskBatches
from cot_flax.data.converter import DistillationFeatureConverter
from cot_flax.errors import UserError
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.text.tokenizers import SpecialIds

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
        assert_same(one, other)
    assert ("teacher_top_ids" in found[0]) == (task == TAUGHT)
    assert ("decoder_segment_ids" in found[0]) == pack
    if task == TAUGHT:
        assert found[0]["teacher_top_logprobs"].dtype == np.float32
        assert (found[0]["teacher_top_logprobs"] < 0).any()


@pytest.mark.parametrize(
    ("use_cached", "pack"),
    [
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_an_iterator_goes_on_from_what_was_saved(pack, use_cached, bound_store, tmp_path):
    """As T5X saves it with `save_dataset`; shuffled, so that the shuffle's state counts, too."""

    def iterator():
        settings = {"shuffle": True, "seed": 3, "num_epochs": None, "use_cached": use_cached}
        task = seqio.get_mixture_or_task(TAUGHT)
        dataset = task.get_dataset(LENGTHS, "train", **settings)
        return iter(DistillationFeatureConverter(pack=pack)(dataset, LENGTHS))

    first, second = iterator(), iterator()
    skipped = [next(first) for _ in range(7)]
    path = tf.train.Checkpoint(data=first).save(str(tmp_path / "state"))
    tf.train.Checkpoint(data=second).restore(path).assert_consumed()
    for _ in range(20):
        expected, found = next(first), next(second)
        assert_same(*({n: v.numpy() for n, v in row.items()} for row in (found, expected)))
    assert any((skipped[0][n] != found[n]).numpy().any() for n in found)


def test_without_a_teacher_it_is_seqios_converter():
    found, expected = (
        batches("stories_zero_shot_cot", converter(pack=False), split="validation", count=1)
        for converter in (DistillationFeatureConverter, seqio.EncDecFeatureConverter)
    )
    # SeqIO feeds EOS to the first place of the padding, which nobody looks at.
    real = expected[0]["decoder_target_tokens"] > 0
    fed = expected[0]["decoder_input_tokens"] * real
    assert_same(found[0], expected[0] | {"decoder_input_tokens": fed})


@pytest.mark.parametrize(
    ("task", "pack"),
    [
        (TAUGHT, False),
        ("stories_zero_shot_cot", True),
        pytest.param(TAUGHT, True, marks=pytest.mark.slow),
        pytest.param("stories_zero_shot_cot", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("converter", "lengths"),
    [
        (seqio.LMFeatureConverter, {"targets": 72}),
        (seqio.PrefixLMFeatureConverter, LENGTHS),
        (seqio.DecoderFeatureConverter, {"targets": 72}),
        (seqio.EncDecFeatureConverter, LENGTHS),
    ],
)
def test_seqios_own_converters_take_our_tasks(converter, lengths, task, pack, bound_store):
    """A decoder's converter gives the length of the targets alone, and these it has."""
    (found,) = batches(task, converter(pack=pack), lengths, count=1)
    (example,) = (
        seqio.get_mixture_or_task(task).get_dataset(lengths, "train", shuffle=False).take(1)
    )
    row = found["decoder_target_tokens"][0]
    length = len(example["targets"])
    start = len(example["inputs"]) * (converter is seqio.PrefixLMFeatureConverter)
    assert row[start : start + length].tolist() == example["targets"].numpy().tolist()


def test_the_example_of_the_docstring():
    examples = {
        "inputs": [[7, 8, 1], [5, 1]],
        "targets": [[3, 1], [4, 1]],
        "teacher_top_ids": [[[3, 9], [1, -1]], [[-1, -1], [-1, -1]]],
        "teacher_top_logprobs": [[[-0.2, -1.9], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],
    }
    spec = {
        name: tf.TensorSpec([None, 2] if name.startswith("teacher") else [None], dtype)
        for name, dtype in zip(examples, (tf.int32, tf.int32, tf.int32, tf.float32), strict=True)
    }
    ds = tf.data.Dataset.from_generator(
        lambda: (dict(zip(examples, row, strict=True)) for row in zip(*examples.values())),  # noqa: B905
        output_signature=spec,
    )
    (found,) = DistillationFeatureConverter()(ds, {"inputs": 7, "targets": 5}).as_numpy_iterator()
    text = inspect.getdoc(DistillationFeatureConverter).partition("converted = ")[2]
    shown = ast.literal_eval(textwrap.dedent(text[: text.index("}") + 1]))
    assert found.keys() == shown.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, shown[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("pack", [True, False])
def test_id_0_and_a_start_and_pad_of_ones_own_are_as_good_as_others(pack):
    ids = SpecialIds(pad=4, end=2, start=6)
    ds = tf.data.Dataset.from_tensors({"inputs": [0, 2], "targets": [5, 0, 2]})
    converter = DistillationFeatureConverter(pack=pack, special_ids=ids)
    (found,) = converter(ds, {"inputs": 3, "targets": 5}).as_numpy_iterator()
    assert found["encoder_input_tokens"].tolist() == [0, 2, 4]
    assert found["decoder_target_tokens"].tolist() == [5, 0, 2, 4, 4]
    assert found["decoder_input_tokens"].tolist() == [6, 5, 0, 4, 4]
    assert found["decoder_loss_weights"].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": None}, "no feature 'inputs' among"),
        (
            {"targets": tf.constant([3, 1], tf.int64)},
            "targets of type int64 and rank 1; expected t",
        ),
        ({"inputs": tf.constant([[3, 1]])}, "inputs of type int32 and rank 2; expected inputs of"),
        ({"teacher_top_logprobs": None}, "no feature 'teacher_top_logprobs' among"),
        ({"teacher_top_ids": tf.constant([3, 1])}, "teacher_top_ids of type int32 and rank 1; "),
        ({"teacher_top_logprobs": tf.constant([[3], [1]])}, "logprobs of type int32 and rank 2; "),
        (
            {"teacher_top_ids": tf.constant([[1], [2]])},
            r"teacher_top_ids of shape \(2, 1\) and teacher_top_logprobs of shape \(2, 2\)",
        ),
    ],
)
def test_what_a_task_must_have_is_checked(pack, change, message):
    (example,) = rows(2)
    changed = {name: v for name, v in (example | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        DistillationFeatureConverter(pack=pack)(
            tf.data.Dataset.from_tensors(changed), {"inputs": 4, "targets": 3}
        )


def test_what_is_declared_is_what_comes(bound_store):
    task = seqio.get_mixture_or_task(TAUGHT)
    dataset = task.get_dataset(LENGTHS, split="train", shuffle=False)
    for pack in (True, False):
        converter = DistillationFeatureConverter(pack=pack)
        declared = {n: (s.dtype, s.rank) for n, s in converter.MODEL_FEATURES.items()}
        if pack:
            declared |= {n: (d, 1) for n, d in converter.PACKING_FEATURE_DTYPES.items()}
        found = converter(dataset, LENGTHS).element_spec
        assert {n: (s.dtype, s.shape.rank) for n, s in found.items()} == declared


def test_both_lengths_are_needed():
    with pytest.raises(UserError, match="add targets to TASK_FEATURE_LENGTHS"):
        DistillationFeatureConverter()(rows(2), {"inputs": 4})


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
