"""Greedy and sampled decoding with a cache; the prompt is encoded once for all its samples."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cot_flax.generation.sampling import Sampling, choose, forbid
from cot_flax.students.student import Prompts, Ring, Student


class State(NamedTuple):
    """B prompts amid decoding, each of its own age, with N samples.

    Attributes:
        ages_B: int32, tokens that the prompt's samples have.
        tokens_BN: int32, the last ones.
        ended_BN: whether a sample has ended.
        output_BNT: int32, all tokens; behind them padding, and tokens that a sample has to write
            next, where somebody put some.
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


@partial(jax.jit, static_argnames=("student", "max_tokens", "samples"))
def decode(
    student: Student,
    params,
    tokens_BS,
    *,
    max_tokens: int,
    samples: int = 1,
    rng=None,
    **sampling: Any,
) -> jax.Array:
    """Continues every prompt; stops when all rows have ended.

    Args:
        student: with its parameters as `Student.for_decoding` gives them.
        tokens_BS: int32, prompts as `student.layout.prompt` makes them, padded.
        max_tokens: length of the output.
        samples: N continuations a prompt.
        rng: a key for each prompt, [B]: a prompt's samples do not depend on its batch.
            Not needed when greedy.
        **sampling: the fields of `Sampling`.

    Returns:
        int32 [B, N, max_tokens]; after the end id, which is included, comes padding.
    """
    if rng is None:
        rng = jax.random.split(jax.random.key(0), tokens_BS.shape[0])
    prompts = student.prefill(params, tokens_BS)
    state = start(student, prompts, rng, samples=samples, max_tokens=max_tokens)
    advance = partial(add_tokens, student, params, Sampling(**sampling))
    return jax.lax.while_loop(lambda state: state.open_B.any(), advance, state).output_BNT


def start(student: Student, prompts: Prompts, keys_B, *, samples: int, max_tokens: int) -> State:
    """Nothing decoded yet."""
    B = keys_B.shape[0]
    return State(
        ages_B=jnp.zeros(B, jnp.int32),
        tokens_BN=jnp.repeat(prompts.start_B[:, None], samples, axis=1),
        ended_BN=jnp.zeros((B, samples), bool),
        output_BNT=jnp.full((B, samples, max_tokens), student.special_ids.pad, jnp.int32),
        keys_B=keys_B,
        head=jnp.int32(0),
        prompts=prompts,
        ring=empty_ring(student, B, samples, max_tokens),
    )


def add_tokens(student: Student, params, sampling: Sampling, state: State) -> State:
    """Adds a token to every sample that has not ended, of every prompt that is open."""
    ages_B, open_B = state.ages_B, state.open_B
    logits_BNV, ring = student.step(
        params, state.tokens_BN, ages_B, state.head, state.prompts, state.ring
    )
    logits_BNV = forbid(
        logits_BNV,
        sampling,
        state.prompts.start_B,
        state.output_BNT,
        ages_B,
        student.special_ids.end,
    )
    chosen_BN = choose(logits_BNV, sampling, state.keys_B, ages_B)
    pad = student.special_ids.pad
    due_B11 = jnp.minimum(ages_B, state.output_BNT.shape[2] - 1)[:, None, None]
    due_BN = jnp.take_along_axis(state.output_BNT, due_B11, axis=2)[:, :, 0]
    tokens_BN = jnp.where(due_BN == pad, chosen_BN, due_BN)
    tokens_BN = jnp.where(state.ended_BN, pad, tokens_BN)
    places_B = jnp.where(open_B, ages_B, state.output_BNT.shape[2])  # beyond the end: not written
    output_BNT = state.output_BNT.at[jnp.arange(len(ages_B)), :, places_B].set(
        tokens_BN, mode="drop"
    )
    return state._replace(
        ages_B=ages_B + open_B,
        tokens_BN=tokens_BN,
        ended_BN=state.ended_BN | (tokens_BN == student.special_ids.end),
        output_BNT=output_BNT,
        head=(state.head + 1) % state.output_BNT.shape[2],
        ring=ring,
    )


def empty_ring(student: Student, prompts: int, samples: int, length: int) -> Ring:
    layers, heads, head_dim, dtype = student.cache_shape
    shape = prompts, samples, heads, length, head_dim
    return Ring(*([jnp.zeros(shape, dtype)] * layers for _ in range(2)))
