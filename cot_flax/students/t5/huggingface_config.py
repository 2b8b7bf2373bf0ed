"""Hugging Face's config.json of a T5, from and to our T5Config."""

from collections.abc import Mapping

from cot_flax.errors import UserError
from cot_flax.students.t5.model import T5Config

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
_MODEL_TYPES = ("t5", "mt5")
_SEQ2SEQ = ("ForConditionalGeneration", "WithLMHeadModel", "T5Model")
_REMEDY = "give a T5, T5 1.1, Flan-T5 or mT5 for conditional generation"


def model_config(config: Mapping, place: str) -> T5Config:
    """The model of a config.json; dropout is the run's business and stays 0.

    Raises:
        UserError: another kind of model, or a T5 that T5Config cannot express.
    """
    _check_kind(config, place)
    for name, value in _FIXED.items():
        if (found := config.get(name, value)) != value:
            raise UserError(f"{name} {found} in {place}", f"{name} {value}", _REMEDY)
    sizes = {ours: _size(config, theirs, place) for theirs, ours in _SIZES.items()}
    depth = config.get("num_decoder_layers")
    return T5Config(
        **sizes,
        num_decoder_layers=sizes["num_encoder_layers"] if depth is None else depth,
        mlp_activations=_activations(config, place),
        logits_via_embedding=_tied(config),
    )


def config_json(config: T5Config) -> dict:
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
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "num_decoder_layers": config.num_decoder_layers,
        **_FIXED,
        "feed_forward_proj": proj,
        "dense_act_fn": activation,
        "is_gated_act": len(config.mlp_activations) > 1,
        "dropout_rate": config.dropout_rate,
        "is_encoder_decoder": True,
        "use_cache": True,
        **SPECIAL_TOKENS,
        # transformers 4 asks the first whether to scale the head's input, transformers 5 the second
        # (if it is there). Both take the head from the file where the file has one.
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
    }


SPECIAL_TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def _check_kind(config: Mapping, place: str) -> None:
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        raise UserError(f"a model of type {kind} in {place}", f"one of {_MODEL_TYPES}", _REMEDY)
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
    default = "gated-gelu" if config["model_type"] == "mt5" else "relu"
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
