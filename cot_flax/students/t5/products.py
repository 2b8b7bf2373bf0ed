"""The matrix products of a T5's forward pass.

B batch, S inputs, T targets, D width, F mlp, V vocabulary, X heads x head width.
"""

from cot_flax.students.products import Product
from cot_flax.students.t5.config import T5Config


def forward(config: T5Config, batch: int, inputs: int, targets: int) -> list[Product]:
    """Every product of a forward pass over [batch, inputs] and [batch, targets] tokens."""
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    S, T = batch * inputs, batch * targets
    return [
        *_projections(config, S, S, encoder),
        *_mixing(config, "attention", batch, inputs, inputs, encoder),
        *_mlp(config, S, encoder),
        *_projections(config, T, T, decoder),
        *_mixing(config, "attention", batch, targets, targets, decoder),
        *_projections(config, T, S, decoder),
        *_mixing(config, "cross", batch, targets, inputs, decoder),
        *_mlp(config, T, decoder),
        Product("head", T, config.emb_dim, config.vocab_size, 1, "columns"),
    ]


def _projections(config, queries, keys, layers):
    D, X = config.emb_dim, config.num_heads * config.head_dim
    return [
        Product("dense", queries, D, X, layers, "columns"),
        Product("dense", keys, D, X, 2 * layers, "columns"),
        Product("dense", queries, X, D, layers, "inner"),
    ]


def _mixing(config, kind, batch, queries, keys, layers):
    copies = batch * config.num_heads * layers
    return [
        Product(kind, queries, config.head_dim, keys, copies, "copies"),
        Product(kind, queries, keys, config.head_dim, copies, "copies"),
    ]


def _mlp(config, rows, layers):
    D, F = config.emb_dim, config.mlp_dim
    inward = len(config.mlp_activations) * layers
    return [
        Product("dense", rows, D, F, inward, "columns"),
        Product("dense", rows, F, D, layers, "inner", last=True),
    ]
