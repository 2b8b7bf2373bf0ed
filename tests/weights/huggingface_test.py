import json
import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.students.parameters import Tensor
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.text.tokenizers import SentencePieceTokenizer
from cot_flax.weights.huggingface import open_folder, write_folder
from cot_flax.weights.source import Access, Source, load

TINY = T5Config(
    vocab_size=24,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=3,
    mlp_dim=16,
)
TIED = replace(TINY, mlp_activations=("relu",), logits_via_embedding=True)


def in_memory(arrays, config):
    tensors = {
        name: Tensor(array.shape, array.dtype, array.__getitem__) for name, array in arrays.items()
    }
    return Source("memory", T5Student(config), tensors)


def random_source(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = T5Student(config).parameter_shapes()
    return in_memory({n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}, config)


def write(source, out, dtype="float32", **options):
    write_folder(source, out, dtype=dtype, tokenizer=None, card="# A model\n", **options)
    return out


@pytest.fixture
def folder(tmp_path):
    """TINY as transformers would have written it."""
    return write(random_source(TINY), tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def abstract(config):
    return jax.eval_shape(T5Student(config).init, jax.random.key(0))["params"]


def assert_equal(one, other):
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.whole(), other.tensors[name].whole(), name)


@pytest.mark.parametrize("fixture", ["hf_tiny_v1_1", "hf_tiny_v1_0"])
def test_logits_of_hugging_faces_own_files_here_and_after_a_round_trip(fixtures, tmp_path, fixture):
    place = fixtures / fixture
    source = open_folder(place, Access())
    again = open_folder(write(source, tmp_path / "out"), Access())
    assert again.student.config == source.student.config
    assert_equal(source, again)
    expected = np.load(place / "expected.npz")
    model = T5Student(source.student.config)
    params = load(again, abstract(source.student.config))
    inputs, targets = expected["encoder_input_tokens"], expected["decoder_input_tokens"]
    logits = jax.jit(model.module.apply)({"params": params}, inputs, targets, np.ones_like(targets))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


@pytest.mark.parametrize("config", [TINY, TIED])
def test_what_is_written_is_read(tmp_path, config):
    source = random_source(config)
    again = open_folder(write(source, tmp_path / "out"), Access())
    assert again.student.config == config
    assert (again.place, again.folder) == (str(tmp_path / "out"), tmp_path / "out")
    assert_equal(source, again)


def test_matrices_lie_as_torch_has_them(folder):
    source, stored = random_source(TINY), load_file(folder / "model.safetensors")
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    np.testing.assert_array_equal(
        stored[name], source.tensors["encoder.layers_0.mlp.wo.kernel"].whole().T
    )
    name = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert stored[name].shape == (32, 2)
    assert stored["lm_head.weight"].shape == stored["shared.weight"].shape == (24, 8)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_part_is_read_as_it_lies(folder):
    source, expected = open_folder(folder, Access()), random_source(TINY)
    index = (slice(2, 5), slice(None, 400))
    for name in ("decoder.logits_dense.kernel", "token_embedder.embedding"):
        part = source.tensors[name].read(index)
        np.testing.assert_array_equal(part, expected.tensors[name].whole()[index])
    norm = "decoder.decoder_norm.scale"
    assert source.tensors[norm].read((slice(3, 5),)).shape == (2,)


def test_bfloat16_is_rounded_to_nearest_even(tmp_path):
    # 8 bits of mantissa: steps of 2^-7 above 1. Halfway between two goes to the even one.
    values = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.0, 65504.0, 0.0, 2.0**127, 2.0**-126]
    expected = [1.0, 1 + 2**-6, 1 + 2**-7, -3.0, 65536.0, 0.0, 2.0**127, 2.0**-126]
    arrays = {n: t.whole() for n, t in random_source(TINY).tensors.items()}
    arrays["encoder.encoder_norm.scale"] = np.array(values, np.float32)
    again = open_folder(write(in_memory(arrays, TINY), tmp_path / "out", "bfloat16"), Access())
    scale = again.tensors["encoder.encoder_norm.scale"]
    assert scale.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(scale.whole().astype(np.float64), expected)
    params = load(again, abstract(TINY))
    assert params["encoder"]["encoder_norm"]["scale"].dtype == np.float32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_float16_files_are_read(folder):
    edit_tensors(folder, lambda t: t.update({n: a.astype(np.float16) for n, a in t.items()}))
    tensor = open_folder(folder, Access()).tensors["token_embedder.embedding"]
    assert tensor.dtype == tensor.whole().dtype == np.float16


def test_shards_hold_all_tensors_once_and_no_more_than_asked(tmp_path):
    source = random_source(TINY)
    out = write(source, tmp_path / "out", shard_bytes=3000)
    shards = sorted(out.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    held = {name: path.name for path in shards for name in load_file(path)}
    assert held == weight_map
    assert all(sum(a.nbytes for a in load_file(path).values()) <= 3000 for path in shards)
    assert_equal(source, open_folder(out, Access()))


def test_a_shard_that_is_absent(tmp_path):
    out = write(random_source(TINY), tmp_path / "out", shard_bytes=3000)
    sorted(out.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"without model-00002-of-.* download the rest"):
        open_folder(out, Access())


def test_an_index_may_name_a_tensor_that_no_shard_has(tmp_path):
    """A parameter that is in no shard is missing by name, whatever the index says of it."""
    source = random_source(TINY)
    out = write(source, tmp_path / "out", shard_bytes=3000)
    path = out / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, second, *_ = sorted(out.glob("*.safetensors"))
    index["weight_map"]["ghost.weight"] = first.name
    path.write_text(json.dumps(index))
    assert_equal(source, open_folder(out, Access()))
    load(open_folder(out, Access()), abstract(TINY))
    tensors = load_file(second)
    tensors.pop("decoder.block.0.layer.2.DenseReluDense.wi_1.weight")
    save_file(tensors, second, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing \(decoder\.layers_0\.mlp\.wi_1\.kernel "):
        load(open_folder(out, Access()), abstract(TINY))


def test_an_export_that_fails_leaves_nothing(tmp_path):
    source = random_source(TINY)

    def broken(index):
        raise OSError("disk on fire")

    tensors = dict(source.tensors)
    name = "encoder.encoder_norm.scale"
    tensors[name] = replace(tensors[name], read=broken)
    with pytest.raises(OSError, match="on fire"):
        write(replace(source, tensors=tensors), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_not_written_into_an_empty_one_is(tmp_path, folder):
    with pytest.raises(UserError, match="not empty"):
        write(random_source(TINY), folder)
    (tmp_path / "empty").mkdir()
    write(random_source(TINY), tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").read_text() == "# A model\n"


# The embedding, the head, and what stands for them.


def test_aliases_of_the_embedding(folder):
    def rename(tensors):
        tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        useless = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[useless] = np.zeros((32, 2), np.float32)

    edit_tensors(folder, rename)
    assert_equal(open_folder(folder, Access()), random_source(TINY))


EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")


@pytest.mark.parametrize("config", [TINY, TIED])
@pytest.mark.parametrize(
    ("first", "other"), [(0, 1), (0, 2), (1, 2)], ids=["encoder", "decoder", "both"]
)
def test_a_second_embedding_is_refused_unless_it_is_the_same(tmp_path, config, first, other):
    out = write(random_source(config), tmp_path / "out")
    first, other = (f"{EMBEDDINGS[place]}.weight" for place in (first, other))

    def double(tensors):
        tensors[first] = tensors.pop("shared.weight")
        tensors[other] = tensors[first].copy()

    edit_tensors(out, double)
    assert_equal(open_folder(out, Access()), random_source(config))
    edit_tensors(out, lambda tensors: tensors[other].__setitem__((23, 7), 0.5))
    with pytest.raises(UserError, match=f"got {other} different from {first} beside"):
        open_folder(out, Access())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, 'tie_word_embeddings is false; .*or write "tie_word_embeddings": true'),
        ({"model_type": "mt5"}, "an mT5 has one; download the file that has it$"),
    ],
)
def test_a_missing_head_names_the_setting(folder, config, message):
    edit_config(folder, scale_decoder_outputs=None, **config)  # as transformers 4 writes it
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=f"no lm_head.weight beside .*config.json; .*{message}"):
        open_folder(folder, Access())


def test_a_tied_head_may_stand_for_the_embedding_or_beside_it(tmp_path):
    out = write(random_source(TIED), tmp_path / "out")
    edit_tensors(out, lambda t: t.update({"lm_head.weight": t["shared.weight"]}))
    assert_equal(open_folder(out, Access()), random_source(TIED))
    edit_tensors(out, lambda t: t.pop("shared.weight"))
    assert_equal(open_folder(out, Access()), random_source(TIED))


def test_a_tied_head_that_differs_is_refused(tmp_path):
    out = write(random_source(TIED), tmp_path / "out")
    edit_tensors(out, lambda t: t.update({"lm_head.weight": t["shared.weight"] + 1}))
    with pytest.raises(UserError, match=r"lm_head.weight different from shared.weight"):
        open_folder(out, Access())


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": False, "scale_decoder_outputs": None},
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},  # transformers 5
        {"tie_word_embeddings": True, "scale_decoder_outputs": None, "model_type": "mt5"},
    ],
)
def test_the_head_of_t5_1_1_is_its_own(folder, config):
    edit_config(folder, **config)
    assert open_folder(folder, Access()).student.config == TINY


@pytest.mark.parametrize("scaled", [None, True])
@pytest.mark.parametrize("tie", [None, True])
def test_the_head_of_t5_1_0_is_the_embedding(tmp_path, tie, scaled):
    out = write(random_source(TIED), tmp_path / "out")
    edit_config(out, tie_word_embeddings=tie, scale_decoder_outputs=scaled)
    assert open_folder(out, Access()).student.config == TIED


def test_transformers_5_may_write_one_matrix_for_both(folder):
    edit_config(folder, tie_word_embeddings=True)  # and scale_decoder_outputs: false
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    source = open_folder(folder, Access())
    assert source.student.config == TINY
    embedding = source.tensors["token_embedder.embedding"].whole()
    np.testing.assert_array_equal(
        source.tensors["decoder.logits_dense.kernel"].whole(), embedding.T
    )


# What is not a T5, or not whole.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "got a model of type llama in .*; expected one of"),
        ({"model_type": "longt5"}, "type longt5"),
        ({"model_type": None}, "type None"),
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"relative_attention_max_distance": 256}, "relative_attention_max_distance 256"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon 1e-05"),
        ({"feed_forward_proj": "gated-quick"}, "gated-quick"),
        ({"dense_act_fn": "gelu"}, "'gelu'"),  # by erf, not by tanh
        ({"d_kv": None}, "d_kv None"),
    ],
)
def test_foreign_models(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(UserError, match=message):
        open_folder(folder, Access())


@pytest.mark.parametrize(
    ("change", "activations"),
    [
        ({"dense_act_fn": None}, ("gelu", "linear")),
        ({"feed_forward_proj": "gated-silu", "dense_act_fn": None}, ("silu", "linear")),
        ({"feed_forward_proj": "relu", "dense_act_fn": None}, ("relu",)),
    ],
)
def test_activations(folder, change, activations):
    edit_config(folder, **change)
    assert open_folder(folder, Access()).student.config.mlp_activations == activations


def test_the_decoder_is_as_deep_as_the_encoder_unless_said(folder):
    edit_config(folder, num_decoder_layers=None)
    assert open_folder(folder, Access()).student.config.num_decoder_layers == 1


def test_no_config_and_one_that_is_no_json(folder, tmp_path):
    with pytest.raises(UserError, match=r"no .*config.json"):
        open_folder(tmp_path, Access())
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"expected JSON"):
        open_folder(folder, Access())


def test_no_weights_and_only_pickled_ones(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin only; .* --allow_pickle"):
        open_folder(folder, Access())
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights in") as error:
        open_folder(folder, Access())
    assert "allow_pickle" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flax_model.msgpack", r"weights of Flax; .*from_flax=True"),
        ("tf_model.h5", r"weights of TensorFlow; .*from_tf=True"),
        ("model.ckpt-1000000.index", r"a TensorFlow checkpoint; .*gs://t5-data"),
        ("last.ckpt", r"a checkpoint of Lightning.*save_pretrained"),
        ("model.fp16.safetensors", r"under another name; .*rename it"),
    ],
)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_weights_that_are_not_read_are_called_by_their_name(folder, name, kind, allow_pickle):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match=f"{name}, {kind}") as error:
        open_folder(folder, Access(allow_pickle))
    assert "allow_pickle" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_file_cut_short(folder, cut):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    size = f"{len(whole[:cut]):,} bytes"
    expected = f"expected {len(whole):,} bytes" if cut == -1 else "has no header of"
    with pytest.raises(UserError, match=rf"model.safetensors.*{size}.*{expected}.* download"):
        open_folder(folder, Access())


def with_header(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        with_header(b"[]"),
        with_header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}') + bytes(4),
        with_header(b'{"a": {"shape": [1], "data_offsets": [0, 4]}}') + bytes(4),
        with_header(b'{"a": {"data_offsets": []}}'),
    ],
)
def test_a_file_of_something_else(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="no header of a safetensors file"):
        open_folder(folder, Access())


def test_quantized_numbers_are_refused(folder):
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": np.zeros((24, 8), np.int8)}))
    with pytest.raises(UserError, match=r"lm_head.weight in .* as I8"):
        open_folder(folder, Access())


def test_tensors_that_are_missing_unknown_or_of_another_shape(folder):
    def change(tensors):
        del tensors["encoder.block.0.layer.0.SelfAttention.q.weight"]
        tensors["encoder.block.0.layer.0.SelfAttention.q.bias"] = np.zeros(6, np.float32)
        tensors["shared.weight"] = np.zeros((30, 8), np.float32)

    edit_tensors(folder, change)
    with pytest.raises(UserError) as error:
        load(open_folder(folder, Access()), abstract(TINY))
    message = str(error.value)
    assert "1 missing (encoder.layers_0.attention.query.kernel [8, 6])" in message
    assert "1 not of this model (encoder.block.0.layer.0.SelfAttention.q.bias [6])" in message
    assert "token_embedder.embedding [30, 8], not [24, 8]" in message


# The tokenizer.


@pytest.fixture
def world():
    """The demo's vocabulary, and a model with room for it but not for sentinels."""
    tokenizer = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    config = replace(TINY, vocab_size=tokenizer.vocab_size + 5)
    return tokenizer, random_source(config)


@pytest.mark.parametrize("known", [True, False])
def test_a_vocabulary_without_sentinels_keeps_its_fingerprint(tmp_path, world, known):
    tokenizer, source = world
    source = replace(source, vocabulary=tokenizer.fingerprint if known else "")
    out = tmp_path / "out"
    write_folder(source, out, dtype="float32", tokenizer=tokenizer, card="")
    assert open_folder(out, Access()).vocabulary == tokenizer.fingerprint
    assert (out / "spiece.model").read_bytes() == tokenizer.model


def test_another_vocabulary_than_the_models_is_refused(tmp_path, world):
    tokenizer, source = world
    for changed in (replace(source, vocabulary="0" * 16), random_source(TINY)):
        with pytest.raises(UserError, match=r"a tokenizer of [\d,]+ pieces"):
            write_folder(changed, tmp_path / "out", dtype="float32", tokenizer=tokenizer, card="")
    assert list(tmp_path.iterdir()) == []


def test_t5s_vocabulary_has_sentinels_with_or_without_settings(folder, shared_data):
    path = shared_data / "t5_vocab" / "spiece.model"
    shutil.copy(path, folder)
    assert (
        open_folder(folder, Access()).vocabulary
        == SentencePieceTokenizer(path, extra_ids=100).fingerprint
    )
