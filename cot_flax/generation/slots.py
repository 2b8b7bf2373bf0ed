"""Decodes any number of prompts in a fixed number of slots: where one ends, the next one starts.

The host looks at the slots after every block of steps. Prompts go longest first, so that the slots
hold prompts of like length and their width shrinks with these. For each width two programs are
compiled, however many prompts there are: one reads prompts into slots, one is a block of steps.

Over a mesh each device has as many slots as the others and reads one prompt at a time. The host's
part is the same in every process, which all see the same prompts and outputs.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import with_sharding_constraint

from cot_flax.axes import all_gather, axis_size, mesh_axes
from cot_flax.generation.decoding import State, add_tokens, start
from cot_flax.generation.sampling import Sampling
from cot_flax.students.student import Prompts, Student

SHORTEST_BUCKET = 64
STEPS = 8
"""Tokens between two looks of the host: a slot that ended waits half of them."""


def bucket(length: int) -> int:
    """The width that a prompt is padded to: two of them an octave, so that few are compiled."""
    grain = max(SHORTEST_BUCKET, (1 << (length - 1).bit_length()) // 4)
    return -(-length // grain) * grain


def decode_all(
    student: Student,
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
        student: with its parameters as `Student.for_decoding` gives them.
        prompts: ids as `student.layout.prompt` makes them, without padding.
        keys: a random key for each prompt: its samples depend on no other prompt.
        slots: B, prompts decoded at once; a few more where the mesh does not divide them.
        samples: N continuations a prompt.

    Returns:
        int32 [prompts, N, max_tokens]; after the end id, which is included, comes padding.
    """
    pad = student.special_ids.pad
    outputs = np.full((len(prompts), samples, max_tokens), pad, np.int32)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    if not waiting:
        return outputs
    readers = axis_size(*mesh_axes("batch"))
    rounds = -(-min(slots, len(prompts)) // readers)
    holders: list[int | None] = [None] * (rounds * readers)
    width = bucket(len(prompts[waiting[-1]]))
    state = _empty(student, len(holders), width, samples, max_tokens)
    while waiting or any(i is not None for i in holders):
        free = [slot for slot, holder in enumerate(holders) if holder is None]
        free = free[: len(waiting)]
        for chosen in (free[i : i + readers] for i in range(0, len(free), readers)):
            for slot in chosen:
                holders[slot] = waiting.pop()
            entering = _entering(prompts, keys, holders, chosen, width, readers, pad)
            state = _insert(student, params, state, *entering)
        state, open_B = _advance(student, params, sampling, state)
        open_B = np.asarray(open_B)
        ended = [b for b, i in enumerate(holders) if i is not None and not open_B[b]]
        if ended:
            output_BNT = np.asarray(all_gather(state.output_BNT))
        for slot in ended:
            outputs[holders[slot]] = output_BNT[slot]
            holders[slot] = None
        left = [len(prompts[i]) for i in [*holders, *waiting[-1:]] if i is not None]
        if left and bucket(max(left)) < width:
            width = bucket(max(left))
            state = _narrow(state, width)
    return outputs


def _entering(prompts, keys, holders, chosen, width, readers, pad):
    """Tokens, keys and slots of the prompts that enter; nobody enters a slot beyond the last."""
    tokens_GS = np.full((readers, width), pad, np.int32)
    slots_G = np.full(readers, len(holders), np.int32)
    keys_G = keys[np.array([holders[slot] for slot in chosen] + [0] * (readers - len(chosen)))]
    for g, slot in enumerate(chosen):
        ids, slots_G[g] = prompts[holders[slot]], slot
        tokens_GS[g, : len(ids)] = ids
    return tokens_GS, keys_G, slots_G


def _spread(state: State) -> State:
    """Every device holds its share of the slots, and of the heads."""

    def place(arrays, *axes):
        return jax.tree.map(partial(with_sharding_constraint, logical_axis_resources=axes), arrays)

    prompts, ring = state.prompts, state.ring
    return state._replace(
        output_BNT=place(state.output_BNT, "batch", None, None),
        prompts=prompts._replace(
            keys=place(prompts.keys, "batch", "heads", None, None),
            values=place(prompts.values, "batch", "heads", None, None),
            bias=place(prompts.bias, "batch", None, None, None),
        ),
        ring=place(ring, "batch", None, "heads", None, None),
    )


@partial(jax.jit, static_argnames=("student", "slots", "width", "samples", "max_tokens"))
def _empty(student: Student, slots: int, width: int, samples: int, max_tokens: int) -> State:
    """Slots of which all have ended."""
    layers, heads, head_dim, dtype = student.cache_shape
    prompts = Prompts(
        keys=[jnp.zeros((slots, heads, head_dim, width), dtype) for _ in range(layers)],
        values=[jnp.zeros((slots, heads, width, head_dim), dtype) for _ in range(layers)],
        bias=jnp.zeros((slots, 1, 1, width), jnp.float32),
        start_B=jnp.full(slots, student.special_ids.start, jnp.int32),
        length_B=jnp.zeros(slots, jnp.int32),
    )
    keys_B = jax.random.split(jax.random.key(0), slots)
    state = start(student, prompts, keys_B, samples=samples, max_tokens=max_tokens)
    return _spread(state._replace(ended_BN=jnp.ones_like(state.ended_BN)))


@partial(jax.jit, static_argnames="student", donate_argnames="state")
def _insert(student: Student, params, state: State, tokens_GS, keys_G, slots_G) -> State:
    """Reads prompts into slots. What their predecessors left there is out of sight."""

    def put(all_B, new_G):
        return all_B.at[slots_G].set(new_G, mode="drop")

    entering = student.prefill(params, tokens_GS)
    return _spread(
        state._replace(
            ages_B=put(state.ages_B, 0),
            tokens_BN=put(state.tokens_BN, entering.start_B[:, None]),
            ended_BN=put(state.ended_BN, False),
            output_BNT=put(state.output_BNT, student.special_ids.pad),
            keys_B=put(state.keys_B, keys_G),
            prompts=jax.tree.map(put, state.prompts, entering),
        )
    )


@partial(jax.jit, static_argnames="student", donate_argnames="state")
def _advance(student: Student, params, sampling: Sampling, state: State) -> tuple[State, jax.Array]:
    """A block of steps, or fewer where all samples end; also, for the host, `open_B`."""

    def body(carry):
        count, state = carry
        return count + 1, add_tokens(student, params, sampling, state)

    def unfinished(carry):
        count, state = carry
        return (count < STEPS) & state.open_B.any()

    state = _spread(jax.lax.while_loop(unfinished, body, (0, state))[1])
    return state, with_sharding_constraint(state.open_B, (None,))


@partial(jax.jit, static_argnames="width")
def _narrow(state: State, width: int) -> State:
    """Drops what lies beyond the longest prompt that is left."""
    prompts = state.prompts._replace(
        keys=[keys_BHCS[..., :width] for keys_BHCS in state.prompts.keys],
        values=[values_BHSC[:, :, :width] for values_BHSC in state.prompts.values],
        bias=state.prompts.bias[..., :width],
    )
    return _spread(state._replace(prompts=prompts))
