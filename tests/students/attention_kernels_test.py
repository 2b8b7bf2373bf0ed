"""Every way to compute attention against NumPy: values, gradients, packed rows, T5's own bias."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from cot_flax.errors import UserError
from cot_flax.students import attention_kernels as kernels
from cot_flax.students.attention_kernels import Bias, choose
from cot_flax.students.t5.config import T5Config


def cudnn_in_xla(*arrays):
    """The same call of JAX's function, computed by XLA: it is there without a GPU."""
    return kernels.cudnn(*arrays, implementation="xla")


def make(queries, keys, *, position, causal=False):
    """Arrays, a bias of two or three packed examples and padding, and a cotangent."""
    rng = np.random.default_rng(0)
    B, H, C = 2, 2, 8
    shapes = (B, queries, H, C), (B, keys, H, C), (B, keys, H, C), (B, queries, H, C)
    *arrays, cotangent = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    bias = Bias(
        rng.normal(size=(1, H, queries, keys)).astype(np.float32) if position else None,
        segments(queries, cuts=[(0.3, 0.9), (0.2, 0.5, 0.8)]),
        segments(keys, cuts=[(0.5, 0.7), (0.3, 0.4, 1.0)]),
        causal,
    )
    return arrays, bias, cotangent


def segments(length, cuts):
    """1, 2, ... up to every cut (a share of the row), then 0."""
    rows = [np.searchsorted(np.array(row) * length, np.arange(length), "right") for row in cuts]
    ends = np.array([row[-1] * length for row in cuts])[:, None]
    return np.where(np.arange(length) < ends, np.stack(rows) + 1, 0).astype(np.int32)


def numpy_weights(query, keys, bias):
    """In float64."""
    allowed = bias.query_segments[:, None, :, None] == bias.key_segments[:, None, None, :]
    if bias.causal:
        allowed = allowed & np.tril(np.ones(allowed.shape[2:], bool))
    logits = np.einsum("bthc,bshc->bhts", query.astype(np.float64), keys)
    logits = logits + (0 if bias.position is None else bias.position)
    weights = np.where(allowed, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    # A query without any key mixes all of them evenly.
    weights = np.where(allowed.any(axis=-1, keepdims=True), weights, 1)
    return weights / weights.sum(axis=-1, keepdims=True)


def expected_of(arrays, bias, cotangent):
    """The gradients by hand: d logits = w (dw - sum w dw)."""
    query, keys, values = arrays
    weights = numpy_weights(query, keys, bias)
    back = np.einsum("bthc,bshc->bhts", cotangent, values)
    logits = weights * (back - (weights * back).sum(axis=-1, keepdims=True))
    result = {
        "mixed": np.einsum("bhts,bshc->bthc", weights, values),
        "query": np.einsum("bhts,bshc->bthc", logits, keys),
        "keys": np.einsum("bhts,bthc->bshc", logits, query),
        "values": np.einsum("bhts,bthc->bshc", weights, cotangent),
    }
    if bias.position is not None:
        result["position"] = logits.sum(axis=0, keepdims=True)
    return result


def computed_by(attend, arrays, bias, cotangent):
    @jax.jit
    def total(query, keys, values, position):
        mixed = attend(query, keys, values, bias.replace(position=position))
        return jnp.sum(mixed * cotangent), mixed

    grads, mixed = jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*arrays, bias.position)
    names = "query", "keys", "values", "position"
    return {"mixed": mixed} | dict(zip(names, grads, strict=True))


CASES = {
    "encoder": {"queries": 128, "keys": 128, "position": True},
    "decoder": {"queries": 128, "keys": 128, "position": True, "causal": True},
    "cross": {"queries": 128, "keys": 256, "position": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("attend", [kernels.xla, cudnn_in_xla, kernels.flash])
def test_values_and_gradients_against_numpy(attend, case):
    arrays, bias, cotangent = make(**case)
    if case.get("causal"):
        bias = bias.replace(key_segments=bias.query_segments)
    with pltpu.force_tpu_interpret_mode():
        result = computed_by(attend, arrays, bias, cotangent)
    for name, expected in expected_of(arrays, bias, cotangent).items():
        np.testing.assert_allclose(result[name], expected, rtol=1e-4, atol=2e-5, err_msg=name)


def test_dense_is_position_and_mask():
    bias = Bias(
        jnp.arange(4.0).reshape(1, 1, 2, 2), jnp.array([[1, 2]]), jnp.array([[1, 2]]), causal=True
    )
    np.testing.assert_array_equal(bias.mask(), [[[[0, kernels.MASKED], [kernels.MASKED, 0]]]])
    np.testing.assert_array_equal(bias.dense()[0, 0].diagonal(), [0, 3])
    assert bias.replace(position=None).dense().shape == (1, 1, 2, 2)


def test_dropout_and_what_no_kernel_serves_are_computed_by_xla():
    (query, keys, values), bias, _ = make(128, 128, position=True)
    dropped = kernels.attend(
        query, keys, values, bias, wanted="flash", dropout=lambda weights: 0 * weights
    )
    np.testing.assert_array_equal(dropped, np.zeros_like(query))
    short = bias.replace(
        position=bias.position[:, :, :1], query_segments=bias.query_segments[:, :1]
    )
    one = kernels.attend(query[:, :1], keys, values, short, wanted="flash")
    np.testing.assert_array_equal(one, kernels.xla(query[:, :1], keys, values, short))


@pytest.mark.parametrize(
    ("wanted", "platform", "chosen"),
    [
        ("auto", "cpu", {"xla"}),
        ("auto", "gpu", {"cudnn"}),
        ("auto", "tpu", {"xla", "flash"}),
        ("xla", "tpu", {"xla"}),
        ("cudnn", "cpu", {"cudnn"}),
        ("flash", "cpu", {"flash"}),
    ],
)
def test_choice(wanted, platform, chosen):
    """In bfloat16, for encoder and cross attention."""
    names = set()
    for case in ("encoder", "cross"):
        (query, keys, _), bias, _ = make(**CASES[case])
        query, keys = (jnp.asarray(x, jnp.bfloat16) for x in (query, keys))
        names.add(choose(wanted, platform, query, keys, bias))
        # No kernel serves a length of its own or odd heads.
        assert choose(wanted, platform, query[:, :77], keys[:, :77], bias) == "xla"
    assert names == chosen
    assert choose("auto", "gpu", query.astype(jnp.float32), keys, bias) == "xla"
    # cuDNN's gradient of a query without any key is NaN where 64 keys end a row.
    more = jnp.concatenate([keys, keys[:, :64]], axis=1)
    assert choose("auto", "gpu", query, more, bias) == "xla"


def test_an_attention_that_there_is_not():
    with pytest.raises(UserError, match="attention 'flesh'; expected one of"):
        T5Config(attention="flesh")


AHEAD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from flax.linen import partitioning
from cot_flax.students.attention_kernels import Bias, flash
from cot_flax.training.sharding import MeshConfig
mesh = topologies.make_mesh(topologies.get_topology_desc("v5e:2x2", platform="tpu"), (2, 2),
                            ("data", "model"))
def array(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
x = array((4, 256, 4, 64), jnp.bfloat16, "data", None, "model")
position, segments = array((1, 4, 256, 256), jnp.float32), array((4, 256), jnp.int32, "data")
def total(q, k, v, position, segments):
    bias = Bias(position, segments, segments, causal=True)
    return jnp.sum(flash(q, k, v, bias).astype(jnp.float32))
with jax.set_mesh(mesh), partitioning.axis_rules(MeshConfig(model=2).rules()):
    step = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
    text = step.lower(x, x, x, position, segments).compile().as_text()
print(text.count("tpu_custom_call"))
"""


def test_the_flash_kernel_compiles_ahead_of_time_for_four_chips():
    """Forward and backward, batch and heads sharded; where libtpu is installed."""
    pytest.importorskip("libtpu")
    topology = {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    topology |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    topology |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AHEAD],
        env=os.environ | topology,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 3  # forward, the keys' and values' gradient, the queries'
