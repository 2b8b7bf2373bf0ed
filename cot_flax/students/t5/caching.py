"""A T5's prefill and decoding step, over caches laid out as its products read them.

None of them is transposed at a step. The decoder's own keys and values lie in a `Ring`; the row of
relative biases rolls with its head. Letters as in students/student.py.
"""

from typing import cast

import jax
import jax.numpy as jnp

from cot_flax.students.student import Prompts, Ring
from cot_flax.students.t5.attention import MASKED, Attention
from cot_flax.students.t5.model import T5
from cot_flax.text.tokenizers import SpecialIds


def prefill(model: T5, params, tokens_BS, special_ids: SpecialIds) -> Prompts:
    """Encodes prompts, int32 [B, S], and makes the keys and values that cross attention reads."""

    def read(t5: T5):
        encoded_BSD = t5.encode(tokens_BS)
        pairs = [layer.cross_keys_values(encoded_BSD) for layer in t5.decoder.layers]
        # Once a prompt, so that no step transposes: keys as [C, S] matrices, values as [S, C].
        keys = [key_BSHC.transpose(0, 2, 3, 1) for key_BSHC, _ in pairs]
        values = [value_BSHC.transpose(0, 2, 1, 3) for _, value_BSHC in pairs]
        return keys, values

    seen_BS = tokens_BS != special_ids.pad
    bias = jnp.where(seen_BS, 0.0, MASKED)[:, None, None].astype(jnp.float32)
    start_B = jnp.full(len(tokens_BS), special_ids.start, jnp.int32)
    keys, values = cast(tuple[list, list], model.apply({"params": params}, method=read))
    return Prompts(keys, values, bias, start_B, length_B=jnp.zeros_like(start_B))


def step(model: T5, params, tokens_BN, ages_B, head, prompts: Prompts, ring: Ring):
    """Feeds one token a sample; arguments and results as in `Student.step`."""

    def run(t5: T5):
        decoder = t5.decoder
        L = ring.keys[0].shape[3]
        seen_BL = ((head - jnp.arange(L)) % L)[None] <= ages_B[:, None]

        # What the youngest token of a full row sees, rolled so that its last column is the head.
        def bias(position) -> jax.Array:
            row_HL = jnp.roll(position.last_row(L), head + 1, axis=-1)
            # In float32 with the logits: a masked key must lose against any learned bias.
            return row_HL[None, None] + jnp.where(seen_BL, 0.0, MASKED)[:, None, None]

        per_layer = t5.config.bias_per_layer
        shared_B1HL = None if per_layer else bias(decoder.relpos_bias)
        x_BND = t5.token_embedder(tokens_BN).astype(t5.config.residual_dtype)
        new = Ring([], [])
        for i, layer in enumerate(decoder.layers):
            own = layer.self_attention
            y_BND = layer.pre_self_attention_layer_norm(x_BND)
            key_BNHC, value_BNHC = own.keys_values(y_BND)
            new.keys.append(_write(ring.keys[i], key_BNHC, head))
            new.values.append(_write(ring.values[i], value_BNHC, head))
            bias_B1HL = bias(layer.relpos_bias) if per_layer else shared_B1HL
            x_BND = _add(x_BND, _attend(own, y_BND, _OWN, new.keys[i], new.values[i], bias_B1HL))

            y_BND = layer.pre_cross_attention_layer_norm(x_BND)
            seen = prompts.keys[i], prompts.values[i], prompts.bias
            y_BND = _attend(layer.encoder_decoder_attention, y_BND, _PROMPTS, *seen)
            x_BND = _add(x_BND, y_BND)
            x_BND = _add(x_BND, layer.mlp(layer.pre_mlp_layer_norm(x_BND), deterministic=True))
        return t5.logits(decoder.decoder_norm(x_BND)), new

    return model.apply({"params": params}, method=run)


_OWN = "bnhc,bnhlc->bnhl", "bnhl,bnhlc->bnhc"
# All samples of a prompt as one matrix: otherwise XLA's CPU backend takes four times as long.
_PROMPTS = "bhnc,bhcs->bhns", "bhns,bhsc->bhnc"


def _attend(attention: Attention, y_BND, products, keys, values, bias):
    """As `Attention` itself, over keys and values in the layouts that `products` name."""
    match, mix = products
    query = jnp.einsum(f"bnhc->{match[:4]}", attention.query(y_BND))
    logits = jnp.einsum(match, query, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits + bias).astype(values.dtype)
    mixed_BNHC = jnp.einsum(f"{mix[-4:]}->bnhc", jnp.einsum(mix, weights, values))
    return attention.out(mixed_BNHC.reshape(*y_BND.shape[:2], -1))


def _write(ring_BNHLC, new_BNHC, head):
    return jax.lax.dynamic_update_index_in_dim(ring_BNHLC, new_BNHC, head, axis=3)


def _add(x_BND, y_BND):
    return x_BND + y_BND.astype(x_BND.dtype)
