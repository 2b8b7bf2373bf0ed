"""Tests of what all formats share: shapes by name, what does not fit, and loading by parts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cot_flax.errors import UserError
from cot_flax.students.lora import Lora
from cot_flax.students.parameters import Tensor, flatten, nest
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.weights.source import Source, check_tensors, load

CONFIG = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=3,
    head_dim=4,
    mlp_dim=32,
)


def abstract(config):
    return jax.eval_shape(T5Student(config).init, jax.random.key(0))["params"]


def numbered(shapes, dtype=np.float32):
    """Arrays that differ everywhere."""
    arrays, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        arrays[name] = np.arange(start, start + size).reshape(shape).astype(dtype)
        start += size
    return arrays


def source_of(arrays, seen=None):
    """A Source over arrays that notes which parts were read."""

    def tensor(name, array):
        def read(index):
            part = array[index]
            if seen is not None:
                seen.append((name, part.size))
            return part

        return Tensor(array.shape, array.dtype, read)

    tensors = {name: tensor(name, array) for name, array in arrays.items()}
    return Source("here", T5Student(CONFIG), tensors)


@pytest.fixture(scope="module")
def arrays():
    return numbered(T5Student(CONFIG).parameter_shapes())


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("lora", [None, Lora()])
def test_parameter_shapes_are_those_of_the_unrolled_model(scan_layers, lora):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers, lora=lora)
    expected = {name: leaf.shape for name, leaf in flatten(abstract(CONFIG)).items()}
    assert T5Student(config).parameter_shapes() == expected


def test_flatten_and_nest_are_inverses(arrays):
    tree = nest(arrays)
    assert (
        tree["decoder"]["layers_2"]["mlp"]["wo"]["kernel"]
        is (arrays["decoder.layers_2.mlp.wo.kernel"])
    )
    assert flatten(tree) == arrays


def test_load_unrolled(arrays):
    loaded = flatten(load(source_of(arrays), abstract(CONFIG)))
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_load_scanned(arrays):
    scanned = abstract(dataclasses.replace(CONFIG, scan_layers=True))
    loaded = flatten(load(source_of(arrays), scanned))
    name = "decoder.layers.self_attention.query.kernel"
    layers = [arrays[name.replace("layers", f"layers_{i}")] for i in range(3)]
    np.testing.assert_array_equal(loaded[name], np.stack(layers), strict=True)
    assert loaded["encoder.layers.mlp.wo.kernel"].shape == (1, 32, 16)


def test_load_takes_the_dtype_of_the_run(arrays):
    half = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    loaded = flatten(load(source_of(half), abstract(CONFIG)))
    name = "token_embedder.embedding"
    assert loaded[name].dtype == jnp.float32
    np.testing.assert_array_equal(loaded[name], half[name].astype(np.float32))


def test_adapters_stay_what_they_are(arrays):
    tree = abstract(dataclasses.replace(CONFIG, lora=Lora()))
    adapter = jnp.full((16, 4), 7.0)
    tree["encoder"]["layers_0"]["attention"]["query"]["lora_a"] = adapter
    loaded = load(source_of(arrays), tree)
    assert loaded["encoder"]["layers_0"]["attention"]["query"]["lora_a"] is adapter
    np.testing.assert_array_equal(
        loaded["decoder"]["logits_dense"]["kernel"], arrays["decoder.logits_dense.kernel"]
    )


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_device_reads_its_own_part_and_no_part_is_read_twice(scan_layers, arrays):
    mesh = jax.make_mesh((2, 4), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)

    def placed(leaf):
        # The last axis over 4 devices; two devices hold each part.
        spec = P(*(None,) * (len(leaf.shape) - 1), "model")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    tree = jax.tree.map(placed, abstract(dataclasses.replace(CONFIG, scan_layers=scan_layers)))
    seen = []
    loaded = load(source_of(arrays, seen), tree)
    largest = {name: array.size // 4 for name, array in arrays.items()}
    assert all(size == largest[name] for name, size in seen)
    assert len(seen) == 4 * len(arrays)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail("moved"), loaded, tree)
    name = "token_embedder.embedding"
    np.testing.assert_array_equal(flatten(loaded)[name], arrays[name])


def test_a_tensor_turned_over_reads_the_part_that_was_asked_for():
    array = np.arange(600.0).reshape(150, 4)
    turned = Tensor(array.shape, array.dtype, lambda index: array[index]).T
    assert turned.shape == (4, 150)
    np.testing.assert_array_equal(turned.whole(), array.T)
    np.testing.assert_array_equal(turned.read((slice(1, 3), slice(0, 2))), array.T[1:3, 0:2])


def test_what_does_not_fit_is_listed_with_both_shapes():
    expected = {f"layer_{i}": (2, 3) for i in range(6)}
    found = {"layer_0": (2, 3), "layer_1": (3, 2), "other": (7,)}
    with pytest.raises(UserError) as error:
        check_tensors(found, expected, "here")
    message = str(error.value)
    for part in (
        "at here",
        "4 missing (layer_2 [2, 3], layer_3 [2, 3], layer_4 [2, 3], ...)",
        "1 not of this model (other [7])",
        "1 of another shape (layer_1 [3, 2], not [2, 3])",
        "the 6 parameters",
    ):
        assert part in message
    check_tensors(expected, expected, "here")


def test_load_refuses_what_does_not_fit(arrays):
    small = {name: array for name, array in arrays.items() if "logits_dense" not in name}
    with pytest.raises(UserError, match=r"1 missing \(decoder.logits_dense.kernel \[16, 24\]\)"):
        load(source_of(small), abstract(CONFIG))
