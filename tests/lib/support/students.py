"""Tiny students: one of random parameters, and those that T5X and Hugging Face wrote."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from cot_flax.students.parameters import nest
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.weights.opening import open_source

RELEASED = T5Config(
    vocab_size=256,
    emb_dim=32,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=8,
    mlp_dim=64,
)


@pytest.fixture(scope="package", autouse=True)
def _quick_compilation():
    """Hundreds of programs are compiled here and hardly run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def tiny_config() -> T5Config:
    return T5Config(
        vocab_size=24,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        head_dim=4,
        mlp_dim=32,
    )


@pytest.fixture(scope="session")
def forward():
    """The logits of (model, params, encoder inputs, decoder inputs, targets, segments...)."""

    @partial(jax.jit, static_argnums=0)
    def call(model, params, *arrays):
        return model.module.apply({"params": params}, *arrays)

    return call


@pytest.fixture(scope="session")
def tiny(tiny_config):
    """A model and parameters, for tests that hold for any."""
    model = T5Student(tiny_config)
    return model, jax.jit(model.init)(jax.random.key(0))["params"]


@pytest.fixture(scope="session")
def from_t5x(fixtures):
    """Config, parameters and expected outputs of a checkpoint that T5X wrote."""
    folder = fixtures / "t5x_legacy_tiny"
    return RELEASED, _read(folder / "legacy"), np.load(folder / "expected.npz")


@pytest.fixture(scope="session", params=["hf_tiny_v1_1", "hf_tiny_v1_0"])
def from_hugging_face(request, fixtures):
    """The same of T5 1.1 and T5 1.0 as Hugging Face wrote them."""
    folder = fixtures / request.param
    config = RELEASED
    if request.param == "hf_tiny_v1_0":
        config = dataclasses.replace(RELEASED, mlp_activations=("relu",), logits_via_embedding=True)
    return config, _read(folder), np.load(folder / "expected.npz")


def _read(folder):
    """Parameters as they are loaded for training; what proves them is the expected outputs."""
    source = open_source(str(folder))
    return nest({name: tensor.whole() for name, tensor in source.tensors.items()})
