"""Tests of the adapters against NumPy: their product, their start, and merging them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning
from flax.traverse_util import flatten_dict

from cot_flax.errors import UserError
from cot_flax.generation.decoding import decode
from cot_flax.students import lora
from cot_flax.students.lora import Lora
from cot_flax.students.parameters import stack_layers
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.attention import Dense

ARRAYS = [np.array([[10, 11, 12, 13]]), np.array([[0, 3, 4]]), np.array([[3, 4, 1]])]
ATTENTIONS = (
    "encoder.layers_0.attention",
    "decoder.layers_0.self_attention",
    "decoder.layers_0.encoder_decoder_attention",
    "decoder.layers_1.self_attention",
    "decoder.layers_1.encoder_decoder_attention",
)


def named(tree):
    return flatten_dict(tree, sep=".")


@pytest.fixture(scope="module")
def adapted_config(tiny_config):
    return dataclasses.replace(tiny_config, lora=Lora(rank=2, alpha=3.0))


@pytest.fixture(scope="module")
def fresh(adapted_config):
    model = T5Student(adapted_config)
    return model, jax.jit(model.init)(jax.random.key(0))["params"]


@pytest.fixture(scope="module")
def trained(fresh):
    """The same with a B that is not zero, as after training."""
    adapters, base = lora.split(fresh[1])
    keys = iter(jax.random.split(jax.random.key(1), 100))
    moved = jax.tree.map(lambda leaf: leaf + jax.random.normal(next(keys), leaf.shape), adapters)
    return fresh[0], lora.join(moved, base)


def test_adapters_stand_beside_queries_and_values_of_every_attention(adapted_config):
    def variables(**changes):
        model = T5Student(dataclasses.replace(adapted_config, **changes))
        return jax.eval_shape(model.init, jax.random.key(0))

    expected = {}
    for attention in ATTENTIONS:
        for projection in ("query", "value"):
            expected[f"{attention}.{projection}.lora_a"] = ((16, 2), ("embed", "lora_rank"))
            expected[f"{attention}.{projection}.lora_b"] = ((2, 8), ("lora_rank", "joined_kv"))
    found = variables()
    axes = named(partitioning.get_axis_names(found["params_axes"]))
    adapters = named(lora.split(found["params"])[0])
    assert {name: (leaf.shape, tuple(axes[name])) for name, leaf in adapters.items()} == expected
    assert all(leaf.dtype == jnp.float32 for leaf in adapters.values())
    scanned = named(lora.split(variables(scan_layers=True)["params"])[0])
    assert scanned["decoder.layers.self_attention.query.lora_a"].shape == (2, 16, 2)
    other = variables(lora=Lora(targets=("out",)))["params"]
    assert {name.split(".")[-2] for name in named(lora.split(other)[0])} == {"out"}


def test_a_new_adapter_changes_nothing(fresh, tiny, forward):
    adapters, base = lora.split(fresh[1])
    # Two programs, so equal but for the last bit.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), base, tiny[1])
    logits = forward(fresh[0], lora.join(adapters, tiny[1]), *ARRAYS)
    np.testing.assert_allclose(logits, forward(*tiny, *ARRAYS), rtol=1e-5, atol=1e-6)
    for name, leaf in named(adapters).items():
        if name.endswith("lora_b"):
            assert not np.any(leaf)
        else:  # uniform within +-1/sqrt(16), of which 32 draws come near the ends
            assert 0.2 < np.abs(leaf).max() <= 0.25


def test_the_product_against_numpy_and_its_dropout():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "lora_a": (3, 2), "lora_b": (2, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    w, a, b = params.values()
    x = rng.normal(size=(5, 3)).astype(np.float32)
    settings = Lora(rank=2, alpha=6.0, dropout=0.5)
    dense = Dense((4,), ("embed", "joined_kv"), jnp.float32, lora=settings)
    plain = dense.apply({"params": params}, x)
    np.testing.assert_allclose(plain, x @ w + x @ a @ b * 3.0, rtol=1e-4, atol=1e-5)
    # One input at a time: its adapter is off or twice as strong, the kernel always there.
    x = np.float32([[0, 1, 0]] * 40)
    rngs = {"dropout": jax.random.key(0)}
    dropped = dense.apply({"params": params}, x, False, rngs=rngs) - x @ w
    off = np.abs(dropped).max(axis=-1) < 1e-5
    assert 5 < off.sum() < 35
    np.testing.assert_allclose(dropped[~off], 2 * (x @ a @ b * 3.0)[~off], rtol=1e-3, atol=1e-5)


def test_dropout_of_the_adapters_alone(trained, forward):
    model, params = trained

    @jax.jit
    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.module.apply({"params": params}, *ARRAYS, enable_dropout=True, rngs=rngs)

    assert model.config.dropout_rate == 0
    assert np.abs(dropped(0) - forward(*trained, *ARRAYS)).max() > 1e-2
    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert np.abs(dropped(0) - dropped(1)).max() > 1e-2


def test_merging_against_numpy(trained):
    model, params = trained
    before, after = named(params), named(lora.merge(params, model.config.lora))
    assert set(after) == {name for name in before if "lora" not in name}
    for name, kernel in after.items():
        expected = np.asarray(before[name], np.float64)
        if name.split(".")[-2] in ("query", "value"):
            a, b = (before[name.replace("kernel", leaf)] for leaf in lora.ADAPTERS)
            expected = expected + np.asarray(a, np.float64) @ np.asarray(b, np.float64) * 3 / 2
            assert np.abs(kernel - before[name]).max() > 0.1
        np.testing.assert_allclose(kernel, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_merged_model_is_the_adapted_one(scan_layers, trained, tiny, tiny_config, forward):
    model, params = trained
    adapted = forward(model, params, *ARRAYS)
    if scan_layers:
        model = T5Student(dataclasses.replace(model.config, scan_layers=True))
        params = stack_layers(params)
        np.testing.assert_allclose(forward(model, params, *ARRAYS), adapted, atol=1e-4)
    merged = lora.merge(params, model.config.lora)
    plain = T5Student(dataclasses.replace(model.config, lora=None))
    np.testing.assert_allclose(forward(plain, merged, *ARRAYS), adapted, atol=1e-4)
    assert np.abs(adapted - forward(*tiny, *ARRAYS)).max() > 0.1
    decoder, unrolled = model.for_decoding(params)
    assert decoder == T5Student(tiny_config)
    np.testing.assert_allclose(forward(decoder, unrolled, *ARRAYS), adapted, atol=1e-4)


def test_greedy_tokens_are_those_of_the_adapted_model(trained, forward):
    model, params = trained
    tokens = np.asarray(decode(*model.for_decoding(params), ARRAYS[0], max_tokens=5)[0])
    real = tokens > 0  # the end of a sequence may come early
    logits = forward(model, params, ARRAYS[0], np.pad(tokens, ((0, 0), (1, 0)))[:, :-1], tokens)
    np.testing.assert_array_equal(np.argmax(logits, axis=-1)[real], tokens[real])


def test_join_is_the_inverse_of_split(trained):
    params = trained[1]
    adapters, base = lora.split(params)
    assert {name.split(".")[-1] for name in named(adapters)} == set(lora.ADAPTERS)
    assert not any(map(lora.is_adapter, named(base))) and all(map(lora.is_adapter, named(adapters)))
    together = lora.join(adapters, base)
    assert jax.tree.structure(together) == jax.tree.structure(params)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), together, params)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"targets": ("q", "v")}, r"targets \('q', 'v'\); expected .*query"),
        ({"targets": ()}, "targets"),
    ],
)
def test_refuses_settings_out_of_range(wrong, message):
    with pytest.raises(UserError, match=message):
        Lora(**wrong)
