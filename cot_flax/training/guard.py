"""Where a step that is not finite broke: flags made on the device, names given on the host."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

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
    """Names of the P places that `activation_flags` watches, in forward order."""
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    names = []
    for stack, sublayers in SUBLAYERS.items():
        names.append("token_embedder")
        names += [f"{stack}.layers_{i}.{name}" for i in range(depths[stack]) for name in sublayers]
        names.append(f"{stack}.{stack}_norm")
    return [*names, "logits"]


def activation_flags(config: T5Config, watched: dict, finite_logits: jax.Array) -> jax.Array:
    """Returns float32 [P], above 0 where a place gave something that is not finite.

    Every norm tells of its input, which is the output of the place before it.

    Args:
        watched: the "intermediates" of the model's call.
        finite_logits: boolean, of any shape.
    """
    rows = []
    for stack, sublayers in SUBLAYERS.items():
        found = watched[stack]
        norms = [f"pre_{name}_layer_norm" for name in sublayers]
        norms = [name.replace("encoder_decoder", "cross") for name in norms]
        layers = [found[key] for key in sorted(found, key=_order) if key.startswith("layers")]
        for layer in layers:  # one with a leading axis where layers are scanned
            flags = jnp.stack([layer[name]["nonfinite"][0] for name in norms], axis=-2)
            rows.append(flags.reshape(-1, flags.shape[-1]))
        rows += [found[f"{stack}_norm"]["nonfinite"][0][None], found["nonfinite"][0][None]]
    flags = jnp.any(jnp.concatenate(rows), axis=-1)
    return jnp.append(flags, ~jnp.all(finite_logits)).astype(jnp.float32)


def gradient_flags(grads: dict) -> jax.Array:
    """Returns boolean, one for each of `names(grads)`: the gradient's square sum is not finite."""
    squares = [jnp.sum(jnp.square(leaf)) for _, leaf in _forward(grads)]
    return ~jnp.isfinite(jnp.stack(squares))


def names(params: dict) -> list[str]:
    """Names of parameters in forward order."""
    return [name for name, _ in _forward(params)]


def locate_nonfinite(
    config: T5Config,
    trainable: list[str],
    activations: np.ndarray,
    gradients: np.ndarray,
    loss: float,
) -> str:
    """Says where a step that is not finite broke.

    Args:
        trainable: `names` of the parameters that have a gradient.
        activations, gradients: the flags of that step.
        loss: the loss of that step.
    """
    if np.any(activations > 0):
        return f"the first bad place is {places(config)[np.argmax(activations > 0)]}"
    if not math.isfinite(loss):
        return "the logits are finite, the loss weights or the teacher's rows are not"
    # The backward pass reaches the last parameter first.
    last = [name for name, bad in zip(trainable, gradients, strict=True) if bad][-1]
    return f"the loss is finite, the gradient breaks at {last}"


def _forward(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [(".".join(key.key for key in path), leaf) for path, leaf in leaves]
    return sorted(named, key=lambda item: _order(item[0]))


def _order(name):
    parts = [re.fullmatch(r"(.+?)(?:_(\d+))?", part).groups() for part in name.split(".")]
    return [(FORWARD.index(p) if p in FORWARD else len(FORWARD), int(i or 0)) for p, i in parts]
