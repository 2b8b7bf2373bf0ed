"""Which attention is fused on which accelerator; what the counts are is in tests/planning."""

import dataclasses

import pytest

from cot_flax.students.t5 import T5Config
from cot_flax.students.t5.products import products, stacks, vocabulary_weights

MODEL = T5Config(
    vocab_size=512,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=2,
    head_dim=32,
)


def fused(platform, inputs=256, targets=128, **settings):
    """Of the encoder's attention, the decoder's own, and the decoder's to the encoder."""
    listed = products(dataclasses.replace(MODEL, **settings), 16, inputs, targets, platform)
    return [p.fused for p in listed if p.kind == "attention"][::2]


@pytest.mark.parametrize(
    ("platform", "settings", "expected"),
    [
        ("tpu", {}, [False, False, True]),
        ("tpu", {"inputs": 64, "targets": 32}, [False, False, False]),  # not multiples of 128
        ("tpu", {"attention": "flash", "targets": 32}, [True, False, False]),
        ("tpu", {"dropout_rate": 0.1}, [False, False, False]),
        ("cpu", {}, [False, False, False]),
        ("gpu", {}, [False, False, False]),  # float32
        ("gpu", {"dtype": "bfloat16"}, [True, True, True]),
    ],
)
def test_which_attention_is_fused_is_the_models_own_choice(platform, settings, expected):
    assert fused(platform, **settings) == expected


def test_sizes_that_a_plan_asks_for():
    assert stacks(MODEL, 16, 256, 128) == [(16 * 256, 3), (16 * 128, 2)]
    tied = dataclasses.replace(MODEL, logits_via_embedding=True)
    assert (vocabulary_weights(MODEL), vocabulary_weights(tied)) == (2 * 512 * 128, 512 * 128)
