"""Tests of our own checkpoints, as the training loop writes them."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.students.lora import Lora, merge
from cot_flax.students.parameters import flatten, unstack_layers
from cot_flax.students.student import from_json, to_json
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.text.tokenizers import SpecialIds
from cot_flax.training.checkpoints import Checkpointer
from cot_flax.training.state import TrainState
from cot_flax.weights import native
from cot_flax.weights.files.tensorstore import listing
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import load

PLAIN = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=3,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=32,
)
LORA = Lora(rank=3, alpha=12.0, dropout=0.1, targets=("query", "out"))
CONFIGS = {
    "unrolled": PLAIN,
    "scanned": dataclasses.replace(PLAIN, scan_layers=True),
    "adapted": dataclasses.replace(PLAIN, lora=LORA),
    "scanned and adapted": dataclasses.replace(PLAIN, scan_layers=True, lora=LORA),
}


def drawn(config):
    shapes = jax.eval_shape(T5Student(config).init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def find(place):
    return native.find(listing(str(place)))


def save(folder, config, params, step=3):
    checkpointer = Checkpointer(str(folder), period=1, keep=None)
    state = TrainState(jnp.int32(step), params, (jnp.zeros(3),), jax.random.PRNGKey(0))
    metadata = native.Metadata(dataclasses.asdict(config), "abc", 7)
    checkpointer.save(state, metadata, step=step)
    checkpointer.close()


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    """A model directory, and its parameters as a plain model has them."""
    config = CONFIGS[request.param]
    params = drawn(config)
    folder = tmp_path_factory.mktemp("run")
    save(folder, config, params)
    return folder, flatten(unstack_layers(merge(params, LORA) if config.lora else params))


def test_whoever_opens_it_sees_a_plain_model(saved):
    folder, expected = saved
    source = open_source(str(folder))
    assert source.student.config == PLAIN
    assert source.vocabulary == "abc"
    assert source.folder == folder
    assert source.place == str(folder / "checkpoints" / "3")
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    assert shapes == T5Student(PLAIN).parameter_shapes()
    for name, array in expected.items():
        read = source.tensors[name].whole()
        assert read.dtype == source.tensors[name].dtype == np.float32
        np.testing.assert_allclose(read, array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_what_has_no_adapter_is_read_bit_for_bit(saved):
    folder, expected = saved
    source = open_source(str(folder))
    for name, array in expected.items():
        if not name.endswith(("query.kernel", "out.kernel")):
            np.testing.assert_array_equal(source.tensors[name].whole(), array, strict=True)


def test_a_slice_is_that_slice_of_the_whole(saved):
    source = open_source(str(saved[0]))
    for tensor in source.tensors.values():
        if len(tensor.shape) == 2:
            part = tensor.read((slice(1, 30), slice(2, 6, None)))
            np.testing.assert_allclose(part, tensor.whole()[1:30, 2:6], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_loads_into_both_forms(saved, scan_layers):
    folder, expected = saved
    wanted = drawn(dataclasses.replace(PLAIN, scan_layers=scan_layers))
    params = load(open_source(str(folder)), wanted)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        flatten(unstack_layers(params)),
        expected,
    )


def test_layers_in_a_row_read_their_stack_once(tmp_path, monkeypatch):
    config = CONFIGS["scanned"]
    save(tmp_path, config, drawn(config))
    read = []

    def counted(store, prefix):
        def part(name, tensor, index):
            read.append(name)
            return tensor.read(index)

        return {
            name: dataclasses.replace(tensor, read=partial(part, name, tensor))
            for name, tensor in orbax(store, prefix).items()
        }

    orbax = native.files.orbax
    monkeypatch.setattr(native.files, "orbax", counted)
    source = open_source(str(tmp_path))
    names = [f"encoder.layers_{i}.mlp.wo.kernel" for i in range(3)]
    arrays = [source.tensors[name].whole() for name in names]
    assert read == ["encoder.layers.mlp.wo.kernel"]
    assert not np.array_equal(arrays[0], arrays[1])


def test_the_folder_of_a_step_that_stands_alone_is_no_model_directory(saved, tmp_path):
    step = saved[0] / "checkpoints" / "3"
    assert open_source(str(step)).folder == saved[0]
    (tmp_path / "copied").symlink_to(step)
    assert open_source(str(tmp_path / "copied")).folder is None


# Metadata -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_student_is_what_was_stored(config):
    student = T5Student(config, SpecialIds(pad=3, end=2, start=5))
    assert from_json(json.loads(json.dumps(to_json(student))), "here") == student


def test_a_student_of_a_checkpoint_from_before_families_and_adapters():
    fields = dataclasses.asdict(PLAIN)
    old = {name: value for name, value in fields.items() if name not in ("lora", "residual_dtype")}
    assert from_json(old, "here") == T5Student(PLAIN)


def test_the_step_is_found_from_wherever_one_looks(saved, tmp_path):
    folder = saved[0]
    for place in (folder, folder / "checkpoints", folder / "checkpoints" / "3"):
        assert find(place) == str(folder / "checkpoints" / "3")
    assert find(tmp_path) is None


def test_broken_ones(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        open_source(str(tmp_path))
    save(tmp_path, PLAIN, drawn(PLAIN))
    step = Path(find(tmp_path))
    for chunk in (step / "state").rglob("d/*"):
        chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoints/3/state, which cannot be read") as raised:
        source = open_source(str(tmp_path))
        source.tensors["decoder.logits_dense.kernel"].whole()
    assert "\n" not in str(raised.value)
    (step / "metadata" / "metadata").unlink()
    with pytest.raises(UserError, match="no metadata in"):
        open_source(str(tmp_path))


def test_find(tmp_path):
    steps = tmp_path / "checkpoints"
    for step in (9, 10):
        save(tmp_path, PLAIN, drawn(PLAIN), step)
    # By number: "9" comes after "10" as a word.
    assert find(tmp_path) == find(steps) == str(steps / "10")
    assert find(steps / "9") == str(steps / "9")
    assert find(tmp_path / "none") is None
    metadata = native.read_metadata(find(tmp_path))
    assert (metadata.vocabulary, metadata.rows) == ("abc", 7)
