"""Greedy and sampled decoding with a cache; the prompt is encoded once for all its samples."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cot_flax.model import lora
from cot_flax.model.stacking import unstack_layers
from cot_flax.model.t5 import T5

EOS = 1


@partial(jax.jit, static_argnames=("model", "max_tokens", "samples"))
def decode(
    model: T5,
    params,
    encoder_input_tokens,
    *,
    max_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    rng=None,
) -> jax.Array:
    """Continues every prompt; stops when all rows have ended.

    Args:
        model: its config must not scan; pass `for_decoding(model, params)`.
        encoder_input_tokens: int32 [B, S], padded with 0.
        max_tokens: length of the output.
        samples: N continuations a prompt.
        temperature: 0 is greedy; otherwise tokens are drawn from softmax(logits / temperature).
        rng: a key for each prompt, [B]: a prompt's samples do not depend on its batch.
            Not needed when greedy.

    Returns:
        int32 [B, N, max_tokens]; after the end-of-sequence token (1, included) come zeros.
    """
    B = encoder_input_tokens.shape[0]
    if rng is None:
        rng = jax.random.split(jax.random.key(0), B)
    variables = {"params": params}
    cache = model.apply(
        variables, encoder_input_tokens, samples=samples, length=max_tokens, method=T5.init_cache
    )

    def body(state):
        position, tokens_BN, ended_BN, output, cache = state
        logits_BNV, cache = model.apply(
            variables, tokens_BN, position, cache, encoder_input_tokens, method=T5.step
        )
        chosen_BN = _choose(logits_BNV, temperature, rng, position)
        tokens_BN = jnp.where(ended_BN, 0, chosen_BN)
        output = jax.lax.dynamic_update_index_in_dim(output, tokens_BN, position, axis=2)
        return position + 1, tokens_BN, ended_BN | (tokens_BN == EOS), output, cache

    def unfinished(state):
        position, _, ended_BN, _, _ = state
        return (position < max_tokens) & ~jnp.all(ended_BN)

    start = jnp.zeros((B, samples), jnp.int32)
    output = jnp.zeros((B, samples, max_tokens), jnp.int32)
    state = (jnp.int32(0), start, start > 0, output, cache)
    return jax.lax.while_loop(unfinished, body, state)[3]


def for_decoding(model: T5, params) -> tuple[T5, dict]:
    """Returns model and parameters as the decoder needs them: unrolled, adapters merged."""
    if model.config.lora is not None:
        params = lora.merge(params, model.config.lora)
    config = dataclasses.replace(model.config, scan_layers=False, remat="none", lora=None)
    return T5(config), unstack_layers(params)


def _choose(logits_BNV, temperature, rng, position):
    greedy = lambda: jnp.argmax(logits_BNV, axis=-1).astype(jnp.int32)  # noqa: E731

    def sampled():
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng, position)
        scaled = logits_BNV / jnp.maximum(temperature, 1e-6)
        draw = jax.vmap(lambda key, logits_NV: jax.random.categorical(key, logits_NV))
        return draw(keys, scaled).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, sampled, greedy)
