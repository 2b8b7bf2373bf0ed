"""Tests of finding the model from shapes, against the shapes of models."""

import pytest

from cot_flax.errors import UserError
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.students.t5.t5x import config_of

TINY = {"vocab_size": 24, "emb_dim": 16, "head_dim": 4, "mlp_dim": 32}


@pytest.mark.parametrize(
    "config",
    [
        T5Config(**TINY, num_heads=2, num_encoder_layers=1, num_decoder_layers=3),
        T5Config(**TINY, num_heads=5, num_encoder_layers=12, num_decoder_layers=1),
        T5Config(**TINY, mlp_activations=("relu",), logits_via_embedding=True),
        T5Config(**TINY, mlp_activations=("relu",)),
    ],
)
def test_the_shapes_of_a_model_tell_its_config(config):
    assert config_of(T5Student(config).parameter_shapes(), "here") == config


SHAPES = T5Student(T5Config(**TINY, num_encoder_layers=2, num_decoder_layers=2)).parameter_shapes()


def without(part):
    return {name: shape for name, shape in SHAPES.items() if part not in name}


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        (without("encoder."), "at here: decoder.decoder_norm, decoder.layers_0, .*, token_embedd"),
        (without("decoder."), "at here: encoder.encoder_norm, encoder.layers_0, "),
        ({"Transformer.encoderblock_0.kernel": (4, 4)}, "at here: Transformer.encoderblock_0;"),
        ({}, "at here: no parameters;"),
        (
            without("relpos") | {"decoder.layers_0.relpos_bias.rel_embedding": (2, 32)},
            r"position bias in every layer \(umT5",
        ),
        (SHAPES | {"token_embedder.embedding": (2, 24, 16)}, "at here: decoder.decoder_norm"),
    ],
)
def test_a_model_that_is_no_t5(shapes, found):
    with pytest.raises(UserError, match=rf"not a T5.*{found}.*expected token_embedder, an enc"):
        config_of(shapes, "here")
