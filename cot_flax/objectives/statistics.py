"""What the objectives need of a position's logits: a few numbers in place of V of them.

The teacher's k ids and all other tokens ("the rest") make k + 1 classes; any normaliser of the
softmax is a sum over them. The vocabulary may lie split over a mesh axis: then every device sees
its own columns and the numbers are reduced over that axis, never the logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

ABSENT = -1e9
"""Stands for log 0 where arithmetic must stay finite."""


class Statistics(NamedTuple):
    """Numbers of each position, float32 [...] unless said otherwise; logits are z.

    Attributes:
        chosen: z of the teacher's ids, [..., K]; ABSENT where the entry is absent.
        rest: log sum exp(z) over all other tokens.
        tempered_rest: log sum exp(z / T) over them.
        target: z of the target; None without targets.
        total: sum of all z.
        best: the id of the largest z, the first of them.
    """

    chosen: jax.Array
    rest: jax.Array
    tempered_rest: jax.Array
    target: jax.Array | None
    total: jax.Array
    best: jax.Array

    def classes(self, temperature: float = 1.0) -> jax.Array:
        """Logits of the k + 1 classes whose softmax is that of z / T summed, [..., K + 1]."""
        rest = self.rest if temperature == 1.0 else self.tempered_rest
        return jnp.concatenate([self.chosen / temperature, rest[..., None]], axis=-1)


def statistics_of(logits, targets, ids, *, temperature: float = 1.0, axis=()) -> Statistics:
    """Reduces logits to `Statistics`.

    Args:
        logits: float [..., V], this device's columns where `axis` names mesh axes.
        targets: int32 [...] or None.
        ids: int32 [..., K], below 0 where absent, or None (K = 0).
        temperature: T of `tempered_rest`.
    """
    logits = logits.astype(jnp.float32)
    vocab = _vocab(logits, axis)
    ids = jnp.zeros((*logits.shape[:-1], 0), jnp.int32) if ids is None else ids
    chosen = jnp.where(ids >= 0, _pick(logits, ids, axis), ABSENT)
    # The rest is summed over the other logits themselves: 1 - sum_i q_i would lose it to rounding
    # exactly where the student is sure.
    others = jnp.where(_stored(ids, vocab), ABSENT, logits)
    top_other = lax.pmax(lax.stop_gradient(jnp.max(others, axis=-1)), axis)
    rest = _log_sum_exp(others, top_other, axis)
    tempered_rest = rest
    if temperature != 1.0:
        tempered_rest = _log_sum_exp(others / temperature, top_other / temperature, axis)
    top = jnp.maximum(top_other, jnp.max(chosen, axis=-1, initial=-jnp.inf))
    # Ids as floats (exact below 2^24): an integer minimum is not vectorised on CPUs.
    best = jnp.where(logits == top[..., None], vocab.astype(jnp.float32), jnp.inf)
    return Statistics(
        chosen=chosen,
        rest=rest,
        tempered_rest=tempered_rest,
        target=None if targets is None else _pick(logits, targets[..., None], axis)[..., 0],
        total=lax.psum(jnp.sum(logits, axis=-1), axis),
        best=lax.pmin(lax.stop_gradient(jnp.min(best, axis=-1)), axis),
    )


def logits_gradient(logits, targets, ids, statistics, cotangent, *, temperature=1.0, axis=()):
    """The vector-Jacobian product of `statistics_of`, in one pass over float32 logits.

    Args:
        statistics: of the same arguments.
        cotangent: `Statistics` of gradients.
    """
    vocab = _vocab(logits, axis)
    ids = jnp.zeros((*logits.shape[:-1], 0), jnp.int32) if ids is None else ids
    gradient = jnp.exp(logits - statistics.rest[..., None]) * cotangent.rest[..., None]
    if temperature != 1.0:
        share = jnp.exp(logits / temperature - statistics.tempered_rest[..., None])
        gradient += share * cotangent.tempered_rest[..., None] / temperature
    for k in range(ids.shape[-1]):
        here = _where(ids[..., k], vocab)  # never where absent
        gradient = jnp.where(here, cotangent.chosen[..., k, None], gradient)
    gradient += cotangent.total[..., None]
    here = _where(targets, vocab)
    return gradient + jnp.where(here, cotangent.target[..., None], 0.0)


def _vocab(logits, axis):
    """The ids of this device's columns, int32 [V]."""
    columns = logits.shape[-1]
    return lax.axis_index(axis) * columns + jnp.arange(columns, dtype=jnp.int32)


def _where(ids, vocab):
    """Which column is the id's: [...] -> bool [..., V]."""
    return ids[..., None] == jnp.expand_dims(vocab, tuple(range(ids.ndim)))


def _pick(logits, ids, axis):
    """The logits of ids, [..., K], from whichever device holds them."""
    columns = logits.shape[-1]
    places = ids - lax.axis_index(axis) * columns
    found = jnp.take_along_axis(logits, jnp.clip(places, 0, columns - 1), axis=-1)
    return lax.psum(jnp.where((places >= 0) & (places < columns), found, 0.0), axis)


def _stored(ids, vocab):
    """Whether a token is one of the k, [..., V]; a loop, since a reduction may hold [..., K, V]."""
    stored = jnp.zeros((*ids.shape[:-1], vocab.size), bool)
    for k in range(ids.shape[-1]):
        stored |= _where(ids[..., k], vocab)
    return stored


def _log_sum_exp(x, top, axis):
    return jnp.log(lax.psum(jnp.sum(jnp.exp(x - top[..., None]), axis=-1), axis)) + top
