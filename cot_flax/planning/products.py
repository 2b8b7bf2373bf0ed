"""The matrix products of one forward pass, listed: FLOPs and bytes follow by arithmetic.

XLA's own count takes the body of a loop once, whatever its length, and most of a step happens in
loops: scanned layers, micro-batches, the tiles of the loss.
"""

from typing import NamedTuple

from cot_flax.model.config import T5Config

# Shape letters: B batch, S inputs, T targets, D width, F mlp, V vocabulary, X heads x head width.


class Product(NamedTuple):
    """`copies` products of [rows, inner] by [inner, columns].

    Attributes:
        kind: "dense" (by a weight of a layer), "attention" (self), "cross" (attention to the
            encoder's output) or "head".
        split: what a mesh's model axis splits: "inner", "columns" or "copies" (heads).
        last: of its layer: full recomputation leaves it out, since nothing in the backward pass
            reads its result.
    """

    kind: str
    rows: int
    inner: int
    columns: int
    copies: int
    split: str
    last: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns * self.copies


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


def passes(product: Product, config: T5Config, *, adapters_only: bool) -> float:
    """How many times a training step does the work of a product.

    Forward, the gradient of either side, and what `remat` does again: "full" every layer but its
    last product, "minimal" the products of activations with activations.

    Args:
        adapters_only: LoRA: no gradient of a weight is formed.
    """
    gradients = 1 if adapters_only and product.kind in ("dense", "head") else 2
    again = {
        "full": product.kind != "head" and not product.last,
        "minimal": product.kind in ("attention", "cross"),
        "none": False,
    }[config.remat]
    return 1 + gradients + again


def step_flops(config: T5Config, batch: int, inputs: int, targets: int) -> float:
    """Multiplications and additions of one optimizer step, those of matrix products alone."""
    adapters_only = config.lora is not None
    return sum(
        product.flops * passes(product, config, adapters_only=adapters_only)
        for product in forward(config, batch, inputs, targets)
    )


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
