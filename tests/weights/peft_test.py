"""Adapters in PEFT's files against W + s B A by NumPy."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.weights import huggingface
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, Source

CONFIG = T5Config(
    vocab_size=24,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=3,
    mlp_dim=16,
)
QUERY = "decoder.block.1.layer.0.SelfAttention.q"
WO = "encoder.block.0.layer.1.DenseReluDense.wo"
OURS = {QUERY: "decoder.layers_1.self_attention.query.kernel", WO: "encoder.layers_0.mlp.wo.kernel"}
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": ["q", "wo"]}
OFFLINE = Access(local_files_only=True)


@pytest.fixture
def base(tmp_path):
    rng = np.random.default_rng(0)
    shapes = T5Student(CONFIG).parameter_shapes()
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = {name: Tensor(a.shape, a.dtype, a.__getitem__) for name, a in arrays.items()}
    source = Source("arrays", T5Student(CONFIG), tensors)
    folder = tmp_path / "base"
    huggingface.write_folder(source, folder, dtype="float32", tokenizer=None, card="")
    return folder


def factors(rank=2):
    """A and B by module."""
    rng = np.random.default_rng(1)
    shapes = {QUERY: (6, 8), WO: (8, 16)}
    return {
        module: (
            rng.normal(size=(rank, columns)).astype(np.float32),
            rng.normal(size=(rows, rank)).astype(np.float32),
        )
        for module, (rows, columns) in shapes.items()
    }


def write_adapter(folder, base, added=None, **settings):
    folder.mkdir(exist_ok=True)
    content = SETTINGS | {"base_model_name_or_path": str(base)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(content))
    tensors = {
        f"base_model.model.{module}.lora_{letter}.weight": matrix
        for module, pair in factors().items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    save_file(tensors | (added or {}), folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, {QUERY: 8.0, WO: 8.0}),
        ({"use_rslora": True}, {QUERY: 16 / math.sqrt(2), WO: 16 / math.sqrt(2)}),
        ({"alpha_pattern": {"SelfAttention.q": 3}}, {QUERY: 1.5, WO: 8.0}),
        ({"alpha_pattern": {"Attention.q": 3}}, {QUERY: 8.0, WO: 8.0}),  # part of a name
    ],
)
def test_an_adapter_is_merged_into_its_base(tmp_path, base, settings, scales):
    source = open_source(write_adapter(tmp_path / "adapter", base, **settings))
    stored = load_file(base / "model.safetensors")
    assert source.place == str(tmp_path / "adapter")
    for module, (a, b) in factors().items():
        expected = stored[f"{module}.weight"] + scales[module] * (b @ a)
        tensor = source.tensors[OURS[module]]
        np.testing.assert_allclose(tensor.whole(), expected.T, rtol=1e-6, atol=1e-6)
        part = (slice(1, 4), slice(2, 5))
        np.testing.assert_allclose(tensor.read(part), expected.T[part], rtol=1e-6, atol=1e-6)
    for name, tensor in open_source(str(base)).tensors.items():
        if name not in OURS.values():
            np.testing.assert_array_equal(source.tensors[name].whole(), tensor.whole())


def test_a_module_that_was_trained_whole_takes_the_bases_place(tmp_path, base):
    head = np.ones((24, 8), np.float32)
    added = {"base_model.model.lm_head.weight": head}
    source = open_source(write_adapter(tmp_path / "adapter", base, added))
    np.testing.assert_array_equal(source.tensors["decoder.logits_dense.kernel"].whole(), head.T)


def test_a_head_that_the_base_shares_with_its_embedding_may_be_the_adapters(tmp_path, base):
    stored = load_file(base / "model.safetensors")
    del stored["lm_head.weight"]  # as transformers 5 stores one matrix for both
    save_file(stored, base / "model.safetensors")
    head = np.ones((24, 8), np.float32)
    added = {"base_model.model.lm_head.weight": head}
    source = open_source(write_adapter(tmp_path / "adapter", base, added))
    np.testing.assert_array_equal(source.tensors["decoder.logits_dense.kernel"].whole(), head.T)


def test_the_base_is_looked_for_beside_the_adapter(tmp_path, base):
    adapter = write_adapter(tmp_path / "adapter", "../base")
    assert open_source(adapter).student.config == CONFIG


def test_a_base_out_of_reach_is_named(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", "nobody/no-such-model")
    message = f"adapter of PEFT at {adapter} to nobody/no-such-model, .*hf download.*merge_and_un"
    with pytest.raises(UserError, match=message):
        open_source(adapter, OFFLINE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "kind IA3 at"),
        ({"use_dora": True}, "kind DoRA at"),
        ({"init_lora_weights": "pissa"}, "kind LoRA that began with pissa at"),
        ({"base_model_name_or_path": None}, "without base_model_name_or_path"),
    ],
)
def test_what_cannot_be_merged_is_named(tmp_path, base, settings, message):
    with pytest.raises(UserError, match=f"{message}.*merge_and_unload"):
        open_source(write_adapter(tmp_path / "adapter", base, **settings))


def test_an_adapter_of_another_model_is_refused(tmp_path, base):
    wide = {f"base_model.model.{QUERY}.lora_A.weight": np.zeros((2, 9), np.float32)}
    name = "base_model.model.decoder.block.7.layer.0.SelfAttention.q.lora_A.weight"
    deep = {name: np.zeros((2, 8), np.float32)}
    for added in (wide, deep):
        with pytest.raises(UserError, match=r"1 parameters of the adapter .*lora_A.weight \[2, "):
            open_source(write_adapter(tmp_path / "adapter", base, added))
