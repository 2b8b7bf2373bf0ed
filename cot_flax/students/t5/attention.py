"""T5's attention: no 1/sqrt(C) scaling, a learned relative-position bias, float32 softmax.

Letters: B batch, T queries, S keys, D width, H heads, C width of a head, X = H times C; Q
queries of a position table.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes, with_sharding_constraint
from jax.typing import DTypeLike

from cot_flax.students.attention_kernels import MASKED, Bias, attend, mask_bias, same_segment
from cot_flax.students.lora import Lora, adapt

__all__ = [
    "MASKED",
    "Attention",
    "Bias",
    "Dense",
    "RelativePositionBias",
    "mask_bias",
    "relative_position_bucket",
    "same_segment",
]


def relative_position_bucket(
    distance, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
):
    """Maps key position minus query position to a bucket (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the other half grow logarithmically up to
    `max_distance`; everything farther shares the last one. In NumPy, so that the logarithm is the
    same on every accelerator and the table is a constant of the program.

    Args:
        distance: int array of any shape, in tokens.

    Returns:
        int32 array of that shape, in [0, num_buckets).
    """
    distance = np.asarray(distance)
    bucket = np.zeros_like(distance, dtype=np.int32)
    if bidirectional:
        num_buckets //= 2
        bucket += np.where(distance > 0, num_buckets, 0).astype(np.int32)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = num_buckets // 2
    log_ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact + np.float32(1e-7))
    coarse = exact + (log_ratio / math.log(max_distance / exact) * (num_buckets - exact))
    coarse = np.minimum(coarse.astype(np.int32), num_buckets - 1)
    return bucket + np.where(distance < exact, distance, coarse).astype(np.int32)


class RelativePositionBias(nn.Module):
    """The learned bias of every (query, key) pair, of all layers of a stack or of one."""

    num_heads: int
    bidirectional: bool
    dtype: DTypeLike

    def setup(self):
        self.rel_embedding = param_with_axes(
            "rel_embedding",
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            (self.num_heads, 32),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
            module=self,
        )

    def __call__(self, queries: int, keys: int) -> jax.Array:
        """Returns [1, H, queries, keys]."""
        distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
        return self._lookup(relative_position_bucket(distance, bidirectional=self.bidirectional))

    def last_row(self, keys: int) -> jax.Array:
        """Returns [H, keys]: the bias of a query at the last of the keys."""
        distance = np.arange(1 - keys, 1)[None]
        bucket = relative_position_bucket(distance, bidirectional=self.bidirectional)
        return self._lookup(bucket)[0, :, 0]

    def _lookup(self, bucket_QS) -> jax.Array:
        return jnp.asarray(self.rel_embedding, self.dtype)[:, bucket_QS][None]


class Dense(nn.Module):
    """A bias-free projection whose kernel is stored as one matrix, as T5X stores it.

    `shape` is the shape of the output's last axes: `(D,)`, or `(H, C)` for heads. With `lora` an
    adapter is added to the product.
    """

    shape: tuple[int, ...]
    axes: tuple[str, str]
    dtype: DTypeLike
    init_scale: float = 1.0
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        init = nn.initializers.variance_scaling(self.init_scale, "fan_in", "normal")
        matrix = (x.shape[-1], math.prod(self.shape))
        kernel = param_with_axes("kernel", init, matrix, jnp.float32, axes=self.axes)
        # One axis of rows: with two, XLA copies the kernel gradient's operands on CPUs.
        rows = x.reshape(-1, matrix[0])
        y = (rows.astype(self.dtype) @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], -1)
        if self.lora is not None:
            y += adapt(x, matrix[1], self.axes, self.lora, self.dtype, deterministic)
        return y.reshape(*x.shape[:-1], *self.shape)


class Attention(nn.Module):
    """Multi-head attention whose keys and values are made apart from the queries.

    A decoder makes the keys and values of the encoder's output once a prompt.
    """

    num_heads: int
    head_dim: int
    features: int
    dropout_rate: float
    dtype: DTypeLike
    lora: Lora | None = None
    implementation: str = "auto"

    def setup(self):
        heads = (self.num_heads, self.head_dim)
        inward, outward = ("embed", "joined_kv"), ("joined_kv", "embed")
        # The missing 1/sqrt(C) of the logits is folded into the query's initial scale.
        self.query = self._dense("query", heads, inward, init_scale=1.0 / self.head_dim)
        self.key = self._dense("key", heads, inward)
        self.value = self._dense("value", heads, inward)
        self.out = self._dense("out", (self.features,), outward)
        self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

    def _dense(self, name, shape, axes, init_scale=1.0):
        adapted = self.lora is not None and name in self.lora.targets
        return Dense(shape, axes, self.dtype, init_scale, self.lora if adapted else None)

    def keys_values(self, x_BSD: jax.Array, deterministic=True) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values, each [B, S, H, C]."""
        keys_BSHC, values_BSHC = self.key(x_BSD, deterministic), self.value(x_BSD, deterministic)
        return _constrain_heads(keys_BSHC), _constrain_heads(values_BSHC)

    def __call__(self, x_BTD, keys_BSHC, values_BSHC, bias: Bias, deterministic=True) -> jax.Array:
        """Attends from `x_BTD`; returns [B, T, D]."""
        query_BTHC = _constrain_heads(self.query(x_BTD, deterministic))
        drops = not deterministic and self.dropout_rate > 0
        mixed_BTHC = attend(
            query_BTHC,
            keys_BSHC,
            values_BSHC,
            bias,
            wanted=self.implementation,
            dropout=partial(self.dropout, deterministic=False) if drops else None,
        )
        mixed_BTX = mixed_BTHC.reshape(*x_BTD.shape[:-1], self.num_heads * self.head_dim)
        return self.out(mixed_BTX, deterministic)


def _constrain_heads(x: jax.Array) -> jax.Array:
    return with_sharding_constraint(x, ("batch", "length", "heads", "kv"))
