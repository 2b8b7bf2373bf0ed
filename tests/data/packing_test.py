import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_flax.data import packing
from cot_flax.objectives.losses import Objective
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.text.tokenizers import T5_SPECIAL_IDS
from cot_flax.training import step

LAYOUT = EncoderDecoder()
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


def places(rows, stream):
    """The rows, by the places of their examples in the stream."""
    place = {id(e): i for i, e in enumerate(stream)}
    return [[place[id(e)] for e in row] for row in rows]


@given(streams(), st.integers(1, 6))
@settings(deadline=None)
def test_packing_loses_nothing_fits_and_is_deterministic(stream, waiting):
    rows = list(packing.pack(stream, LAYOUT, LENGTHS, waiting=waiting))
    found = places(rows, stream)
    assert found == places(packing.pack(stream, LAYOUT, LENGTHS, waiting=waiting), stream)
    assert sorted(itertools.chain(*found)) == list(range(len(stream)))
    for row in rows:
        for side, limit in LENGTHS.items():
            assert sum(len(e[side]) for e in row) <= limit


@given(streams(), st.integers(1, 6))
@settings(deadline=None)
def test_the_first_comer_opens_a_row_and_the_best_fit_joins(stream, waiting):
    found = places(packing.pack(stream, LAYOUT, LENGTHS, waiting=waiting), stream)
    line, coming = list(range(len(stream)))[:waiting], list(range(len(stream)))[waiting:]
    for row in found:
        assert row[0] == min(line)
        room = dict(LENGTHS)
        for place in row:
            assert waste(stream[place], room) == min(waste(stream[i], room) for i in line) or (
                place == row[0]
            )
            line.remove(place)
            line += [coming.pop(0)] if coming else []
            room = {side: room[side] - len(stream[place][side]) for side in room}
        assert all(waste(stream[i], room) == float("inf") for i in line)


def waste(example, room):
    """What stays free on either side, in shares, squared; infinite where it does not fit."""
    left = {side: room[side] - len(example[side]) for side in room}
    if min(left.values()) < 0:
        return float("inf")
    return sum(Fraction(left[side], LENGTHS[side]) ** 2 for side in left)


@given(streams(), st.integers(1, 6))
@settings(deadline=None)
def test_no_example_is_held_back_for_more_rows_than_there_are_waiting(stream, waiting):
    found = places(packing.pack(stream, LAYOUT, LENGTHS, waiting=waiting), stream)
    left = [number for number, row in enumerate(found) for _ in row]
    for number, row in enumerate(found):
        for place in row:
            # Whoever made room for it left in that row.
            came = left[place - waiting] if place >= waiting else 0
            assert came <= number <= came + waiting


def test_rows_are_given_out_before_the_stream_ends():
    full = [example(range(12), range(9)) for _ in range(5)]
    taken = iter(full)
    rows = packing.pack(taken, LAYOUT, LENGTHS, waiting=2)
    assert next(rows)[0] is full[0]
    assert next(taken) is full[3]  # three were read: two that waited, and one more for the row


def mixture(rng, n):
    """Lengths [n, 2] like those of GSM8K in four formats: log-normal, by medians and spreads."""
    few_shot, cot = rng.random(n) < 0.5, rng.random(n) < 0.8
    inputs = np.where(few_shot, np.where(cot, 631, 335), 62) * np.exp(
        np.where(few_shot, 0.16, 0.32) * rng.normal(size=n)
    )
    targets = np.where(cot, 67 * np.exp(0.45 * rng.normal(size=n)), 5)
    return np.stack([inputs.clip(20, 1024), targets.clip(5, 256)], axis=1).astype(int)


@pytest.mark.parametrize(("S", "T", "fewer"), [(1024, 256, 1.2), (2048, 512, 1.15)])
def test_few_rows_for_a_mixture_of_formats(S, T, fewer):
    limit = np.array([S, T])
    sizes = mixture(np.random.default_rng(0), 4000)
    stream = [example(np.zeros(s), np.zeros(t)) for s, t in sizes]
    rows = len(list(packing.pack(stream, LAYOUT, {"inputs": S, "targets": T})))
    # No fewer rows than tokens fill, nor than there are examples of more than half a row.
    bound = max(np.ceil(sizes.sum(0) / limit).max(), (2 * sizes > limit).sum(0).max())
    assert bound <= rows <= 1.03 * bound
    next_fit, used = 1, np.zeros(2, int)
    for size in sizes:
        fits = (used + size <= limit).all()
        next_fit, used = (next_fit, used + size) if fits else (next_fit + 1, size)
    assert next_fit >= fewer * rows


def test_batched_leaves_an_incomplete_group_out():
    rows = [[i] for i in range(7)]
    assert list(packing.batched(rows, 3)) == [[[0], [1], [2]], [[3], [4], [5]]]


def lay_out(rows, lengths, **settings):
    return LAYOUT.to_batch(rows, lengths, T5_SPECIAL_IDS, **settings)


TWO_IN_A_ROW = [
    [example([11, 12, 13], [21, 1], top_k=2), example([14], [22, 23, 1], top_k=2)],
    [example([15, 16], [24, 1], top_k=2)],
]


def test_the_layout_of_a_packed_batch():
    batch = LAYOUT.to_batch(
        TWO_IN_A_ROW, {"inputs": 6, "targets": 6}, T5_SPECIAL_IDS, top_k=2, packed=True
    )
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
            [[21, 22], [1, 2], [22, 23], [23, 24], [1, 2], [-1, -1]],
            [[24, 25], [1, 2], [-1, -1], [-1, -1], [-1, -1], [-1, -1]],
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
    batch = LAYOUT.to_batch(
        rows, {"inputs": 3, "targets": 3}, T5_SPECIAL_IDS, top_k=0, packed=False
    )
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
    model = T5Student(
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
    yield model, jax.jit(model.init)(jax.random.key(0))["params"]
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
    rows = list(packing.pack(stream, LAYOUT, LENGTHS))
    assert len(rows) < len(stream) / 2
    sums = jax.jit(lambda batch: step.loss_sums(model, objective, params, batch)[1])
    packed = sums(lay_out(rows, LENGTHS, top_k=3, packed=True))
    alone = sums(lay_out([[e] for e in stream], LENGTHS, top_k=3, packed=False))
    assert packed["tokens"] == sum(len(e["targets"]) for e in stream)
    assert packed.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(packed[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
