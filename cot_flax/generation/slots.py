"""Decodes any number of prompts in a fixed number of slots: where one ends, the next one starts.

The host looks at the slots after every block of steps. Prompts go longest first, so that the slots
hold prompts of like length and their width shrinks with these; a longer arrival widens them. For
each width two programs are compiled, however many prompts there are: one reads prompts into slots,
one is a block of steps.

Shape letters are those of students/student.py, and G readers: prompts that enter at once.

Over a mesh each device has as many slots as the others and reads one prompt at a time. The host's
part is the same in every process, which all see the same prompts and outputs.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import with_sharding_constraint

from cot_flax.axes import all_gather, axis_size, mesh_axes
from cot_flax.generation.decoding import State, add_tokens, start
from cot_flax.generation.sampling import Sampling
from cot_flax.students.attention_kernels import MASKED
from cot_flax.students.student import Prompts, Student

SHORTEST_BUCKET = 64
STEPS = 8
"""Tokens between two looks of the host: a slot that ended waits half of them."""


Take = Callable[[int, np.ndarray], None]
"""Is given the place of a prompt that has ended, and its outputs, int32 [N, T]."""


class Dictation(NamedTuple):
    """Tokens that a sample has to write, for what it wrote: a calculator's results.

    Attributes:
        asks_V: bool, tokens behind which `next` is asked at once.
        next: of a sample's tokens so far the ones that follow; none leaves the choice to it.
    """

    asks_V: np.ndarray
    next: Callable[[Sequence[int]], Sequence[int]]


def bucket(length: int) -> int:
    """The width that a prompt is padded to: two of them an octave, so that few are compiled."""
    grain = max(SHORTEST_BUCKET, (1 << (length - 1).bit_length()) // 4)
    return -(-length // grain) * grain


class Slots:
    """Prompts that decode and prompts that wait for a slot; others may arrive meanwhile.

    Of those that wait the longest enters first. A stream that never ends can so keep a short
    prompt waiting; a closed list cannot.

    Args:
        student: with its parameters as `Student.for_decoding` gives them.
        slots: B, prompts decoded at once; a few more where the mesh does not divide them.
        max_tokens: T, of every output.
        samples: N continuations a prompt.
        dictation: what samples have to write.
    """

    def __init__(
        self,
        student: Student,
        params,
        *,
        slots: int,
        max_tokens: int,
        samples: int = 1,
        sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
        dictation: Dictation | None = None,
    ):
        self._student, self._params, self._sampling = student, params, sampling
        self._dictation = dictation
        self._shape = samples, max_tokens
        self._readers = axis_size(*mesh_axes("batch"))
        rounds = -(-slots // self._readers)
        self._holders: list[_Arrival | None] = [None] * (rounds * self._readers)
        self._waiting: list[_Arrival] = []  # the longest last
        self._submitted = 0
        self._closing: set[int] = set()  # slots whose prompts were cancelled
        self._width = 0
        self._state: State | None = None

    @property
    def busy(self) -> bool:
        """Whether a prompt decodes or waits."""
        return bool(self._waiting) or any(self._holders)

    def submit(
        self,
        prompt: Sequence[int],
        key,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> int:
        """Lets a prompt wait for a slot.

        Args:
            prompt: ids as `student.layout.prompt` makes them, without padding.
            key: a random key: the prompt's samples depend on no other prompt.
            temperature: of this prompt, in place of the sampling's.
            top_p: likewise.

        Returns:
            A ticket, under which `advance` hands out what was decoded: 0, 1, 2, ...
        """
        arrival = _Arrival(self._submitted, prompt, key, temperature, top_p)
        # Longest first: the slots then hold prompts of like length, and their width only shrinks.
        bisect.insort(self._waiting, arrival, key=lambda arrival: len(arrival.prompt))
        self._submitted += 1
        return arrival.ticket

    def advance(self) -> Iterator[tuple[int, np.ndarray]]:
        """Fills free slots and takes a block of steps; it ends early where a dictation is asked.

        Returns:
            Of each prompt that has ended its ticket and int32 [N, T]; after the end id, which is
            included, comes padding.
        """
        if not self.busy:
            return iter(())
        asks_V = None if self._dictation is None else self._dictation.asks_V
        filled = self._filled()
        state, open_B, asked = _advance(
            self._student, self._params, self._settings(), filled, asks_V
        )
        if self._dictation is not None and np.asarray(asked):
            due_BNT = self._dictated(state, self._dictation)
            state = _dictate(state, due_BNT, self._student.special_ids.pad)
        self._state, open_B = state, np.asarray(open_B)
        tickets = {b: at.ticket for b, at in enumerate(self._holders) if at and not open_B[b]}
        ended = list(tickets)
        if not ended:
            return iter(())
        # Fetched only when somebody has ended: over a mesh it is a collective.
        output_BNT = np.asarray(all_gather(state.output_BNT))
        for slot in ended:
            self._holders[slot] = None
        return zip(tickets.values(), output_BNT[ended], strict=True)

    def _dictated(self, state: State, dictation: Dictation) -> np.ndarray:
        """What the samples have to write next, int32 [B, N, T], each at its place."""
        output_BNT = np.asarray(all_gather(state.output_BNT))
        ages_B = np.asarray(all_gather(state.ages_B))
        due_BNT = np.full_like(output_BNT, self._student.special_ids.pad)
        for b, n in np.ndindex(output_BNT.shape[:2]):
            written = output_BNT[b, n, : ages_B[b]]
            if self._holders[b] and len(written) and dictation.asks_V[written[-1]]:
                due = dictation.next(written.tolist())
                due_T = due_BNT[b, n, ages_B[b] :]
                due_T[: len(due)] = due[: len(due_T)]
        return due_BNT

    def written(self) -> dict[int, np.ndarray]:
        """What the prompts that decode have so far: int32 [N, t] by ticket, padded as outputs."""
        held = {slot: holder for slot, holder in enumerate(self._holders) if holder}
        if self._state is None or not held:
            return {}
        output_BNT = np.asarray(all_gather(self._state.output_BNT))
        ages_B = np.asarray(all_gather(self._state.ages_B))
        return {holder.ticket: output_BNT[slot, :, : ages_B[slot]] for slot, holder in held.items()}

    def cancel(self, ticket: int) -> None:
        """Frees the slot of a prompt, or its place among those that wait; an ended one has none."""
        self._waiting = [arrival for arrival in self._waiting if arrival.ticket != ticket]
        for slot, holder in enumerate(self._holders):
            if holder and holder.ticket == ticket:
                self._holders[slot] = None
                self._closing.add(slot)

    def _settings(self) -> Sampling:
        """The sampling, with settings a slot where prompts have their own."""
        if all(at is None or at.temperature is at.top_p is None for at in self._holders):
            return self._sampling
        common = self._sampling.temperature, self._sampling.top_p
        rows = [common if at is None else at.own(*common) for at in self._holders]
        temperature_B, top_p_B = np.array(rows, np.float32).T
        return self._sampling._replace(temperature=temperature_B, top_p=top_p_B)

    def _filled(self) -> State:
        """The state as wide as its longest prompt, with a prompt in every slot if enough wait."""
        state = self._resized()
        if self._closing:
            closed_B = np.isin(np.arange(len(self._holders)), [*self._closing])
            state, self._closing = _close(state, closed_B), set()
        pad = self._student.special_ids.pad
        free = [slot for slot, holder in enumerate(self._holders) if holder is None]
        # As many at a time as devices read in parallel: one prompt each, in one program.
        free = free[: len(self._waiting)]
        for i in range(0, len(free), self._readers):
            chosen = free[i : i + self._readers]
            for slot in chosen:
                self._holders[slot] = self._waiting.pop()
            entering = _entering(self._holders, chosen, self._width, self._readers, pad)
            state = _insert(self._student, self._params, state, *entering)
        return state

    def _resized(self) -> State:
        present = [holder for holder in [*self._holders, *self._waiting[-1:]] if holder]
        width, before = bucket(max(len(arrival.prompt) for arrival in present)), self._width
        self._width = width
        # A width is a compiled program: `bucket` lets only few of them come up.
        if self._state is None:
            return _empty(self._student, len(self._holders), width, *self._shape)
        if width < before:
            return _narrow(self._state, width)
        return _widen(self._state, width) if width > before else self._state


def decode_all(
    student: Student,
    params,
    prompts: Sequence[Sequence[int]],
    keys,
    *,
    slots: int,
    max_tokens: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    dictation: Dictation | None = None,
    ended: Take | None = None,
) -> np.ndarray:
    """Continues all prompts, as `decode` does; the arguments are those of `Slots`.

    Args:
        keys: a random key for each prompt.
        ended: gets every prompt's outputs at once when it ends.

    Returns:
        int32 [prompts, N, max_tokens]; after the end id, which is included, comes padding.
    """
    outputs = np.full((len(prompts), samples, max_tokens), student.special_ids.pad, np.int32)
    if not len(prompts):
        return outputs
    decoding = Slots(
        student,
        params,
        slots=min(slots, len(prompts)),
        max_tokens=max_tokens,
        samples=samples,
        sampling=sampling,
        dictation=dictation,
    )
    for prompt, key in zip(prompts, keys, strict=True):
        decoding.submit(prompt, key)
    while decoding.busy:
        for ticket, output_NT in decoding.advance():
            outputs[ticket] = output_NT
            if ended is not None:
                ended(ticket, output_NT)
    return outputs


class _Arrival(NamedTuple):
    ticket: int
    prompt: Sequence[int]
    key: jax.Array
    temperature: float | None = None
    top_p: float | None = None

    def own(self, temperature, top_p) -> tuple[float, float]:
        """Its own settings, or else these."""
        return (
            temperature if self.temperature is None else self.temperature,
            top_p if self.top_p is None else self.top_p,
        )


def _entering(holders, chosen, width, readers, pad):
    """Tokens, keys and slots of the prompts that enter; nobody enters a slot beyond the last."""
    tokens_GS = np.full((readers, width), pad, np.int32)
    slots_G = np.full(readers, len(holders), np.int32)  # past the end: written nowhere
    # Every reader needs some key; those without a prompt repeat the first.
    entering = [holders[slot] for slot in chosen + chosen[:1] * (readers - len(chosen))]
    keys_G = jnp.stack([arrival.key for arrival in entering])
    for g, slot in enumerate(chosen):
        ids, slots_G[g] = holders[slot].prompt, slot
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
    # Nothing that is drawn for them is ever seen; keys are there for their shape.
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


@partial(jax.jit, donate_argnames="state")
def _close(state: State, closed_B) -> State:
    """Ends all samples of prompts that nobody waits for."""
    return state._replace(ended_BN=state.ended_BN | closed_B[:, None])


@partial(jax.jit, static_argnames="student", donate_argnames="state")
def _advance(
    student: Student, params, sampling: Sampling, state: State, asks_V
) -> tuple[State, jax.Array, jax.Array]:
    """A block of steps, or fewer where all samples end or one writes a token that asks.

    Returns:
        The state; for the host, `open_B` and whether a sample asks.
    """

    def asks(state):
        if asks_V is None:
            return jnp.array(False)
        # Those that have ended have padding as their last token.
        return (jnp.asarray(asks_V)[state.tokens_BN] & state.open_B[:, None]).any()

    def body(carry):
        count, state = carry
        return count + 1, add_tokens(student, params, sampling, state)

    def unfinished(carry):
        count, state = carry
        return (count < STEPS) & state.open_B.any() & ((count == 0) | ~asks(state))

    state = _spread(jax.lax.while_loop(unfinished, body, (0, state))[1])
    open_B = with_sharding_constraint(state.open_B, (None,))
    return state, open_B, with_sharding_constraint(asks(state), ())


@partial(jax.jit, donate_argnames="state")
def _dictate(state: State, due_BNT, pad) -> State:
    """Puts tokens behind those that are written."""
    output_BNT = jnp.where(state.output_BNT == pad, due_BNT, state.output_BNT)
    return _spread(state._replace(output_BNT=output_BNT))


@partial(jax.jit, static_argnames="width")
def _narrow(state: State, width: int) -> State:
    """Drops what lies beyond the longest prompt that is left."""
    prompts = state.prompts._replace(
        keys=[keys_BHCS[..., :width] for keys_BHCS in state.prompts.keys],
        values=[values_BHSC[:, :, :width] for values_BHSC in state.prompts.values],
        bias=state.prompts.bias[..., :width],
    )
    return _spread(state._replace(prompts=prompts))


@partial(jax.jit, static_argnames="width")
def _widen(state: State, width: int) -> State:
    """Makes room for a longer prompt; of those that are here the new columns are padding."""
    added = width - state.prompts.bias.shape[-1]

    def pad(array, axis, value=0.0):
        sizes = [(0, added if i == axis else 0) for i in range(array.ndim)]
        return jnp.pad(array, sizes, constant_values=value)

    prompts = state.prompts._replace(
        keys=[pad(keys_BHCS, 3) for keys_BHCS in state.prompts.keys],
        values=[pad(values_BHSC, 2) for values_BHSC in state.prompts.values],
        bias=pad(state.prompts.bias, 3, MASKED),
    )
    return _spread(state._replace(prompts=prompts))
