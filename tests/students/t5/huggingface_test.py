import pytest

from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.students.t5.huggingface import Stored, from_hugging_face, to_hugging_face

# From the checkpoints of google/flan-t5-base and t5-small, and T5X's of the same models.
PAIRS = {
    "token_embedder.embedding": ("shared.weight", False),
    "decoder.logits_dense.kernel": ("lm_head.weight", True),
    "encoder.relpos_bias.rel_embedding": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        True,
    ),
    "decoder.decoder_norm.scale": ("decoder.final_layer_norm.weight", False),
    "encoder.layers_11.attention.out.kernel": (
        "encoder.block.11.layer.0.SelfAttention.o.weight",
        True,
    ),
    "encoder.layers_3.mlp.wi_1.kernel": (
        "encoder.block.3.layer.1.DenseReluDense.wi_1.weight",
        True,
    ),
    "decoder.layers_0.mlp.wi.kernel": ("decoder.block.0.layer.2.DenseReluDense.wi.weight", True),
    "decoder.layers_10.pre_cross_attention_layer_norm.scale": (
        "decoder.block.10.layer.1.layer_norm.weight",
        False,
    ),
    "decoder.layers_2.encoder_decoder_attention.value.kernel": (
        "decoder.block.2.layer.1.EncDecAttention.v.weight",
        True,
    ),
}


@pytest.mark.parametrize("ours", PAIRS)
def test_names_of_released_checkpoints(ours):
    theirs, transposed = PAIRS[ours]
    assert to_hugging_face(ours) == Stored(theirs, transposed)
    assert from_hugging_face(theirs) == (ours, transposed)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
def test_every_parameter_has_a_name_of_its_own(activations, per_layer):
    config = T5Config(
        bias_per_layer=per_layer,
        num_encoder_layers=12,
        num_decoder_layers=2,
        mlp_activations=activations,
        logits_via_embedding=activations == ("relu",),
    )
    names = list(T5Student(config).parameter_shapes())
    theirs = [to_hugging_face(name).name for name in names]
    assert len(set(theirs)) == len(names)
    found = [from_hugging_face(name, bias_per_layer=per_layer)[0] for name in theirs]
    assert found == names
    biases = [name for name in names if name.endswith("rel_embedding")]
    assert len(biases) == (14 if per_layer else 2)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.0.layer.0.SelfAttention.q.bias",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.{i}.layer.0.layer_norm.weight.weight",
        "transformer.block.0.layer.0.layer_norm.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_a_name_that_no_t5_has(name):
    assert from_hugging_face(name) is None
