"""The model that parameters belong to, from their names and shapes: T5X stores no config."""

import re

from cot_flax.errors import UserError
from cot_flax.students.parameters import Shapes
from cot_flax.students.t5.config import T5Config

_BIASED_LAYER = re.compile(r"(layers_\d+|encoder\.encoder|decoder\.decoder)\.relpos_bias")
_LISTED = 6


def config_of(shapes: Shapes, place: str) -> T5Config:
    """The model of parameters with T5X's names, layers unrolled.

    Raises:
        UserError: they are not those of a T5.
    """
    if any(_BIASED_LAYER.search(name) for name in shapes):
        raise _foreign("a position bias in every layer (umT5, T5X's scalable_t5)", place)
    gated = "decoder.layers_0.mlp.wi_0.kernel" in shapes
    try:
        vocab_size, emb_dim = shapes["token_embedder.embedding"]
        num_heads, _ = shapes["decoder.relpos_bias.rel_embedding"]
        _, joined = shapes["decoder.layers_0.self_attention.query.kernel"]
        _, mlp_dim = shapes[f"encoder.layers_0.mlp.{'wi_0' if gated else 'wi'}.kernel"]
    except (KeyError, ValueError) as error:
        top = sorted({".".join(name.split(".")[:2]) for name in shapes})
        listed = ", ".join(top[:_LISTED]) + (", ..." if len(top) > _LISTED else "")
        raise _foreign(listed or "no parameters", place) from error
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=_layers(shapes, "encoder"),
        num_decoder_layers=_layers(shapes, "decoder"),
        head_dim=joined // num_heads,
        mlp_dim=mlp_dim,
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding="decoder.logits_dense.kernel" not in shapes,
    )


def _layers(shapes: Shapes, stack: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{stack}.layers_")})


def _foreign(found: str, place: str) -> UserError:
    return UserError(
        f"a model that is not a T5 at {place}: {found}",
        "token_embedder, an encoder and a decoder with one relpos_bias each, as T5, T5 1.1 and "
        "Flan-T5 have",
        "choose a checkpoint of one of these, or Hugging Face's form",
    )
