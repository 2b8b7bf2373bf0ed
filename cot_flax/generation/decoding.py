"""Greedy and sampled decoding with a cache; the prompt is encoded once for all its samples."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cot_flax.generation.sampling import Sampling, choose
from cot_flax.students import lora
from cot_flax.students.parameters import unstack_layers
from cot_flax.students.t5.caching import Prompts, Ring, empty_ring, read_prompts, step
from cot_flax.students.t5.model import T5

EOS = 1


class State(NamedTuple):
    """B prompts amid decoding, each of its own age, with N samples.

    Attributes:
        ages_B: int32, tokens that the prompt's samples have.
        tokens_BN: int32, the last ones.
        ended_BN: whether a sample has ended.
        output_BNT: int32, all tokens.
        keys_B: random keys.
        head: int32, the column of the ring that is written next.
    """

    ages_B: jax.Array
    tokens_BN: jax.Array
    ended_BN: jax.Array
    output_BNT: jax.Array
    keys_B: jax.Array
    head: jax.Array
    prompts: Prompts
    ring: Ring

    @property
    def open_B(self) -> jax.Array:
        """Whether a prompt has more tokens to come."""
        return (self.ages_B < self.output_BNT.shape[2]) & ~self.ended_BN.all(axis=1)


@partial(jax.jit, static_argnames=("model", "max_tokens", "samples"))
def decode(
    model: T5,
    params,
    encoder_input_tokens,
    *,
    max_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng=None,
) -> jax.Array:
    """Continues every prompt; stops when all rows have ended.

    Args:
        model: its config must not scan; pass `for_decoding(model, params)`.
        encoder_input_tokens: int32 [B, S], padded with 0.
        max_tokens: length of the output.
        samples: N continuations a prompt.
        temperature, top_k, top_p: see `Sampling`.
        rng: a key for each prompt, [B]: a prompt's samples do not depend on its batch.
            Not needed when greedy.

    Returns:
        int32 [B, N, max_tokens]; after the end-of-sequence token (1, included) come zeros.
    """
    if rng is None:
        rng = jax.random.split(jax.random.key(0), encoder_input_tokens.shape[0])
    prompts = read_prompts(model, params, encoder_input_tokens)
    state = start(model, prompts, rng, samples=samples, max_tokens=max_tokens)
    advance = partial(add_tokens, model, params, Sampling(temperature, top_k, top_p))
    return jax.lax.while_loop(lambda state: state.open_B.any(), advance, state).output_BNT


def start(model: T5, prompts: Prompts, keys_B, *, samples: int, max_tokens: int) -> State:
    """Nothing decoded yet."""
    B = keys_B.shape[0]
    return State(
        ages_B=jnp.zeros(B, jnp.int32),
        tokens_BN=jnp.zeros((B, samples), jnp.int32),
        ended_BN=jnp.zeros((B, samples), bool),
        output_BNT=jnp.zeros((B, samples, max_tokens), jnp.int32),
        keys_B=keys_B,
        head=jnp.int32(0),
        prompts=prompts,
        ring=empty_ring(model, B, samples, max_tokens),
    )


def add_tokens(model: T5, params, sampling: Sampling, state: State) -> State:
    """Adds a token to every sample that has not ended, of every prompt that is open."""
    ages_B, open_B = state.ages_B, state.open_B
    logits_BNV, ring = step(
        model, params, state.tokens_BN, ages_B, state.head, state.prompts, state.ring
    )
    chosen_BN = choose(logits_BNV, sampling, state.keys_B, ages_B)
    tokens_BN = jnp.where(state.ended_BN, 0, chosen_BN)
    places_B = jnp.where(open_B, ages_B, state.output_BNT.shape[2])  # beyond the end: not written
    output_BNT = state.output_BNT.at[jnp.arange(len(ages_B)), :, places_B].set(
        tokens_BN, mode="drop"
    )
    return state._replace(
        ages_B=ages_B + open_B,
        tokens_BN=tokens_BN,
        ended_BN=state.ended_BN | (tokens_BN == EOS),
        output_BNT=output_BNT,
        head=(state.head + 1) % state.output_BNT.shape[2],
        ring=ring,
    )


def for_decoding(model: T5, params) -> tuple[T5, dict]:
    """Returns model and parameters as the decoder needs them: unrolled, adapters merged."""
    if model.config.lora is not None:
        params = lora.merge(params, model.config.lora)
    config = dataclasses.replace(model.config, scan_layers=False, remat="none", lora=None)
    return T5(config), unstack_layers(params)
