"""Tests of the guard: one poisoned parameter, and the place that it is blamed on."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import xla

from cot_flax.objectives.losses import Objective
from cot_flax.students.parameters import stack_layers
from cot_flax.students.t5 import T5Student
from cot_flax.training import guard
from cot_flax.training.optimizers import Optimizer
from cot_flax.training.state import TrainState
from cot_flax.training.step import loss_sums, make_train_step

pytestmark = pytest.mark.filterwarnings("error")

STILL = Optimizer(optax.sgd(0.0), optax.constant_schedule(0.0))
VARIANTS = {
    "unrolled": ({}, 1),
    "unrolled, remat, micro-batches": ({"remat": "minimal"}, 4),
    "scanned": ({"scan_layers": True}, 1),
    "scanned, remat, micro-batches": ({"scan_layers": True, "remat": "full"}, 2),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def deep(config):
    return dataclasses.replace(config, num_encoder_layers=2, num_decoder_layers=3)


@pytest.fixture(scope="module")
def params(deep):
    return jax.jit(T5Student(deep).init)(jax.random.key(0))["params"]


@cache
def jitted(config, microbatches):
    return jax.jit(make_train_step(T5Student(config), STILL, Objective(), microbatches))


def blamed(config, params, batch, variant):
    """What is said of one step, and its metrics."""
    changes, microbatches = VARIANTS[variant]
    config = dataclasses.replace(config, **changes)
    params = stack_layers(params) if config.scan_layers else params
    state = TrainState(jnp.int32(0), params, STILL.transform.init(params), jax.random.PRNGKey(0))
    _, metrics = jitted(config, microbatches)(state, batch)
    activations, gradients = (metrics[f"nonfinite/{of}"] for of in ("activations", "gradients"))
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    if math.isfinite(loss) and math.isfinite(norm):
        assert not np.any(activations) and not np.any(gradients)
        return ""
    student = T5Student(config)
    return guard.locate_nonfinite(
        student.places, guard.names(student, params), activations, gradients, loss
    )


def poisoned(params, name, value=np.nan, index=(0, 0)):
    """The parameters with one number replaced."""
    top, *path = name.split(".")
    if path:
        return params | {top: poisoned(params[top], ".".join(path), value, index)}
    array = np.array(params[top])
    array[index[: array.ndim]] = value
    return params | {top: array}


def test_places_of_a_small_model(deep):
    decoder = [f"decoder.layers_{i}" for i in range(3)]
    kinds = ("self_attention", "encoder_decoder_attention", "mlp")
    assert T5Student(deep).places == [
        "token_embedder",
        "encoder.layers_0.attention",
        "encoder.layers_0.mlp",
        "encoder.layers_1.attention",
        "encoder.layers_1.mlp",
        "encoder.encoder_norm",
        "token_embedder",
        *(f"{layer}.{kind}" for layer in decoder for kind in kinds),
        "decoder.decoder_norm",
        "logits",
    ]


@every_variant
@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("token_embedder.embedding", np.nan, "token_embedder"),
        ("encoder.relpos_bias.rel_embedding", np.nan, "encoder.layers_0.attention"),
        ("encoder.layers_0.mlp.wo.kernel", np.inf, "encoder.layers_0.mlp"),
        ("encoder.layers_1.attention.query.kernel", np.nan, "encoder.layers_1.attention"),
        ("encoder.layers_1.pre_mlp_layer_norm.scale", np.nan, "encoder.layers_1.mlp"),
        ("encoder.encoder_norm.scale", np.inf, "encoder.encoder_norm"),
        ("decoder.layers_0.self_attention.out.kernel", -np.inf, "decoder.layers_0.self_attention"),
        (
            "decoder.layers_1.encoder_decoder_attention.value.kernel",
            np.nan,
            "decoder.layers_1.encoder_decoder_attention",
        ),
        ("decoder.layers_2.mlp.wi_1.kernel", np.nan, "decoder.layers_2.mlp"),
        ("decoder.decoder_norm.scale", np.nan, "decoder.decoder_norm"),
        ("decoder.logits_dense.kernel", np.nan, "logits"),
    ],
)
def test_names_the_first_bad_place(name, value, place, variant, deep, params, batch):
    said = blamed(deep, poisoned(params, name, value), batch, variant)
    assert said == f"the first bad place is {place}"


@every_variant
def test_blames_nothing_where_all_is_finite(variant, deep, params, batch):
    assert blamed(deep, params, batch, variant) == ""


@every_variant
def test_tells_a_bad_gradient_from_bad_activations(variant, deep, params, batch):
    """The hidden units are gelu(0) * x = 0 times 1e30; their gradient is 1e30, its square inf."""
    mlp = dict(params["decoder"]["layers_1"]["mlp"])
    mlp["wi_0"] = {"kernel": np.zeros((16, 32), np.float32)}
    mlp["wo"] = {"kernel": np.full((32, 16), 1e30, np.float32) * np.eye(32, 16, dtype=np.float32)}
    layer = params["decoder"]["layers_1"] | {"mlp": mlp}
    changed = params | {"decoder": params["decoder"] | {"layers_1": layer}}
    layers = "layers" if "scanned" in variant else "layers_1"
    name = f"decoder.{layers}.mlp.wi_0.kernel"
    said = blamed(deep, changed, batch, variant)
    assert said == f"the loss is finite, the gradient breaks at {name}"


def test_tells_a_bad_weight_from_bad_logits(deep, params, batch):
    weights = np.array(batch["decoder_loss_weights"])
    weights[0, 0] = np.inf
    said = blamed(deep, params, batch | {"decoder_loss_weights": weights}, "unrolled")
    assert said.startswith("the logits are finite, the loss weights")


def test_names_are_in_forward_order_with_layers_by_number(deep):
    leaf = np.zeros(1)
    layers = {f"layers_{i}": {"mlp": {"wo": leaf, "wi_1": leaf, "wi_0": leaf}} for i in (10, 2)}
    tree = {
        "decoder": layers | {"decoder_norm": {"scale": leaf}},
        "token_embedder": {"embedding": leaf},
        "encoder": {"layers_0": {"mlp": leaf, "attention": leaf, "pre_mlp_layer_norm": leaf}},
    }
    assert guard.names(T5Student(deep), tree) == [
        "token_embedder.embedding",
        "encoder.layers_0.attention",
        "encoder.layers_0.pre_mlp_layer_norm",
        "encoder.layers_0.mlp",
        "decoder.layers_2.mlp.wi_0",
        "decoder.layers_2.mlp.wi_1",
        "decoder.layers_2.mlp.wo",
        "decoder.layers_10.mlp.wi_0",
        "decoder.layers_10.mlp.wi_1",
        "decoder.layers_10.mlp.wo",
        "decoder.decoder_norm.scale",
    ]


def test_watching_changes_no_number(deep, params, batch):
    def gradient(watch):
        total = lambda p: loss_sums(T5Student(deep), Objective(), p, batch, watch=watch)  # noqa: E731
        return jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=options)(params)

    # See conftest: the older emitters' code rounds anew.
    name = "xla_cpu_use_fusion_emitters"
    options = {name: True} if xla.known(f"--{name}=true") else {}
    (loss, sums), watched = gradient(True)
    (plain_loss, plain_sums), plain = gradient(False)
    sums.pop("nonfinite/activations")
    jax.tree.map(
        np.testing.assert_array_equal, (loss, sums, watched), (plain_loss, plain_sums, plain)
    )
