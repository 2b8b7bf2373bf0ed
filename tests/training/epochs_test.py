"""Tests of TRAIN_STEPS from EPOCHS, on tasks of a few examples."""

from functools import partial

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from cot_flax import configuration
from cot_flax.data.batches import TaskBatches
from cot_flax.errors import UserError
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.students.t5 import T5Config
from cot_flax.text.tokenizers import T5_SPECIAL_IDS
from cot_flax.training.epochs import steps

VOCABULARY = seqio.ByteVocabulary()
FEATURES = {name: seqio.Feature(VOCABULARY) for name in ("inputs", "targets")}
LENGTHS = {"inputs": 8, "targets": 8}


def texts(lengths):
    """Examples of so many characters on either side, and an end."""
    return tf.data.Dataset.from_tensor_slices(
        {name: tf.constant(["x" * length for length in lengths]) for name in FEATURES}
    )


def add_task(name, lengths):
    """A task whose split `train` has one example a length."""
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: texts(lengths), splits=["train"]
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=FEATURES,
    )


@pytest.fixture(autouse=True)
def tasks():
    add_task("epochs_short", [1] * 10)
    add_task("epochs_mixed", [1, 3, 7, 8, 9, 2])  # of which two are longer than seven and an end
    for name, rates in {"epochs_both": (1.0, 3.0), "epochs_one": (1.0, 0.0)}.items():
        seqio.MixtureRegistry.remove(name)
        pairs = list(zip(("epochs_short", "epochs_mixed"), rates, strict=True))
        seqio.MixtureRegistry.add(name, pairs)


def count(name, **settings):
    data = TaskBatches(name, LENGTHS, batch_size=4, shuffle=False, **settings)
    return data.epoch(EncoderDecoder())


def test_an_epoch_is_every_example_that_fits():
    assert count("epochs_short") == (10, 0, 10)
    assert count("epochs_mixed") == (4, 2, 4)


def test_of_a_mixture_it_is_those_of_its_tasks_whatever_their_rates():
    assert count("epochs_both") == (14, 2, 14)
    assert count("epochs_one") == (10, 0, 10)  # a task of rate 0 is never read


def test_with_packing_it_is_the_rows_that_they_fill():
    # Ten examples of two tokens, four of which fill a row of eight.
    assert count("epochs_short", pack=True) == (10, 0, 3)
    # 8 | 4 + 3: the examples of 7, of 3 and 2, and of 1 characters; the first rows are full.
    assert count("epochs_mixed", pack=True)[2] == 3


@pytest.mark.parametrize(("epochs", "expected"), [(1, 3), (2, 5), (0.1, 1), (20, 50), (0.4, 1)])
def test_steps_are_rounded_up_once(epochs, expected, capsys):
    data = partial(TaskBatches, "epochs_short", LENGTHS, batch_size=4)
    assert steps(None, epochs, data, T5Config(vocab_size=300)) == expected
    printed = capsys.readouterr().err
    assert f"EPOCHS {epochs:g} x 10 examples / BATCH_SIZE 4 = {expected} steps" in printed


def test_the_arithmetic_is_printed(capsys):
    data = partial(TaskBatches, "epochs_mixed", LENGTHS, batch_size=2, pack=True, shuffle=False)
    assert steps(7, 2, data, T5Config(vocab_size=300)) == 3  # EPOCHS replaces TRAIN_STEPS
    expected = "EPOCHS 2 x 4 examples (2 longer ones left out) in 3 packed rows / BATCH_SIZE 2"
    assert f"{expected} = 3 steps" in capsys.readouterr().err


def test_without_epochs_no_data_are_opened():
    assert steps(7, None, lambda: pytest.fail("opened"), T5Config()) == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None), "neither TRAIN_STEPS nor EPOCHS"),
        ((None, 0.0), r"EPOCHS 0\.0; expected above 0"),
        ((None, -1), "EPOCHS -1"),
    ],
)
def test_what_is_no_length_of_a_run_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        steps(*given, lambda: pytest.fail("opened"), T5Config())


def test_an_epoch_of_nothing_is_refused():
    lengths = {"inputs": 1, "targets": 1}
    data = partial(TaskBatches, "epochs_short", lengths, batch_size=4)
    with pytest.raises(UserError, match=r"no examples \(10 are longer than"):
        steps(None, 1, data, T5Config(vocab_size=300))


def test_run_and_schedule_have_the_same_steps_and_the_data_are_read_once(tmp_path, monkeypatch):
    """A cosine over two epochs of ten examples in batches of four ends at step 5."""
    counted = []
    epoch = TaskBatches.epoch
    monkeypatch.setattr(TaskBatches, "epoch", lambda *a: counted.append(a) or epoch(*a))
    files = ["models/t5_1_1.gin", "runs/train.gin", "objectives/cross_entropy.gin"]
    macros = {
        "MODEL_DIR": str(tmp_path),
        "MIXTURE_OR_TASK_NAME": "epochs_short",
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "BATCH_SIZE": 4,
        "EPOCHS": 2,
    }
    bindings = [f"{name}={value!r}" for name, value in macros.items()]
    bindings += ["OPTIMIZER=@optimizers.adamw()", "SCHEDULE=@optimizers.warmup_cosine()"]
    configuration.parse(files, bindings)
    bound = configuration.bound("loop.train", ("total_steps", "optimizer"))
    assert bound["total_steps"] == 5 and len(counted) == 1
    rates = [float(bound["optimizer"].schedule(step)) for step in (0, 5)]
    np.testing.assert_allclose(rates, [1e-3, 0.0], atol=1e-9)
    gin.clear_config()
    assert T5_SPECIAL_IDS.end == VOCABULARY.eos_id
