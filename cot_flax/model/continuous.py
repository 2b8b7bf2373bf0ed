"""Decodes any number of prompts in a fixed number of slots: where one ends, the next one starts.

The host looks at the slots after every block of steps. Prompts go longest first, so that the slots
hold prompts of like length and their width shrinks with these. For each width two programs are
compiled, however many prompts there are: one reads a prompt into a slot, one is a block of steps.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cot_flax.model.caching import Prompts, read_prompts
from cot_flax.model.decoding import State, add_tokens, start
from cot_flax.model.sampling import Sampling
from cot_flax.model.t5 import T5

SHORTEST_BUCKET = 64
STEPS = 8
"""Tokens between two looks of the host: a slot that ended waits half of them."""


def bucket(length: int) -> int:
    """The width that a prompt is padded to: two of them an octave, so that few are compiled."""
    grain = max(SHORTEST_BUCKET, (1 << (length - 1).bit_length()) // 4)
    return -(-length // grain) * grain


def decode_all(
    model: T5,
    params,
    prompts: Sequence[np.ndarray],
    keys,
    *,
    slots: int,
    max_tokens: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """Continues all prompts, as `decode` does.

    Args:
        model: its config must not scan; pass `for_decoding(model, params)`.
        prompts: token ids without padding.
        keys: a random key for each prompt: its samples depend on no other prompt.
        slots: B, prompts decoded at once.
        samples: N continuations a prompt.

    Returns:
        int32 [prompts, N, max_tokens]; after the end-of-sequence token (1, included) come zeros.
    """
    outputs = np.zeros((len(prompts), samples, max_tokens), np.int32)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    if not waiting:
        return outputs
    holders: list[int | None] = [None] * min(slots, len(prompts))
    width = bucket(len(prompts[waiting[-1]]))
    state = _empty(model, len(holders), width, samples, max_tokens)
    while waiting or any(i is not None for i in holders):
        for slot, holder in enumerate(holders):
            if holder is None and waiting:
                holders[slot] = i = waiting.pop()
                state = _insert(model, params, state, _pad(prompts[i], width), keys[i], slot)
        state = _advance(model, params, sampling, state)
        open_B = np.asarray(state.open_B)
        ended = [b for b, i in enumerate(holders) if i is not None and not open_B[b]]
        if ended:
            output_BNT = np.asarray(state.output_BNT)
        for slot in ended:
            outputs[holders[slot]] = output_BNT[slot]
            holders[slot] = None
        left = [len(prompts[i]) for i in [*holders, *waiting[-1:]] if i is not None]
        if left and bucket(max(left)) < width:
            width = bucket(max(left))
            state = _narrow(state, width)
    return outputs


def _pad(ids: np.ndarray, width: int) -> np.ndarray:
    return np.pad(np.asarray(ids, np.int32), (0, width - len(ids)))


@partial(jax.jit, static_argnames=("model", "slots", "width", "samples", "max_tokens"))
def _empty(model: T5, slots: int, width: int, samples: int, max_tokens: int) -> State:
    """Slots of which all have ended."""
    cfg = model.config
    shape, layers = (slots, cfg.num_heads), range(cfg.num_decoder_layers)
    prompts = Prompts(
        keys=[jnp.zeros((*shape, cfg.head_dim, width), cfg.dtype) for _ in layers],
        values=[jnp.zeros((*shape, width, cfg.head_dim), cfg.dtype) for _ in layers],
        bias=jnp.zeros((slots, 1, 1, width), jnp.float32),
    )
    keys_B = jax.random.split(jax.random.key(0), slots)
    state = start(model, prompts, keys_B, samples=samples, max_tokens=max_tokens)
    return state._replace(ended_BN=jnp.ones_like(state.ended_BN))


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def _insert(model: T5, params, state: State, tokens_S, key, slot) -> State:
    """Reads a prompt into a slot. What its predecessor left there is out of sight."""

    def put(all_B, one_1):
        return jax.lax.dynamic_update_slice(all_B, one_1, (slot,) + (0,) * (all_B.ndim - 1))

    return state._replace(
        ages_B=state.ages_B.at[slot].set(0),
        tokens_BN=state.tokens_BN.at[slot].set(0),
        ended_BN=state.ended_BN.at[slot].set(False),
        output_BNT=state.output_BNT.at[slot].set(0),
        keys_B=state.keys_B.at[slot].set(key),
        prompts=jax.tree.map(put, state.prompts, read_prompts(model, params, tokens_S[None])),
    )


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def _advance(model: T5, params, sampling: Sampling, state: State) -> State:
    """A block of steps, or fewer where all samples end."""

    def body(carry):
        count, state = carry
        return count + 1, add_tokens(model, params, sampling, state)

    def unfinished(carry):
        count, state = carry
        return (count < STEPS) & state.open_B.any()

    return jax.lax.while_loop(unfinished, body, (0, state))[1]


@partial(jax.jit, static_argnames="width")
def _narrow(state: State, width: int) -> State:
    """Drops what lies beyond the longest prompt that is left."""
    prompts = Prompts(
        keys=[keys_BHCS[..., :width] for keys_BHCS in state.prompts.keys],
        values=[values_BHSC[:, :, :width] for values_BHSC in state.prompts.values],
        bias=state.prompts.bias[..., :width],
    )
    return state._replace(prompts=prompts)
