"""Tests of T5X's formats without T5X: the checkpoint that it wrote, ours, and broken ones."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cot_flax.errors import UserError
from cot_flax.generation.decoding import decode
from cot_flax.objectives.losses import cross_entropy
from cot_flax.students.parameters import Tensor, flatten, nest
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.training.sharding import MeshConfig, make_mesh
from cot_flax.weights import t5x
from cot_flax.weights.files import tensorstore as files
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Source, load

CONFIG = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=32,
)
KERNEL = "decoder.layers_1.mlp.wo.kernel"


def drawn(config, seed=0):
    """A source of random parameters in memory."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in T5Student(config).parameter_shapes().items()
    }
    tensors = {
        name: Tensor(array.shape, array.dtype, array.__getitem__) for name, array in arrays.items()
    }
    return Source("memory", T5Student(config), tensors)


def assert_equal(source, other, dtype=np.float32):
    assert source.tensors.keys() == other.tensors.keys()
    for name, tensor in source.tensors.items():
        read = other.tensors[name]
        assert (read.shape, read.dtype) == (tensor.shape, dtype)
        np.testing.assert_array_equal(read.whole(), tensor.whole().astype(dtype), strict=True)


@pytest.fixture(scope="module")
def source():
    return drawn(CONFIG)


@pytest.fixture
def written(source, tmp_path):
    """A model directory with the step 5."""
    t5x.write(source, tmp_path / "model", dtype="float32", step=5)
    return tmp_path / "model"


def change_index(model, change):
    path = model / "checkpoint_5" / "checkpoint"
    index = serialization.msgpack_restore(path.read_bytes())
    change(index["optimizer"]["target"])
    path.write_bytes(serialization.msgpack_serialize(index))


# T5X's own checkpoint -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture(fixtures):
    return fixtures / "t5x_legacy_tiny"


@pytest.fixture(scope="module")
def released(fixture):
    """The fixture's model, parameters and expected outputs."""
    source = open_source(str(fixture / "legacy"))
    shapes = source.student.parameter_shapes()
    params = nest({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})
    return T5Student(source.student.config), load(source, params), np.load(fixture / "expected.npz")


def test_logits_and_loss_are_those_of_t5x(released):
    model, params, expected = released
    inputs = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    tokens = [expected[name] for name in inputs]
    logits = jax.jit(model.module.apply)({"params": params}, *tokens)
    real = tokens[2] > 0
    np.testing.assert_allclose(logits[real], expected["logits"][real], atol=1e-4)
    loss = np.sum(cross_entropy(logits, tokens[2]) * real)
    assert loss == pytest.approx(float(expected["loss"]), abs=1e-3)


def test_greedy_tokens_are_those_of_t5x(released):
    model, params, expected = released
    output = decode(model, params, expected["encoder_input_tokens"], max_tokens=12)
    np.testing.assert_array_equal(output[:, 0], expected["greedy"])


def test_we_write_the_index_that_t5x_writes(fixture, tmp_path):
    """Names, kinds and shapes of everything, slots too; compressor and chunks are free."""
    theirs = fixture / "legacy" / "checkpoint_0"
    t5x.write(open_source(str(theirs)), tmp_path / "ours", dtype="float32")
    indices = [
        serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        for folder in (theirs, tmp_path / "ours" / "checkpoint_0")
    ]

    def described(index):
        leaves = jax.tree_util.tree_leaves_with_path(
            index, is_leaf=lambda node: isinstance(node, dict) and "kvstore" in node
        )
        return {jax.tree_util.keystr(path): description(leaf) for path, leaf in leaves}

    def description(leaf):
        if isinstance(leaf, dict):
            return leaf["dtype"], tuple(leaf["metadata"]["shape"])
        return str(np.asarray(leaf).dtype), np.shape(leaf)

    assert described(indices[1]) == described(indices[0])
    target = [index["optimizer"]["target"]["token_embedder"]["embedding"] for index in indices]
    assert [spec["kvstore"] for spec in target] == [
        {"driver": "file", "path": "target.token_embedder.embedding/"}
    ] * 2


# Writing and reading ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reads_what_was_written_bit_for_bit(dtype, source, tmp_path):
    t5x.write(source, tmp_path / "model", dtype=dtype)
    read = open_source(str(tmp_path / "model"))
    assert read.place == str(tmp_path / "model" / "checkpoint_0")
    assert read.student.config == CONFIG
    assert_equal(source, read, jnp.dtype(dtype))


def test_matrices_from_128_on_have_factored_slots(tmp_path):
    """T5X's rule: statistics of rows and of columns where both dimensions have 128."""
    config = dataclasses.replace(CONFIG, vocab_size=130, emb_dim=128, num_encoder_layers=1)
    t5x.write(drawn(config), tmp_path / "model", dtype="float32")
    path = tmp_path / "model" / "checkpoint_0" / "checkpoint"
    state = serialization.msgpack_restore(path.read_bytes())["optimizer"]["state"]
    slots = state["param_states"]["token_embedder"]["embedding"]
    assert {name: slot.shape for name, slot in slots.items()} == {
        "m": (1,),
        "v": (1,),
        "v_row": (128,),
        "v_col": (130,),
    }
    slots = state["param_states"]["decoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    assert {name: slot.shape for name, slot in slots.items()} == {
        "m": (1,),
        "v": (32, 128),
        "v_row": (1,),
        "v_col": (1,),
    }


def test_the_latest_step_is_read(source, tmp_path):
    for step in (9, 10):
        t5x.write(drawn(CONFIG, step), tmp_path / str(step), dtype="float32", step=step)
        shutil.move(tmp_path / str(step) / f"checkpoint_{step}", tmp_path)
    (tmp_path / "checkpoint_11.tmp-1700000000").mkdir()
    (tmp_path / "checkpoint_11.tmp-1700000000" / "checkpoint").touch()
    for place in (tmp_path, f"{tmp_path}/", tmp_path / "checkpoint_10"):
        assert_equal(drawn(CONFIG, 10), open_source(str(place)))
    assert_equal(drawn(CONFIG, 9), open_source(str(tmp_path / "checkpoint_9")))


def test_a_place_stays_where_it_was_when_it_was_opened(source, written, tmp_path, monkeypatch):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "checkpoint_5").symlink_to(written / "checkpoint_5")
    monkeypatch.chdir(tmp_path)
    opened = open_source("linked")
    monkeypatch.chdir("/")
    assert_equal(source, opened)


def test_writes_into_the_folder_one_works_in(source, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    t5x.write(source, Path("."), dtype="float32")
    assert_equal(source, open_source(str(tmp_path / "new")))


def test_out_must_be_new(source, written, tmp_path):
    with pytest.raises(UserError, match="model, which is not empty; expected a new folder"):
        t5x.write(source, written, dtype="float32")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file, which is not empty"):
        t5x.write(source, tmp_path / "file", dtype="float32")
    (tmp_path / "empty").mkdir()
    t5x.write(source, tmp_path / "empty", dtype="float32")
    assert_equal(source, open_source(str(tmp_path / "empty")))


def test_what_t5x_could_not_read_is_not_written(tmp_path):
    source = drawn(dataclasses.replace(CONFIG, bias_per_layer=True))
    with pytest.raises(
        UserError, match=r"position bias in every layer \(umT5.*Hugging Face's form"
    ):
        t5x.write(source, tmp_path / "model", dtype="float32")
    assert not (tmp_path / "model").exists()


def test_a_source_that_breaks_leaves_nothing(source, tmp_path):
    def broken(index):
        raise UserError("a broken file", "another", "copy it")

    tensor = dataclasses.replace(source.tensors[KERNEL], read=broken)
    broken_source = dataclasses.replace(source, tensors={**source.tensors, KERNEL: tensor})
    with pytest.raises(UserError, match="a broken file"):
        t5x.write(broken_source, tmp_path / "model", dtype="float32")
    assert list(tmp_path.iterdir()) == []


# What an index may say ----------------------------------------------------------------------------


def kernel_of(target):
    return target["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]


@pytest.mark.parametrize(
    "kvstore",
    [
        {"driver": "gfile", "path": f"/cns/home/t5/checkpoint_5/target.{KERNEL}"},
        {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"target.{KERNEL}/"},
    ],
)
def test_arrays_lie_beside_the_index_whoever_wrote_it(kvstore, source, written):
    change_index(written, lambda target: kernel_of(target).update(kvstore=kvstore))
    assert_equal(source, open_source(str(written)))


def test_the_form_of_old_specs(source, written):
    """Before tensorstore 0.1.14 the path stood outside of the kvstore, dtypes in the metadata."""

    def old(target):
        spec = kernel_of(target)
        spec["path"] = spec["kvstore"].pop("path")
        spec["metadata"]["dtype"] = "<f4"
        del spec["dtype"]

    change_index(written, old)
    assert_equal(source, open_source(str(written)))


def test_small_arrays_may_lie_in_the_index(source, written):
    whole = source.tensors[KERNEL].whole()

    def inline(target):
        target["decoder"]["layers_1"]["mlp"]["wo"]["kernel"] = whole

    change_index(written, inline)
    shutil.rmtree(written / "checkpoint_5" / f"target.{KERNEL}")
    assert_equal(source, open_source(str(written)))


@pytest.mark.parametrize("inline", [False, True])
def test_bfloat16_may_be_stored_as_uint16(inline, written):
    """1.0 is 0x3f80 in bfloat16, -2.5 is 0xc020."""
    bits = np.array([[0x3F80, 0xC020]], np.uint16).repeat(16, 0).repeat(8, 1).reshape(32, 8)
    bits = np.concatenate([bits, bits], axis=1)
    spec = files.write_zarr(written / "checkpoint_5", "as_uint16", bits)

    def change(target):
        target["decoder"]["layers_1"]["mlp"]["wo"]["kernel"] = bits if inline else spec

    change_index(written, change)
    tensor = open_source(str(written)).tensors[KERNEL]
    expected = np.where(bits == 0x3F80, 1.0, -2.5).astype(jnp.bfloat16)
    assert tensor.dtype == jnp.bfloat16
    np.testing.assert_array_equal(tensor.whole(), expected, strict=True)


# Broken and foreign ones --------------------------------------------------------------------------


def cut(raw):
    return raw[: len(raw) // 2]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda raw: b"",
        lambda raw: b"\xc1" * 50,
        lambda raw: raw + b"more",
        lambda raw: serialization.msgpack_serialize([1, 2]),
        lambda raw: serialization.msgpack_serialize({"optimizer": {}}),
        lambda raw: serialization.msgpack_serialize(
            {"optimizer": {"target": {"w": {"kvstore": {}}}}}
        ),
        lambda raw: raw.replace(b"float32", b"float99"),
    ],
)
def test_a_broken_index(damage, written):
    path = written / "checkpoint_5" / "checkpoint"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"broken index .*checkpoint_5/checkpoint; .*copy") as error:
        open_source(str(written))
    assert "\n" not in str(error.value)


def test_a_missing_array_shows_when_it_is_read(written):
    shutil.rmtree(written / "checkpoint_5" / f"target.{KERNEL}")
    source = open_source(str(written))
    source.tensors["decoder.decoder_norm.scale"].whole()
    with pytest.raises(UserError, match=rf"target.{KERNEL}/.zarray\" does not exist"):
        source.tensors[KERNEL].whole()


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=rf"no T5X checkpoint at {tmp_path}"):
        t5x.open_legacy(str(tmp_path))


def test_a_tensorflow_checkpoint(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000000"\n')
    with pytest.raises(UserError, match="a TensorFlow checkpoint at"):
        open_source(str(tmp_path))


def test_a_decoder_alone(written):
    change_index(written, lambda target: target.pop("encoder"))
    with pytest.raises(UserError, match=r"not a T5 at .*checkpoint_5: decoder\.decoder_norm"):
        open_source(str(written))


# Many devices -------------------------------------------------------------------------------------


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")
def test_every_device_s_part_is_read_by_itself(source, written):
    opened = open_source(str(written))
    read = []

    def counted(name, tensor):
        def part(index):
            array = tensor.read(index)
            read.append((name, array.shape))
            return array

        return dataclasses.replace(tensor, read=part)

    tensors = {name: counted(name, tensor) for name, tensor in opened.tensors.items()}
    mesh = make_mesh(MeshConfig(data=2, model=4))
    split = NamedSharding(mesh, P(None, "model"))
    whole = NamedSharding(mesh, P())
    shapes = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=split if name.endswith("wi_0.kernel") else whole
        )
        for name, shape in T5Student(CONFIG).parameter_shapes().items()
    }
    params = load(dataclasses.replace(opened, tensors=tensors), nest(shapes))
    for name, array in flatten(params).items():
        assert array.sharding == shapes[name].sharding
        np.testing.assert_array_equal(array, source.tensors[name].whole())
    # Four parts of 32 columns, each once; all other parameters once.
    wi = [shape for name, shape in read if name == "encoder.layers_0.mlp.wi_0.kernel"]
    assert wi == [(16, 8)] * 4
    assert sum(np.prod(shape) for _, shape in read) == sum(
        np.prod(shape) for shape in T5Student(CONFIG).parameter_shapes().values()
    )
