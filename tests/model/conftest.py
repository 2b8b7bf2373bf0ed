"""Tiny students: one of random parameters, and those that T5X and Hugging Face wrote."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from cot_flax.model.t5 import T5, T5Config

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
        return model.apply({"params": params}, *arrays)

    return call


@pytest.fixture(scope="session")
def tiny(tiny_config):
    """A model and parameters, for tests that hold for any."""
    model = T5(tiny_config)
    token = np.zeros((1, 1), np.int32)
    return model, jax.jit(model.init)(jax.random.key(0), token, token, token)["params"]


@pytest.fixture(scope="session")
def from_t5x(shared_data):
    """Config, parameters and expected outputs of a checkpoint that T5X wrote."""
    folder = shared_data / "fixtures" / "t5x_legacy_tiny"
    arrays = {}
    for path in (folder / "legacy" / "checkpoint_0").glob("target.*"):
        arrays[path.name.removeprefix("target.")] = _read_zarr(path)
    return RELEASED, _nested(arrays), np.load(folder / "expected.npz")


@pytest.fixture(scope="session", params=["hf_tiny_v1_1", "hf_tiny_v1_0"])
def from_hugging_face(request, shared_data):
    """The same of T5 1.1 and T5 1.0 as Hugging Face wrote them."""
    folder = shared_data / "fixtures" / request.param
    config = RELEASED
    if request.param == "hf_tiny_v1_0":
        config = dataclasses.replace(RELEASED, mlp_activations=("relu",), logits_via_embedding=True)
    params = {}
    for name, array in _read_safetensors(folder / "model.safetensors").items():
        ours, transpose = _our_name(name)
        params[ours] = array.T if transpose else array
    return config, _nested(params), np.load(folder / "expected.npz")


def _read_zarr(path):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, open=True).result().read().result()


def _read_safetensors(path):
    """A header's length, the header in JSON, and the arrays, all float32 here."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__")
    return {
        name: np.frombuffer(content, np.float32, offset=start + entry["data_offsets"][0])[
            : np.prod(entry["shape"])
        ].reshape(entry["shape"])
        for name, entry in header.items()
    }


def _our_name(name):
    """Our name of a Hugging Face parameter, and whether it is stored the other way round."""
    top = {
        "shared.weight": ("token_embedder.embedding", False),
        "lm_head.weight": ("decoder.logits_dense.kernel", True),
        "encoder.final_layer_norm.weight": ("encoder.encoder_norm.scale", False),
        "decoder.final_layer_norm.weight": ("decoder.decoder_norm.scale", False),
    }
    if name in top:
        return top[name]
    stack, _, block, _, sublayer, *rest = name.split(".")
    if rest[1] == "relative_attention_bias":
        return f"{stack}.relpos_bias.rel_embedding", True
    layer = f"{stack}.layers_{block}"
    if rest[0] == "layer_norm":
        kinds = {"encoder": ("attention", "mlp")}.get(stack) or (
            "self_attention",
            "cross_attention",
            "mlp",
        )
        return f"{layer}.pre_{kinds[int(sublayer)]}_layer_norm.scale", False
    modules = {
        "SelfAttention": {"encoder": "attention", "decoder": "self_attention"}[stack],
        "EncDecAttention": "encoder_decoder_attention",
        "DenseReluDense": "mlp",
    }
    kernels = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return f"{layer}.{modules[rest[0]]}.{kernels.get(rest[1], rest[1])}.kernel", True


def _nested(flat):
    tree = {}
    for name, array in flat.items():
        *folders, leaf = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = array
    return tree
