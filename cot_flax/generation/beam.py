"""Beam search with a cache, as Hugging Face's `generate(num_beams=N)` and as T5X define it.

Both keep N live (unfinished) and N finished continuations a prompt and look, at every step, at the
2N likeliest extensions of the live ones by a token. `Rule` names the points in which they differ.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cot_flax.generation.decoding import empty_ring
from cot_flax.students.student import Student
from cot_flax.text.tokenizers import SpecialIds


@dataclasses.dataclass(frozen=True)
class Rule:
    """A convention of beam search.

    Attributes:
        divisor: of (length in tokens, length penalty); a finished continuation's score is the sum
            of its log-probabilities over this.
        length_penalty: the default one.
        bound_at_end: a prompt is done when its best live continuation cannot beat its worst
            finished one, supposing that it loses nothing more and ends at the last position
            (exact) or at the present one (earlier, and for long answers too early).
        backups_finish: all 2N extensions may end a continuation, or the likeliest N alone.
        cut_finishes: a continuation cut at the last position counts as finished. Otherwise such
            ones are returned, scored by their log-probability, only where none has finished.
    """

    divisor: Callable[[Any, Any], jax.Array]
    length_penalty: float
    bound_at_end: bool
    backups_finish: bool
    cut_finishes: bool


RuleName = Literal["huggingface", "t5x"]
RULES: dict[str, Rule] = {
    "huggingface": Rule(
        divisor=lambda length, penalty: jnp.power(jnp.float32(length), penalty),
        length_penalty=1.0,
        bound_at_end=False,
        backups_finish=False,
        cut_finishes=True,
    ),
    "t5x": Rule(  # the penalty of Wu et al. 2016
        divisor=lambda length, penalty: jnp.power((5.0 + length) / 6.0, penalty),
        length_penalty=0.6,
        bound_at_end=True,
        backups_finish=True,
        cut_finishes=False,
    ),
}


class _State(NamedTuple):
    """Rows of tokens begin with the start token; -inf marks a place that holds nothing."""

    position: jax.Array
    live_BNT: jax.Array
    live_logprobs_BN: jax.Array
    finished_BNT: jax.Array
    scores_BN: jax.Array
    open_B: jax.Array
    cache: Any


@partial(jax.jit, static_argnames=("student", "max_tokens", "beams", "rule"))
def beam_search(
    student: Student,
    params,
    tokens_BS,
    *,
    max_tokens: int,
    beams: int,
    length_penalty: float | None = None,
    rule: str = "huggingface",
) -> tuple[jax.Array, jax.Array]:
    """Finds likely continuations of every prompt, which is encoded once for all its beams.

    Args:
        student: with its parameters as `Student.for_decoding` gives them.
        tokens_BS: int32, prompts as `student.layout.prompt` makes them, padded.
        max_tokens: length of the output.
        beams: N; one beam under the rule of Hugging Face is greedy decoding.
        length_penalty: exponent of the length; None is the rule's own default.
        rule: a name in `RULES`.

    Returns:
        int32 [B, N, max_tokens], the best first; after the end id, which is included, comes
        padding. And their scores by the rule, float32 [B, N] in nats; -inf where fewer than N were
        found.
    """
    B = tokens_BS.shape[0]
    prompts = student.prefill(params, tokens_BS)

    def step(tokens_BN, position, ring):
        ages_B = jnp.full(B, position)
        return student.step(params, tokens_BN, ages_B, position, prompts, ring)

    return search(
        step,
        empty_ring(student, B, beams, max_tokens),
        start_B=prompts.start_B,
        special_ids=student.special_ids,
        max_tokens=max_tokens,
        beams=beams,
        length_penalty=length_penalty,
        rule=RULES[rule],
    )


def search(
    step: Callable,
    cache,
    *,
    start_B,
    special_ids: SpecialIds,
    max_tokens: int,
    beams: int,
    length_penalty: float | None,
    rule: Rule,
) -> tuple[jax.Array, jax.Array]:
    """Beam search over any `step(tokens_BN, position, cache) -> (logits_BNV, cache)`.

    Every leaf of the cache is [B, N, ...] and follows its beam. Returns as `beam_search` does.
    """
    penalty = rule.length_penalty if length_penalty is None else length_penalty

    def body(state: _State) -> _State:
        tokens_BN = jax.lax.dynamic_index_in_dim(state.live_BNT, state.position, 2, keepdims=False)
        logits_BNV, cache = step(tokens_BN, state.position, state.cache)
        length = state.position + 1
        logprobs_BK, beams_BK, extended_BKT = _extend(state, logits_BNV)
        ended_BK = extended_BKT[:, :, length] == special_ids.end
        if rule.cut_finishes:
            ended_BK |= length == max_tokens

        new_BK = logprobs_BK / rule.divisor(length, penalty)
        new_BK = jnp.where(_count(rule, state.open_B, ended_BK), new_BK, -jnp.inf)
        scores_BN, places_BN = jax.lax.top_k(jnp.append(state.scores_BN, new_BK, axis=1), beams)
        finished_BNT = _take(jnp.append(state.finished_BNT, extended_BKT, axis=1), places_BN)

        logprobs_BN, places_BN = jax.lax.top_k(jnp.where(ended_BK, -jnp.inf, logprobs_BK), beams)
        parents_BN = _take(beams_BK, places_BN)
        # T5X counts the start token into the greatest length.
        bound = rule.divisor(max_tokens + 1 if rule.bound_at_end else length, penalty)
        return _State(
            position=length,
            live_BNT=_take(extended_BKT, places_BN),
            live_logprobs_BN=logprobs_BN,
            finished_BNT=finished_BNT,
            scores_BN=scores_BN,
            open_B=state.open_B & (logprobs_BN[:, 0] / bound > scores_BN[:, -1]),
            cache=jax.tree.map(lambda leaf: _take(leaf, parents_BN), cache),
        )

    def unfinished(state: _State):
        return (state.position < max_tokens) & jnp.any(state.open_B)

    state = jax.lax.while_loop(
        unfinished, body, _start(start_B, special_ids.pad, beams, max_tokens, cache)
    )
    any_B1 = (state.scores_BN > -jnp.inf).any(axis=1, keepdims=True)
    tokens_BNT = jnp.where(any_B1[:, :, None], state.finished_BNT, state.live_BNT)
    return tokens_BNT[:, :, 1:], jnp.where(any_B1, state.scores_BN, state.live_logprobs_BN)


def _start(start_B, pad: int, beams: int, max_tokens: int, cache) -> _State:
    """One live continuation a prompt, empty and certain."""
    batch_size = len(start_B)
    tokens_BNT = jnp.full((batch_size, beams, max_tokens + 1), pad, jnp.int32)
    tokens_BNT = tokens_BNT.at[:, :, 0].set(start_B[:, None])
    nothing_BN = jnp.full((batch_size, beams), -jnp.inf, jnp.float32)
    return _State(
        position=jnp.int32(0),
        live_BNT=tokens_BNT,
        live_logprobs_BN=nothing_BN.at[:, 0].set(0.0),
        finished_BNT=tokens_BNT,
        scores_BN=nothing_BN,
        open_B=jnp.ones(batch_size, bool),
        cache=cache,
    )


def _extend(state: _State, logits_BNV):
    """The 2N likeliest extensions: log-probabilities, the beams they extend, their tokens."""
    B, N, V = logits_BNV.shape
    logprobs_BNV = jax.nn.log_softmax(logits_BNV) + state.live_logprobs_BN[:, :, None]
    logprobs_BK, places_BK = jax.lax.top_k(logprobs_BNV.reshape(B, N * V), 2 * N)
    beams_BK, tokens_BK = jnp.divmod(places_BK, V)
    extended_BKT = _take(state.live_BNT, beams_BK)
    return logprobs_BK, beams_BK, extended_BKT.at[:, :, state.position + 1].set(tokens_BK)


def _count(rule: Rule, open_B, ended_BK):
    """Which extensions may take a place among the finished continuations."""
    K = ended_BK.shape[1]
    allowed_K = jnp.arange(K) < (K if rule.backups_finish else K // 2)
    return ended_BK & allowed_K[None] & open_B[:, None]


def _take(x_BN, places_BK):
    """Of each prompt its entries at `places`: [B, N, ...] -> [B, K, ...]."""
    return jax.vmap(lambda x_N, places_K: x_N[places_K])(x_BN, places_BK)
