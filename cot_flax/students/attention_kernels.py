"""Softmax attention with T5's bias: the one place that picks who computes it.

`xla` runs everywhere; `cudnn` is NVIDIA's fused kernel, `flash` the Pallas kernel of TPUs. All of
them give the same up to rounding, the gradient of the learned position bias included. The two
kernels know no dropout and serve only some shapes; XLA computes what they do not.

Letters: B batch, T queries, S keys, H heads, C width of a head.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from flax.linen import partitioning
from jax.sharding import PartitionSpec as P

MASKED = -1e10
"""Added to the logits of forbidden keys; finite, so that a row with no key at all stays finite."""

BLOCK = 128
"""Lengths that the TPU kernel takes are multiples of it."""


@struct.dataclass
class Bias:
    """What decides, beside queries and keys, who looks at whom.

    Position and mask are kept apart until a layer adds them: their sum and its gradient are
    [B, H, T, S], the position's own [1, H, T, S].

    Attributes:
        position: float32 [1, H, T, S], the learned bias; None in cross attention.
        query_segments, key_segments: int32 [B, T] and [B, S]; a query sees its own segment alone
            (packed examples; padding is segment 0).
        causal: a query does not see later keys either.
    """

    position: jax.Array | None
    query_segments: jax.Array
    key_segments: jax.Array
    causal: bool = struct.field(pytree_node=False, default=False)

    def mask(self) -> jax.Array:
        """Returns float32 [B, 1, T, S]: 0 where a query may look, else MASKED."""
        allowed_BTS = same_segment(self.query_segments, self.key_segments)
        if self.causal:
            allowed_BTS &= jnp.tril(jnp.ones(allowed_BTS.shape[1:], bool))[None]
        return mask_bias(allowed_BTS)

    def dense(self) -> jax.Array:
        """Returns position and mask as one float32 array, broadcastable to [B, H, T, S]."""
        return self.mask() if self.position is None else self.position + self.mask()


def mask_bias(allowed: jax.Array) -> jax.Array:
    """Turns a boolean [B, T, S] (true: the query may look) into an additive [B, 1, T, S]."""
    return jnp.where(allowed, 0.0, MASKED)[:, None].astype(jnp.float32)


def same_segment(query_segments_BT: jax.Array, key_segments_BS: jax.Array) -> jax.Array:
    """Returns boolean [B, T, S]: same example (padding is segment 0)."""
    return query_segments_BT[:, :, None] == key_segments_BS[:, None, :]


def attend(
    query_BTHC,
    keys_BSHC,
    values_BSHC,
    bias: Bias,
    *,
    wanted: str = "auto",
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Returns softmax(q k + bias) v, [B, T, H, C], in the type of the values.

    Args:
        wanted: a value of `T5Config.attention`.
        dropout: of the weights [B, H, T, S].
    """
    arrays = query_BTHC, keys_BSHC, values_BSHC
    chosen = "xla" if dropout else choose(wanted, _platform(), *arrays[:2], bias)
    if chosen == "xla":
        return xla(*arrays, bias, dropout)
    return {"cudnn": cudnn, "flash": flash}[chosen](*arrays, bias)


def _platform() -> str:
    """Of the mesh, whose devices need not be of this machine; without one, of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def choose(wanted: str, platform: str, query_BTHC, keys_BSHC, bias: Bias) -> str:
    """Returns "xla", "cudnn" or "flash": what was wanted where it can serve, else XLA.

    "auto" is cuDNN on GPUs. On TPUs it is the flash kernel for cross attention, and XLA where there
    is a position bias: the kernel reads that bias, and writes its gradient, as whole [B, H, T, S].
    """
    if wanted == "auto":
        on_tpu = "flash" if bias.position is None else "xla"
        wanted = {"gpu": "cudnn", "tpu": on_tpu}.get(platform, "xla")
    lengths = query_BTHC.shape[1], keys_BSHC.shape[1]
    head_dim = query_BTHC.shape[-1]
    half = query_BTHC.dtype in (jnp.bfloat16, jnp.float16)
    # On Hopper cuDNN 9.19 and 9.20 fill up the last 128 keys with scores of 0: where only 64 are
    # there, queries that see no key, such as padding's, get NaN gradients (pytorch issue 196678).
    even = not any(n % 2 for n in lengths) and lengths[1] % 128 != 64
    serves = {
        "xla": True,
        "cudnn": half and even and not head_dim % 8 and head_dim <= 128,
        "flash": not any(n % BLOCK for n in lengths),
    }
    return wanted if serves[wanted] else "xla"


def xla(query_BTHC, keys_BSHC, values_BSHC, bias: Bias, dropout=None) -> jax.Array:
    """Logits and softmax in float32, as matrices that the compiler fuses as it likes."""
    logits_BHTS = jnp.einsum(
        "bthc,bshc->bhts", query_BTHC, keys_BSHC, preferred_element_type=jnp.float32
    )
    if bias.position is not None:
        logits_BHTS = _add_position(logits_BHTS, bias.position)
    weights_BHTS = jax.nn.softmax(logits_BHTS + bias.mask()).astype(values_BSHC.dtype)
    if dropout:
        weights_BHTS = dropout(weights_BHTS)
    return jnp.einsum("bhts,bshc->bthc", weights_BHTS, values_BSHC)


@jax.custom_vjp
def _add_position(logits_BHTS, position_1HTS):
    return logits_BHTS + position_1HTS


def _add_position_backward(_, gradient_BHTS):
    # A product with ones: XLA's CPU backend takes 60 times as long for a sum over the first axis.
    ones_B = jnp.ones(gradient_BHTS.shape[0])
    return gradient_BHTS, jnp.einsum("b,bhts->hts", ones_B, gradient_BHTS)[None]


_add_position.defvjp(lambda *both: (_add_position(*both), None), _add_position_backward)


def cudnn(query_BTHC, keys_BSHC, values_BSHC, bias: Bias, implementation="cudnn") -> jax.Array:
    """cuDNN's kernel: position and mask as one bias, logits without 1/sqrt(C)."""
    shape = query_BTHC.shape[0], query_BTHC.shape[2], query_BTHC.shape[1], keys_BSHC.shape[1]
    bias_BHTS = jnp.broadcast_to(bias.dense(), shape).astype(query_BTHC.dtype)
    return jax.nn.dot_product_attention(
        query_BTHC,
        keys_BSHC,
        values_BSHC,
        bias_BHTS,
        scale=1.0,
        implementation=implementation,
    )


def flash(query_BTHC, keys_BSHC, values_BSHC, bias: Bias) -> jax.Array:
    """The Pallas kernel of TPUs, a shard of batch and heads on every device of the mesh."""
    spec = partitioning.logical_to_mesh_axes(("batch", "heads")) or P()
    batch, heads = spec if len(spec) == 2 else (None, None)
    rows, BTHC = P(batch), P(batch, None, heads)
    position = None if bias.position is None else P(None, heads)
    places = Bias(position, rows, rows, bias.causal)  # type: ignore[arg-type]  # specs, not arrays
    if jax.sharding.get_abstract_mesh().empty:
        return _flash(query_BTHC, keys_BSHC, values_BSHC, bias)
    sharded = jax.shard_map(
        _flash, in_specs=(BTHC, BTHC, BTHC, places), out_specs=BTHC, check_vma=False
    )
    return sharded(query_BTHC, keys_BSHC, values_BSHC, bias)


def _flash(query_BTHC, keys_BSHC, values_BSHC, bias: Bias) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import flash_attention

    BHTC = partial(jnp.swapaxes, axis1=1, axis2=2)
    B, T, H, _ = query_BTHC.shape
    ab = bias.position
    if ab is not None:
        ab = jnp.broadcast_to(ab, (B, H, T, keys_BSHC.shape[1]))
    mixed_BHTC = flash_attention.flash_attention(
        *map(BHTC, (query_BTHC, keys_BSHC, values_BSHC)),
        ab=ab,
        segment_ids=flash_attention.SegmentIds(bias.query_segments, bias.key_segments),
        causal=bias.causal,
    )
    return BHTC(mixed_BHTC)
