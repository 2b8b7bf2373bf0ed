"""A store under T5X's own data loading; runs where a T5X checkout is importable."""

import numpy as np
import pytest
import seqio

utils = pytest.importorskip("t5x.utils", reason="no T5X on PYTHONPATH", exc_type=ImportError)

LENGTHS = {"inputs": 512, "targets": 72}


@pytest.mark.parametrize("task", ["stories_teacher_zero_shot_cot", "stories_teacher_cot_mix"])
def test_use_cached_serves_the_same_batches_as_the_source(bound_store, task):
    batches = []
    for use_cached in (False, True):
        config = utils.DatasetConfig(
            mixture_or_task_name=task,
            task_feature_lengths=LENGTHS,
            split="train",
            batch_size=4,
            shuffle=False,
            seed=0,
            use_cached=use_cached,
            pack=False,
        )
        dataset = utils.get_dataset(config, 0, 1, seqio.EncDecFeatureConverter)
        batches.append(next(dataset.take(1).as_numpy_iterator()))
    assert batches[0]["decoder_target_tokens"].shape == (4, LENGTHS["targets"])
    assert batches[0]["decoder_target_tokens"].any(axis=1).all()
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
