import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_flax.data import packing
from cot_flax.model.losses import Objective
from cot_flax.model.t5 import T5, T5Config
from cot_flax.training import step

LENGTHS = {"inputs": 12, "targets": 9}


def example(inputs, targets, top_k=0):
    made = {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32)}
    if top_k:
        made["teacher_top_ids"] = np.stack([made["targets"] + k for k in range(top_k)], axis=1)
        made["teacher_top_logprobs"] = np.full((len(targets), top_k), -2.0, np.float32)
    return made


@st.composite
def streams(draw):
    sizes = st.tuples(st.integers(1, LENGTHS["inputs"]), st.integers(1, LENGTHS["targets"]))
    return [
        example(range(10 + i, 10 + i + s), range(50 + i, 50 + i + t))
        for i, (s, t) in enumerate(draw(st.lists(sizes, max_size=40)))
    ]


@given(streams(), st.integers(1, 6))
@settings(deadline=None)
def test_packing_loses_nothing_fits_and_is_deterministic(stream, open_rows):
    rows = list(packing.pack(stream, LENGTHS, open_rows=open_rows))
    again = list(packing.pack(stream, LENGTHS, open_rows=open_rows))
    places = [[id(e) for e in row] for row in rows]
    assert places == [[id(e) for e in row] for row in again]
    # Every example once, and in the order of the stream within each row.
    assert sorted(itertools.chain(*places)) == sorted(map(id, stream))
    order = {id(e): i for i, e in enumerate(stream)}
    for row, ids in zip(rows, places, strict=True):
        assert sorted(ids, key=order.get) == ids
        for side, limit in LENGTHS.items():
            assert sum(len(e[side]) for e in row) <= limit


@given(streams())
@settings(deadline=None)
def test_the_first_row_with_room_on_both_sides_is_filled(stream):
    rows = list(packing.pack(stream, LENGTHS, open_rows=len(stream) + 1))
    order = {id(e): i for i, e in enumerate(stream)}
    for place, row in enumerate(rows):
        for e in row:
            # No earlier row had room when it came.
            for earlier in rows[:place]:
                then = [x for x in earlier if order[id(x)] < order[id(e)]]
                assert any(
                    sum(len(x[side]) for x in then) + len(e[side]) > limit
                    for side, limit in LENGTHS.items()
                )


def test_a_row_is_given_out_as_soon_as_the_open_ones_are_full():
    full = [example(range(12), range(9)) for _ in range(4)]
    taken = iter(full)
    rows = packing.pack(taken, LENGTHS, open_rows=2)
    assert next(rows)[0] is full[0]
    assert next(taken) is full[3]  # three were read: two open, one that found no room


def test_batched_leaves_an_incomplete_group_out():
    rows = [[i] for i in range(7)]
    assert list(packing.batched(rows, 3)) == [[[0], [1], [2]], [[3], [4], [5]]]


TWO_IN_A_ROW = [
    [example([11, 12, 13], [21, 1], top_k=2), example([14], [22, 23, 1], top_k=2)],
    [example([15, 16], [24, 1], top_k=2)],
]


def test_the_layout_of_a_packed_batch():
    batch = packing.to_batch(TWO_IN_A_ROW, {"inputs": 6, "targets": 6}, top_k=2, packed=True)
    expected = {
        "encoder_input_tokens": [[11, 12, 13, 14, 0, 0], [15, 16, 0, 0, 0, 0]],
        "encoder_segment_ids": [[1, 1, 1, 2, 0, 0], [1, 1, 0, 0, 0, 0]],
        "encoder_positions": [[0, 1, 2, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
        "decoder_target_tokens": [[21, 1, 22, 23, 1, 0], [24, 1, 0, 0, 0, 0]],
        "decoder_input_tokens": [[0, 21, 0, 22, 23, 0], [0, 24, 0, 0, 0, 0]],
        "decoder_segment_ids": [[1, 1, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0]],
        "decoder_positions": [[0, 1, 0, 1, 2, 0], [0, 1, 0, 0, 0, 0]],
        "decoder_loss_weights": [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]],
        "teacher_top_ids": [
            [[21, 22], [1, 2], [22, 23], [23, 24], [1, 2], [0, 0]],
            [[24, 25], [1, 2], [0, 0], [0, 0], [0, 0], [0, 0]],
        ],
        "teacher_top_logprobs": [
            [[-2, -2]] * 5 + [[0, 0]],
            [[-2, -2]] * 2 + [[0, 0]] * 4,
        ],
    }
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value, err_msg=name)
    floats = {"decoder_loss_weights", "teacher_top_logprobs"}
    for name, value in batch.items():
        assert value.dtype == (np.float32 if name in floats else np.int32), name


def test_a_batch_of_single_examples_has_no_segments_and_no_teacher_without_k():
    rows = [[TWO_IN_A_ROW[0][0]], [TWO_IN_A_ROW[1][0]]]
    batch = packing.to_batch(rows, {"inputs": 3, "targets": 3}, top_k=0, packed=False)
    expected = {
        "encoder_input_tokens": [[11, 12, 13], [15, 16, 0]],
        "decoder_target_tokens": [[21, 1, 0], [24, 1, 0]],
        "decoder_input_tokens": [[0, 21, 0], [0, 24, 0]],
        "decoder_loss_weights": [[1, 1, 0], [1, 1, 0]],
    }
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value, err_msg=name)


@pytest.fixture(scope="module")
def student():
    jax.config.update("jax_disable_most_optimizations", True)  # compiled once and run once
    model = T5(
        T5Config(
            vocab_size=64,
            emb_dim=16,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
            head_dim=4,
            mlp_dim=32,
        )
    )
    token = np.zeros((1, 1), np.int32)
    yield model, jax.jit(model.init)(jax.random.key(0), token, token, token)["params"]
    jax.config.update("jax_disable_most_optimizations", False)


def test_packing_changes_no_sum_of_the_loss(student):
    model, params = student
    objective = Objective(kl_weight=0.7)
    rng = np.random.default_rng(0)
    stream = []
    for _ in range(9):
        s, t = rng.integers(1, [7, 5])
        made = example(rng.integers(3, 60, s), [*rng.integers(3, 60, t - 1), 1], top_k=3)
        made["teacher_top_ids"][::2] = 0  # every other position has no teacher
        stream.append(made)
    rows = list(packing.pack(stream, LENGTHS))
    assert len(rows) < len(stream) / 2
    sums = jax.jit(lambda batch: step.loss_sums(model, objective, params, batch)[1])
    packed = sums(packing.to_batch(rows, LENGTHS, top_k=3, packed=True))
    alone = sums(packing.to_batch([[e] for e in stream], LENGTHS, top_k=3, packed=False))
    assert packed["tokens"] == sum(len(e["targets"]) for e in stream)
    assert packed.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(packed[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
