"""Hugging Face's names of a T5's parameters and ours, and which matrices it stores transposed.

Ours are T5X's; `{i}` is the layer. T5 1.0 has `wi`, T5 1.1 `wi_0`, `wi_1` and a head of its own.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

HEAD = "decoder.logits_dense.kernel"
EMBEDDING = "token_embedder.embedding"
HUGGING_FACE_HEAD = "lm_head.weight"

EMBEDDING_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Further names under which a file may hold the embedding, beside `shared.weight` or in its place;
so does `lm_head.weight` where the head is the embedding."""

IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""In old checkpoints, of no use to any model: cross attention has no position bias."""


class Stored(NamedTuple):
    """A parameter as Hugging Face stores it: its name, and whether the matrix is transposed."""

    name: str
    transposed: bool


def _attention(ours: str, theirs: str) -> dict[str, Stored]:
    kernels = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {
        f"{ours}.{kernel}.kernel": Stored(f"{theirs}.{letter}.weight", True)
        for kernel, letter in kernels.items()
    }


def _mlp(ours: str, theirs: str) -> dict[str, Stored]:
    return {
        f"{ours}.{kernel}.kernel": Stored(f"{theirs}.{kernel}.weight", True)
        for kernel in ("wi", "wi_0", "wi_1", "wo")
    }


def _norm(ours: str, theirs: str) -> dict[str, Stored]:
    return {f"{ours}.scale": Stored(f"{theirs}.weight", False)}


def _stack(stack: str, sublayers: tuple[tuple[str, str, str], ...]) -> dict[str, Stored]:
    """`sublayers`: our module, our norm before it and Hugging Face's module, in their order."""
    table = _norm(f"{stack}.{stack}_norm", f"{stack}.final_layer_norm")
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table[f"{stack}.relpos_bias.rel_embedding"] = Stored(bias, True)
    for j, (module, norm, their_module) in enumerate(sublayers):
        ours, theirs = f"{stack}.layers_{{i}}", f"{stack}.block.{{i}}.layer.{j}"
        table |= _norm(f"{ours}.{norm}", f"{theirs}.layer_norm")
        kind = _mlp if module == "mlp" else _attention
        table |= kind(f"{ours}.{module}", f"{theirs}.{their_module}")
    return table


TABLE: Mapping[str, Stored] = {
    EMBEDDING: Stored("shared.weight", False),
    HEAD: Stored(HUGGING_FACE_HEAD, True),
    **_stack(
        "encoder",
        (
            ("attention", "pre_attention_layer_norm", "SelfAttention"),
            ("mlp", "pre_mlp_layer_norm", "DenseReluDense"),
        ),
    ),
    **_stack(
        "decoder",
        (
            ("self_attention", "pre_self_attention_layer_norm", "SelfAttention"),
            ("encoder_decoder_attention", "pre_cross_attention_layer_norm", "EncDecAttention"),
            ("mlp", "pre_mlp_layer_norm", "DenseReluDense"),
        ),
    ),
}
"""Hugging Face's name for each of ours."""

_OURS = {stored.name: (ours, stored.transposed) for ours, stored in TABLE.items()}


def to_hugging_face(name: str) -> Stored:
    """Hugging Face's form of our parameter; raises KeyError where a T5 has none of that name."""
    layer = re.search(r"(?<=\.layers_)\d+", name)
    if not layer:
        return TABLE[name]
    stored = TABLE[name.replace(f".layers_{layer[0]}.", ".layers_{i}.", 1)]
    return stored._replace(name=stored.name.replace("{i}", layer[0]))


def from_hugging_face(name: str) -> tuple[str, bool] | None:
    """Our name of Hugging Face's parameter and whether it is transposed; None if no T5 has it."""
    if name in _OURS:
        return _OURS[name]
    block = re.match(r"(?:encoder|decoder)\.block\.(\d+)\.", name)
    known = block and _OURS.get(name.replace(f".block.{block[1]}.", ".block.{i}.", 1))
    return (known[0].replace("{i}", block[1]), known[1]) if known else None
