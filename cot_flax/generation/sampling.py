"""Draws tokens: temperature, top-k, then top-p of what top-k left, as transformers orders them.

A draw inverts the cumulative distribution, for which a token needs one uniform number; Gumbel noise
would take one for every entry of the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 128  # of the vocabulary: a draw finds its block first


class Sampling(NamedTuple):
    """How tokens are chosen; numbers that may change without compiling anew.

    `temperature` and `top_p` may be float32 [B], of each prompt its own.

    Attributes:
        temperature: 0 is greedy; otherwise tokens are drawn from softmax(logits / temperature).
        top_k: only the k likeliest tokens are drawn; 0 is off.
        top_p: only the fewest likeliest tokens that together have this probability; 1 is off.
            Tokens as likely as the last one of a cut stay, too.
        no_repeat_ngram: a token that would write so many tokens in a row a second time is never
            chosen; 0 is off. The start token counts as written, a prompt does not.
        min_new_tokens: so many tokens come before the end.
    """

    temperature: float | jax.Array = 0.0
    top_k: int = 0
    top_p: float | jax.Array = 1.0
    no_repeat_ngram: int = 0
    min_new_tokens: int = 0


def choose(logits_BNV, sampling: Sampling, keys_B, positions_B) -> jax.Array:
    """Returns tokens, int32 [B, N].

    A sample's token depends on its logits, its prompt's key, its position and its place among the
    N alone; probabilities are resolved to 2^-23.
    """

    # A draw is compiled in any case; greedy decoding skips it at run time, so that one program
    # serves both.
    def drawn():
        uniforms_BN = _uniforms(keys_B, positions_B, logits_BNV.shape[1])
        weights_BNV = _weights(logits_BNV, sampling)
        return jax.vmap(jax.vmap(_invert))(weights_BNV, uniforms_BN)

    draws = jnp.asarray(sampling.temperature > 0)
    if not draws.ndim:
        return jax.lax.cond(draws, drawn, lambda: _likeliest(logits_BNV))
    likeliest_BN = _likeliest(logits_BNV)
    return jax.lax.cond(
        draws.any(),
        lambda: jnp.where(draws[:, None], drawn(), likeliest_BN),
        lambda: likeliest_BN,
    )


def forbid(logits_BNV, sampling: Sampling, start_B, output_BNT, ages_B, end: int) -> jax.Array:
    """Returns the logits with -inf for what `no_repeat_ngram` and `min_new_tokens` forbid.

    As transformers' processors do, before temperature and cuts (`NoRepeatNGramLogitsProcessor`,
    `MinNewTokensLengthLogitsProcessor`).

    Args:
        start_B: int32, the token that was fed first.
        output_BNT: int32, of which the first `ages_B` are written.
        end: the end id.
    """
    # Both are run time decisions, so that one program serves all settings.
    logits_BNV = jax.lax.cond(
        sampling.no_repeat_ngram > 0,
        lambda z: _without_repeats(z, sampling.no_repeat_ngram, start_B, output_BNT, ages_B),
        lambda z: z,
        logits_BNV,
    )
    ends_V = jnp.arange(logits_BNV.shape[-1]) == end
    early_B11 = (ages_B < sampling.min_new_tokens)[:, None, None]
    return jnp.where(early_B11 & ends_V[None, None], -jnp.inf, logits_BNV)


def _without_repeats(logits_BNV, n, start_B, output_BNT, ages_B):
    """Forbids the token that followed an earlier occurrence of the last n - 1 tokens."""
    B, N, T = output_BNT.shape
    starts_BN1 = jnp.broadcast_to(start_B[:, None, None], (B, N, 1))
    written_BNL = jnp.concatenate([starts_BN1, output_BNT], axis=2)
    places_L = jnp.arange(T + 1)

    def narrow(back, same_BNL):
        # Place l is where an n-gram ended before; its token `back` places earlier is compared
        # with the one that stands as far before the token to come.
        last_B11 = jnp.maximum(ages_B + 1 - back, 0)[:, None, None]
        last_BN1 = jnp.take_along_axis(written_BNL, last_B11, axis=2)
        return same_BNL & (jnp.roll(written_BNL, back, axis=2) == last_BN1)

    whole_BL = (places_L >= n - 1)[None] & (places_L[None] <= ages_B[:, None])
    repeats_BNL = jnp.broadcast_to(whole_BL[:, None], written_BNL.shape)
    repeats_BNL = jax.lax.fori_loop(1, n, narrow, repeats_BNL)
    forbidden_BNL = jnp.where(repeats_BNL, -jnp.inf, jnp.inf)
    at = (jnp.arange(B)[:, None, None], jnp.arange(N)[None, :, None], written_BNL)
    return logits_BNV.at[at].min(forbidden_BNL)


def _likeliest(logits_BNV):
    # Two plain reductions: XLA's CPU argmax is one loop of scalars.
    V = logits_BNV.shape[-1]
    likeliest = logits_BNV == logits_BNV.max(axis=-1, keepdims=True)
    return jnp.where(likeliest, jnp.arange(V, dtype=jnp.int32), V - 1).min(axis=-1)


def _uniforms(keys_B, positions_B, samples: int):
    def uniform(key, position, sample):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, position), sample))

    of_samples = jax.vmap(uniform, in_axes=(None, None, 0))
    return jax.vmap(of_samples, in_axes=(0, 0, None))(keys_B, positions_B, jnp.arange(samples))


def _weights(logits_BNV, sampling: Sampling):
    """Unnormalised probabilities, at most 1; what is cut off has none."""
    # Less the highest: no exponential overflows, however low the temperature.
    highest_BN1 = logits_BNV.max(axis=-1, keepdims=True)
    temperature, top_p = _broad(sampling.temperature), _broad(sampling.top_p)
    weights = jnp.exp((logits_BNV - highest_BN1) / jnp.maximum(temperature, 1e-6))
    weights = jax.lax.cond(
        sampling.top_k > 0,
        lambda w: _cut(w, jnp.ones_like, jnp.float32(sampling.top_k)),
        lambda w: w,
        weights,
    )

    def cut(w):
        kept = _cut(w, lambda kept: kept, top_p * w.sum(axis=-1, keepdims=True))
        # Where it is off nothing is cut, not even what a sum in float32 does not notice.
        return jnp.where(top_p < 1, kept, w)

    return jax.lax.cond(jnp.any(top_p < 1), cut, lambda w: w, weights)


def _broad(setting) -> jax.Array:
    """A setting of all prompts as it is, one a prompt as [B, 1, 1]."""
    setting = jnp.asarray(setting)
    return setting[:, None, None] if setting.ndim else setting


def _cut(weights_BNV, measure, amount):
    """Keeps the weights from the greatest threshold on above which `measure` adds to `amount`.

    Positive floats are ordered as their bits are, so that bisecting these is exact.
    """
    # 30 halvings of the bits find the threshold without sorting the vocabulary.
    sizes_BNV = measure(weights_BNV)

    def halve(_, bounds):
        enough, too_high = bounds
        middle = (enough + too_high) // 2
        above = weights_BNV >= jax.lax.bitcast_convert_type(middle, jnp.float32)
        fits = jnp.where(above, sizes_BNV, 0.0).sum(axis=-1, keepdims=True) >= amount
        return jnp.where(fits, middle, enough), jnp.where(fits, too_high, middle)

    enough = jnp.zeros((*weights_BNV.shape[:-1], 1), jnp.int32)
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    enough, _ = jax.lax.fori_loop(0, 30, halve, (enough, jnp.full_like(enough, above_one)))
    threshold = jax.lax.bitcast_convert_type(enough, jnp.float32)
    return jnp.where(weights_BNV >= threshold, weights_BNV, 0.0)


def _invert(weights_V, uniform):
    """The token whose share of the cumulated weights holds `uniform`."""
    V = len(weights_V)
    blocks_GW = jnp.pad(weights_V, (0, -V % _BLOCK)).reshape(-1, _BLOCK)
    ends_G = jnp.cumsum(blocks_GW.sum(axis=1))
    mark = uniform * ends_G[-1]
    block = jnp.sum(ends_G <= mark)
    weights_W = blocks_GW[block]
    ends_W = jnp.cumsum(weights_W)
    mark -= jnp.where(block > 0, ends_G[block - 1], 0.0)
    # Rounding may leave the mark at the block's end.
    inside = jnp.where(mark < ends_W[-1], jnp.sum(ends_W <= mark), jnp.argmax(weights_W))
    return (block * _BLOCK + inside).astype(jnp.int32)
