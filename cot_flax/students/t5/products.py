"""A T5's matrix products and stacks, for the planner.

Letters: B batch, S inputs, T targets (tokens of all rows), D width, F mlp width, V vocabulary,
H heads, C width of a head.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cot_flax.students import attention_kernels
from cot_flax.students.products import Product
from cot_flax.students.student import Stack
from cot_flax.students.t5.config import T5Config


def products(
    config: T5Config, batch: int, inputs: int, targets: int, platform: str
) -> list[Product]:
    """Every product of a forward pass over [batch, inputs] and [batch, targets] tokens."""
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    S, T = batch * inputs, batch * targets
    mixing = partial(_mixing, config, batch, platform)
    return [
        *_projections(config, S, S, encoder),
        *mixing(inputs, inputs, encoder, has_position=True),
        *_mlp(config, S, encoder),
        *_projections(config, T, T, decoder),
        *mixing(targets, targets, decoder, has_position=True),
        *_projections(config, T, S, decoder),
        *mixing(targets, inputs, decoder, has_position=False),
        *_mlp(config, T, decoder),
        Product("head", T, config.emb_dim, config.vocab_size, 1, "columns"),
    ]


def stacks(config: T5Config, batch: int, inputs: int, targets: int) -> list[Stack]:
    """The encoder's layers and the decoder's."""
    return [
        Stack(batch * inputs, config.num_encoder_layers),
        Stack(batch * targets, config.num_decoder_layers),
    ]


def vocabulary_weights(config: T5Config) -> int:
    """Parameters of the embedding and, where it is another matrix, of the head."""
    matrices = 1 if config.logits_via_embedding else 2
    return matrices * config.vocab_size * config.emb_dim


def _projections(config, queries, keys, layers):
    D, HC = config.emb_dim, config.num_heads * config.head_dim
    return [
        Product("dense", queries, D, HC, layers, "columns"),
        Product("dense", keys, D, HC, 2 * layers, "columns"),
        Product("dense", queries, HC, D, layers, "inner"),
    ]


def _mixing(config, batch, platform, queries, keys, layers, *, has_position):
    C, copies = config.head_dim, batch * config.num_heads * layers
    fused = _is_fused(config, platform, queries, keys, has_position)
    return [
        Product("attention", queries, C, keys, copies, "copies", fused=fused),
        Product("attention", queries, keys, C, copies, "copies", fused=fused),
    ]


def _is_fused(config, platform, queries, keys, has_position) -> bool:
    """Whether `attention_kernels.attend` takes a fused kernel, which knows no dropout."""
    if config.dropout_rate > 0:
        return False
    query_BTHC, keys_BSHC = (
        jax.ShapeDtypeStruct(
            (1, length, config.num_heads, config.head_dim), jnp.dtype(config.dtype)
        )
        for length in (queries, keys)
    )
    position = jax.ShapeDtypeStruct((1, config.num_heads, queries, keys), jnp.float32)
    segments_BT, segments_BS = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (queries, keys))
    # Shapes stand for arrays: what is chosen depends on nothing else.
    arrays: Any = position if has_position else None, segments_BT, segments_BS
    bias = attention_kernels.Bias(*arrays)
    chosen = attention_kernels.choose(config.attention, platform, query_BTHC, keys_BSHC, bias)
    return chosen != "xla"


def _mlp(config, rows, layers):
    D, F = config.emb_dim, config.mlp_dim
    inward = len(config.mlp_activations) * layers
    return [
        Product("dense", rows, D, F, inward, "columns"),
        Product("dense", rows, F, D, layers, "inner", last=True),
    ]
