"""Hugging Face's T5s, mT5 and umT5 too: config.json and T5Config, tensors by their names and ours.

Our names are T5X's; `{i}` is the layer. T5 1.0 has `wi`, T5 1.1 `wi_0`, `wi_1` and a head of its
own.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor
from cot_flax.students.t5.config import T5Config
from cot_flax.text.tokenizers import SpecialIds

MODEL_TYPES = ("t5", "mt5", "umt5")
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "emb_dim",
    "num_heads": "num_heads",
    "num_layers": "num_encoder_layers",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
}
_FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_ACTIVATIONS = {  # feed_forward_proj, dense_act_fn; the first of each of ours is what we write
    ("relu", "relu"): ("relu",),
    ("gated-gelu", "gelu_new"): ("gelu", "linear"),
    ("gated-silu", "silu"): ("silu", "linear"),
    ("gated-gelu_new", "gelu_new"): ("gelu", "linear"),
    ("gated-swish", "swish"): ("silu", "linear"),
}
_SEQ2SEQ = ("ForConditionalGeneration", "WithLMHeadModel", "T5Model")
_REMEDY = "give a T5, T5 1.1, Flan-T5, mT5, ByT5 or umT5 for conditional generation"
_COMPARED_ROWS = 4096  # of the embedding and the head, at a time

_BIAS = ".SelfAttention.relative_attention_bias.weight"
HEAD = "decoder.logits_dense.kernel"
EMBEDDING = "token_embedder.embedding"
HUGGING_FACE_HEAD = "lm_head.weight"

EMBEDDING_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Further names under which a file may hold the embedding, beside `shared.weight` or in its place;
so does `lm_head.weight` where the head is the embedding."""
EMBEDDINGS = ("shared.weight", *EMBEDDING_ALIASES)

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
    bias = f"{stack}.block.0.layer.0{_BIAS}"
    table[f"{stack}.relpos_bias.rel_embedding"] = Stored(bias, True)
    # umT5's, of which the first has the name of a T5's only one.
    own = f"{stack}.block.{{i}}.layer.0{_BIAS}"
    table[f"{stack}.layers_{{i}}.relpos_bias.rel_embedding"] = Stored(own, True)
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


def from_hugging_face(name: str, *, bias_per_layer: bool = False) -> tuple[str, bool] | None:
    """Our name of Hugging Face's parameter and whether it is transposed; None if no T5 has it.

    A model with `bias_per_layer` calls the first layer's bias as the others call their only one.
    """
    is_bias = name.endswith(_BIAS)
    if name in _OURS and not (is_bias and bias_per_layer):
        return _OURS[name]
    block = re.match(r"(?:encoder|decoder)\.block\.(\d+)\.", name)
    if block is None or (is_bias and not bias_per_layer):
        return None
    known = _OURS.get(name.replace(f".block.{block[1]}.", ".block.{i}.", 1))
    return (known[0].replace("{i}", block[1]), known[1]) if known else None


def model_config(config: Mapping, place: str) -> T5Config:
    """The model of a config.json; dropout is the run's business and stays 0.

    Raises:
        UserError: another kind of model, or a T5 that T5Config cannot express.
    """
    _check_kind(config, place)
    for name, value in _FIXED.items():
        if (found := config.get(name, value)) != value:
            raise UserError(f"{name} {found} in {place}", f"{name} {value}", _REMEDY)
    sizes: dict[str, Any] = {ours: _size(config, theirs, place) for theirs, ours in _SIZES.items()}
    depth = config.get("num_decoder_layers")
    return T5Config(
        **sizes,
        num_decoder_layers=sizes["num_encoder_layers"] if depth is None else depth,
        mlp_activations=_activations(config, place),
        bias_per_layer=config["model_type"] == "umt5",
        logits_via_embedding=_tied(config),
    )


def config_json(config: T5Config, special_ids: SpecialIds) -> dict:
    """What transformers 4.5x and 5.x read as this model.

    Raises:
        UserError: activations that transformers' T5 does not have.
    """
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    if config.mlp_activations not in names:
        raise UserError(
            f"mlp_activations {config.mlp_activations}",
            f"one of {list(names)}, which transformers has",
            "export to T5X instead",
        )
    proj, activation = names[config.mlp_activations]
    tied = config.logits_via_embedding
    kind = "umt5" if config.bias_per_layer else "t5"
    return {
        "architectures": [f"{kind.upper()}ForConditionalGeneration"],
        "model_type": kind,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "num_decoder_layers": config.num_decoder_layers,
        **_FIXED,
        "feed_forward_proj": proj,
        "dense_act_fn": activation,
        "is_gated_act": len(config.mlp_activations) > 1,
        "dropout_rate": config.dropout_rate,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": special_ids.pad,
        "eos_token_id": special_ids.end,
        "decoder_start_token_id": special_ids.start,
        # transformers 4 asks the first whether to scale the head's input, transformers 5 the second
        # (if it is there). Both take the head from the file where the file has one.
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
    }


def _check_kind(config: Mapping, place: str) -> None:
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"a model of type {kind} in {place}", f"one of {MODEL_TYPES}", _REMEDY)
    architectures = config.get("architectures") or ["T5ForConditionalGeneration"]
    if not any(name.endswith(_SEQ2SEQ) for name in architectures):
        raise UserError(
            f"{architectures[0]} in {place}", "an encoder-decoder with a language head", _REMEDY
        )


def _size(config: Mapping, name: str, place: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} {value} in {place}", "a whole number above 0", "download it again")
    return value


def _activations(config: Mapping, place: str) -> tuple[str, ...]:
    default = "relu" if config["model_type"] == "t5" else "gated-gelu"
    proj = config.get("feed_forward_proj", default)
    derived = "gelu_new" if proj == "gated-gelu" else proj.split("-")[-1]
    found = (proj, config.get("dense_act_fn", derived))
    if found not in _ACTIVATIONS:
        raise UserError(
            f"feed_forward_proj, dense_act_fn {found} in {place}",
            f"one of {list(_ACTIVATIONS)}",
            _REMEDY,
        )
    return _ACTIVATIONS[found]


def _tied(config: Mapping) -> bool:
    """Whether the head is the embedding, scaled.

    transformers 5 writes `tie_word_embeddings: true` into every config and keeps the truth in
    `scale_decoder_outputs`; for mT5, whose head is always its own, it keeps no such record.
    """
    if config["model_type"] == "mt5":
        return False
    tied = config.get("tie_word_embeddings", True) is not False
    return bool(config.get("scale_decoder_outputs", tied))


def special_ids_of(config: Mapping) -> SpecialIds:
    """Those of a config.json; T5's where it does not say."""
    pad = config.get("pad_token_id", 0)
    return SpecialIds(pad, config.get("eos_token_id", 1), config.get("decoder_start_token_id", pad))


def to_ours(
    config: T5Config, settings: Mapping, stored: Mapping[str, Tensor], place: str
) -> dict[str, Tensor]:
    """Tensors by our names, the way round that we have them.

    A name that no T5 has stays what it is.

    Raises:
        UserError: a head that is not the embedding where the config says that it is, or that is
            missing where it is none; an encoder and a decoder with different embeddings.
    """
    _check_embeddings(stored, place)
    if config.logits_via_embedding:
        return _ours(_without_head(stored, place), config)
    tensors = _ours(stored, config)
    if HEAD in tensors or EMBEDDING not in tensors:
        return tensors
    # A model made by transformers 5 has one matrix for both, whatever its config said.
    if "scale_decoder_outputs" not in settings:
        raise _no_head(settings, place)
    return tensors | {HEAD: tensors[EMBEDDING].T}


def to_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by Hugging Face's names, in the order in which they come."""
    named = {name: to_hugging_face(name) for name in tensors}
    return {
        stored.name: tensors[name].T if stored.transposed else tensors[name]
        for name, stored in named.items()
    }


def _check_embeddings(stored: Mapping[str, Tensor], place: str) -> None:
    """Raises UserError where the encoder and the decoder read different embeddings."""
    first, *others = [name for name in EMBEDDINGS if name in stored] or [""]
    for other in others:
        if not _equal(stored[other], stored[first]):
            raise UserError(
                f"{other} different from {first} beside {place}",
                "one embedding of encoder and decoder, as T5 has it",
                "give the file of a model that has one; two cannot be read",
            )


def _no_head(settings: Mapping, place: str) -> UserError:
    mt5 = settings["model_type"] == "mt5"
    why = "an mT5 has one" if mt5 else "tie_word_embeddings is false"
    remedy = "download the file that has it"
    if not mt5:
        remedy += (
            ', or write "tie_word_embeddings": true if the head is the embedding, as in T5 1.0'
        )
    return UserError(
        f"no {HUGGING_FACE_HEAD} beside {place}", f"a head of its own, because {why}", remedy
    )


def _without_head(stored: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Of a model whose head is the embedding; raises UserError if the file has them different."""
    rest = dict(stored)
    head = rest.pop(HUGGING_FACE_HEAD, None)
    embedding = next((rest[name] for name in EMBEDDINGS if name in rest), head)
    if head is not None and not _equal(head, embedding):  # type: ignore[arg-type]
        raise UserError(
            f"{HUGGING_FACE_HEAD} different from shared.weight in {place}",
            "the same numbers, because config.json says that the head is the embedding",
            'write "tie_word_embeddings": false into config.json if this is a T5 1.1 or Flan-T5',
        )
    return rest if embedding is None else rest | {"shared.weight": embedding}


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other or one.shape != other.shape:
        return one is other
    starts = range(0, one.shape[0], _COMPARED_ROWS)
    parts = [(slice(start, start + _COMPARED_ROWS), slice(None)) for start in starts]
    return all(np.array_equal(one.read(part), other.read(part)) for part in parts)


def _ours(stored: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name not in (*EMBEDDING_ALIASES, *IGNORED):
            found = from_hugging_face(name, bias_per_layer=config.bias_per_layer)
            ours, transposed = found or (name, False)
            tensors[ours] = tensor.T if transposed else tensor
    for name in EMBEDDING_ALIASES:
        if name in stored:
            tensors.setdefault(EMBEDDING, stored[name])
    return tensors
