"""Tests of T5's attention, its position buckets and its masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.students.t5.attention import (
    MASKED,
    Attention,
    Bias,
    Dense,
    RelativePositionBias,
    mask_bias,
    relative_position_bucket,
    same_segment,
)

DISTANCES = range(-600, 601)
both_directions = pytest.mark.parametrize("bidirectional", [True, False])


def bucket_by_integers(distance, bidirectional):
    """T5's buckets without logarithms: powers of integers are compared instead.

    Of n buckets for a direction the first n/2 hold one distance each; the bucket n/2 + j starts at
    (n/2) * (128 / (n/2))^(j / (n/2)), up to bucket n - 1.
    """
    if bidirectional:
        # From 8 on: d >= 8 * 16^(j/8), or d^2 >= 64 * 2^j.
        first = 16 if distance > 0 else 0
        d, exact = abs(distance), 8
        reached = [j for j in range(8) if d**2 >= 64 * 2**j]
    else:
        # From 16 on: d >= 16 * 8^(j/16), or d^16 >= 16^16 * 8^j.
        first = 0
        d, exact = max(-distance, 0), 16
        reached = [j for j in range(16) if d**16 >= 16**16 * 8**j]
    return first + (d if d < exact else exact + max(reached))


@both_directions
def test_buckets_at_all_distances(bidirectional):
    buckets = relative_position_bucket(np.array(DISTANCES), bidirectional=bidirectional)
    assert buckets.dtype == np.int32
    assert buckets.tolist() == [bucket_by_integers(d, bidirectional) for d in DISTANCES]


@pytest.mark.parametrize(
    ("distance", "bidirectional", "bucket"),
    [
        (0, True, 0),
        (-7, True, 7),
        (7, True, 23),
        (-11, True, 8),
        (-12, True, 9),
        (-90, True, 14),
        (-91, True, 15),
        (91, True, 31),
        (5, False, 0),  # the future
        (-15, False, 15),
        (-18, False, 16),
        (-19, False, 17),
        (-128, False, 31),
    ],
)
def test_buckets_by_hand(distance, bidirectional, bucket):
    assert relative_position_bucket([distance], bidirectional=bidirectional) == [bucket]


@both_directions
def test_bias_depends_on_the_bucket_alone_and_the_last_row_is_its(bidirectional):
    module = RelativePositionBias(2, bidirectional, jnp.float32)
    table_HR = np.arange(64.0).reshape(2, 32)
    variables = {"params": {"rel_embedding": table_HR}}
    bias = np.asarray(module.apply(variables, 150, 150))
    assert bias.shape == (1, 2, 150, 150)
    for query, key in [(0, 0), (3, 5), (149, 0), (20, 149)]:
        bucket = bucket_by_integers(key - query, bidirectional)
        np.testing.assert_array_equal(bias[0, :, query, key], table_HR[:, bucket])
    last_row = module.apply(variables, 150, method="last_row")
    np.testing.assert_array_equal(last_row, bias[0, :, -1])


def test_mask_bias():
    bias = mask_bias(jnp.array([[[True, False], [False, True]]]))
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, np.float32([[[[0, MASKED], [MASKED, 0]]]]))
    assert np.isfinite(MASKED)


def test_same_segment():
    allowed = same_segment(jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 2, 0]]))
    expected = [[[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]
    np.testing.assert_array_equal(allowed, np.array(expected, bool))


def test_dense_is_one_matrix_without_bias():
    kernel = np.arange(12.0).reshape(2, 6)
    y = Dense((3, 2), ("embed", "joined_kv"), jnp.float32).apply(
        {"params": {"kernel": kernel}}, jnp.array([[1.0, 10.0]])
    )
    np.testing.assert_array_equal(y, [[[60, 71], [82, 93], [104, 115]]])


def test_attention_against_numpy():
    """softmax(q k + bias) v, with no 1/sqrt(C); a masked key has no weight at all."""
    rng = np.random.default_rng(0)
    x_BTD, y_BSD = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 4, 5))
    kernels = {name: rng.normal(size=(5, 6)) for name in ("query", "key", "value")}
    out = rng.normal(size=(6, 5))
    position_BHTS = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    bias = Bias(position_BHTS, np.ones((2, 3), int), np.array([[1, 1, 0, 1]] * 2))
    module = Attention(num_heads=2, head_dim=3, features=5, dropout_rate=0.0, dtype=jnp.float32)
    params = {name: {"kernel": kernel} for name, kernel in (kernels | {"out": out}).items()}

    def attend(module, x, y, bias):
        return module(x, *module.keys_values(y), bias)

    result = module.apply({"params": params}, x_BTD, y_BSD, bias, method=attend)

    query = (x_BTD @ kernels["query"]).reshape(2, 3, 2, 3)
    key, value = ((y_BSD @ kernels[name]).reshape(2, 4, 2, 3) for name in ("key", "value"))
    weights = np.exp(np.einsum("bthc,bshc->bhts", query, key) + position_BHTS)
    weights[..., 2] = 0
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhts,bshc->bthc", weights, value).reshape(2, 3, 6) @ out
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
