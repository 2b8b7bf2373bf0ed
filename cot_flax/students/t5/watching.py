"""Where a T5 watches for numbers that are not finite; training/guard.py says what it found."""

import re

import jax
import jax.numpy as jnp

from cot_flax.students.t5.config import T5Config

FORWARD = (
    *("token_embedder", "encoder", "decoder", "relpos_bias", "layers"),
    *("pre_attention_layer_norm", "attention", "pre_self_attention_layer_norm", "self_attention"),
    *("pre_cross_attention_layer_norm", "encoder_decoder_attention", "pre_mlp_layer_norm", "mlp"),
    *("encoder_norm", "decoder_norm", "logits_dense"),
    *("query", "key", "value", "out", "wi", "wo"),
)
"""Modules in the order in which they run."""
SUBLAYERS = {
    "encoder": ("attention", "mlp"),
    "decoder": ("self_attention", "encoder_decoder_attention", "mlp"),
}


def places(config: T5Config) -> list[str]:
    """Names of the P places, the last of which the loss watches."""
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    names = []
    for stack, sublayers in SUBLAYERS.items():
        names.append("token_embedder")
        names += [f"{stack}.layers_{i}.{name}" for i in range(depths[stack]) for name in sublayers]
        names.append(f"{stack}.{stack}_norm")
    return [*names, "logits"]


def flags(watched: dict) -> jax.Array:
    """Boolean [P - 1]: whether a place gave something that is not finite.

    Every norm tells of its input, which is the output of the place before it.

    Args:
        watched: the "intermediates" of the model's call.
    """
    rows = []
    for stack, sublayers in SUBLAYERS.items():
        found = watched[stack]
        norms = [f"pre_{name}_layer_norm" for name in sublayers]
        norms = [name.replace("encoder_decoder", "cross") for name in norms]
        layers = [found[key] for key in sorted(found, key=_depth) if key.startswith("layers")]
        for layer in layers:  # one with a leading axis where layers are scanned
            rows_LB = jnp.stack([layer[name]["nonfinite"][0] for name in norms], axis=-2)
            rows.append(rows_LB.reshape(-1, rows_LB.shape[-1]))
        rows += [found[f"{stack}_norm"]["nonfinite"][0][None], found["nonfinite"][0][None]]
    return jnp.any(jnp.concatenate(rows), axis=-1)


def _depth(name: str) -> int:
    found = re.search(r"_(\d+)$", name)
    return int(found[1]) if found else 0
