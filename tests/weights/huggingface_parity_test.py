"""Against transformers itself, 4.5x or 5.x: freshly drawn models of several shapes, both ways."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from cot_flax.generation.decoding import decode
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.students.parameters import Tensor, unstack_layers
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.text.tokenizers import ByteTokenizer, SentencePieceTokenizer
from cot_flax.weights import tokenizer_files
from cot_flax.weights.huggingface import open_folder, write_folder
from cot_flax.weights.source import Access, Source, load

torch = pytest.importorskip("torch", reason="transformers runs in PyTorch")
transformers = pytest.importorskip("transformers", reason="it is what is compared with")

SHAPES = {
    "1.1, H * C != D": T5Config(
        vocab_size=50,
        emb_dim=24,
        num_heads=3,
        num_encoder_layers=3,
        num_decoder_layers=2,
        head_dim=4,
        mlp_dim=40,
    ),
    "1.0": T5Config(
        vocab_size=40,
        emb_dim=16,
        num_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=24,
        mlp_activations=("relu",),
        logits_via_embedding=True,
    ),
}
SHAPES["gated SiLU, tied"] = replace(
    SHAPES["1.0"], num_decoder_layers=3, mlp_activations=("silu", "linear")
)
SHAPES["ByT5, a deep encoder"] = replace(
    SHAPES["1.1, H * C != D"], vocab_size=384, num_decoder_layers=1
)
SHAPES["umT5"] = replace(SHAPES["1.1, H * C != D"], bias_per_layer=True)
SHAPES["umT5, tied"] = replace(SHAPES["umT5"], logits_via_embedding=True)
ACTIVATIONS = {2: "gated-{}", 1: "{}"}


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Programs are compiled here and hardly run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=SHAPES)
def config(request):
    return SHAPES[request.param]


def random_arrays(config, seed=0):
    """Parameters that make attention sharp, positions matter and logits differ."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in T5Student(config).parameter_shapes().items():
        if name.endswith("scale"):
            array = rng.uniform(0.5, 1.5, shape)
        elif "rel_embedding" in name or "token_embedder" in name:
            array = rng.normal(size=shape) * 2
        else:
            array = rng.normal(size=shape) / np.sqrt(shape[0])
        arrays[name] = array.astype(np.float32)
    return arrays


def in_memory(arrays, config, vocabulary=""):
    tensors = {n: Tensor(a.shape, a.dtype, a.__getitem__) for n, a in arrays.items()}
    return Source("memory", T5Student(config), tensors, vocabulary)


def theirs(config, seed=0, kind="T5"):
    """transformers' own model of this shape, with parameters that it drew, scaled up."""
    torch.manual_seed(seed)
    kind = "UMT5" if config.bias_per_layer else kind
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(
        getattr(transformers, f"{kind}Config")(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            num_heads=config.num_heads,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            feed_forward_proj=ACTIVATIONS[len(config.mlp_activations)].format(
                config.mlp_activations[0]
            ),
            tie_word_embeddings=config.logits_via_embedding,
            decoder_start_token_id=0,
        )
    )
    if not config.logits_via_embedding:  # transformers 5 makes it the embedding
        head = torch.randn_like(model.lm_head.weight) / config.emb_dim**0.5
        model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in name:
                # A layer's own, or what the first layer has would do for all.
                parameter.copy_(torch.randn_like(parameter) * 2)
            elif "SelfAttention.q" in name or "EncDecAttention.q" in name:
                parameter.mul_(3)
    return model.eval()


def batch(config):
    """Inputs of 7 to 300 tokens, padded; decoder inputs begin with the start token."""
    rng = np.random.default_rng(1)
    inputs = rng.integers(2, config.vocab_size, (3, 300)).astype(np.int32)
    inputs[1, 7:] = 0
    inputs[2, 140:] = 0
    decoder_inputs = rng.integers(2, config.vocab_size, (3, 180)).astype(np.int32)
    decoder_inputs[:, 0] = 0
    return inputs, decoder_inputs


def their_logits(model, inputs, decoder_inputs):
    inputs, decoder_inputs = torch.tensor(inputs).long(), torch.tensor(decoder_inputs).long()
    with torch.no_grad():
        return model(
            input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=decoder_inputs
        ).logits.numpy()


def loaded(source, scan=False):
    model = T5Student(replace(source.student.config, scan_layers=scan))
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return model, load(source, shapes)


def our_logits(model, params, inputs, decoder_inputs):
    ones = np.ones_like(decoder_inputs)  # all positions real, as there
    return _apply(model, params, inputs, decoder_inputs, ones)


@partial(jax.jit, static_argnums=0)
def _apply(model, params, *arrays):
    return model.module.apply({"params": params}, *arrays)


def test_their_models_opened_here(tmp_path, config):
    model = theirs(config)
    model.save_pretrained(tmp_path)
    source = open_folder(tmp_path, Access())
    ours, params = loaded(source)
    arrays = batch(config)
    expected = their_logits(model, *arrays)
    assert expected.std(axis=-1).min() > 0.1  # else any model would do
    np.testing.assert_allclose(our_logits(ours, params, *arrays), expected, atol=1e-4)
    greedy = model.generate(
        torch.tensor(arrays[0]).long(),
        attention_mask=torch.tensor(arrays[0] > 0).long(),
        max_new_tokens=12,
        do_sample=False,
        use_cache=False,  # transformers 5 cannot where the decoder is the deeper stack
    ).numpy()[:, 1:]
    found = np.asarray(decode(ours, params, arrays[0], max_tokens=12))[:, 0]
    np.testing.assert_array_equal(found[:, : greedy.shape[1]], greedy)


def test_an_mt5_of_theirs_opened_here(tmp_path):
    config = SHAPES["1.1, H * C != D"]
    model = theirs(config, kind="MT5")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mt5"
    source = open_folder(tmp_path, Access())
    assert source.student.config == config
    arrays = batch(config)
    found = our_logits(*loaded(source), *arrays)
    np.testing.assert_allclose(found, their_logits(model, *arrays), atol=1e-4)


def test_our_models_loaded_there(tmp_path, config):
    source = in_memory(random_arrays(config), config)
    out = tmp_path / "out"
    write_folder(source, out, dtype="float32", tokenizer=None, card="", shard_bytes=9000)
    assert len(list(out.glob("*.safetensors"))) > 1
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours, params = loaded(source)
    arrays = batch(config)
    expected = our_logits(ours, params, *arrays)
    assert expected.std(axis=-1).min() > 0.1
    np.testing.assert_allclose(their_logits(model.eval(), *arrays), expected, atol=1e-4)
    # What they make of it comes back the same.
    model.save_pretrained(tmp_path / "again")
    again = open_folder(tmp_path / "again", Access())
    assert again.student.config == config
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.whole(), again.tensors[name].whole(), name)


@pytest.mark.parametrize("name", ["1.1, H * C != D", "umT5"])
def test_scanned_layers_read_the_same_files(tmp_path, name):
    config = SHAPES[name]
    theirs(config).save_pretrained(tmp_path)
    source = open_folder(tmp_path, Access())
    arrays = batch(config)
    ours, params = loaded(source)
    scanned, stacked = loaded(source, scan=True)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)
    np.testing.assert_allclose(
        our_logits(scanned, stacked, *arrays), our_logits(ours, params, *arrays), atol=1e-5
    )


def test_bfloat16_files_are_loaded_there(tmp_path):
    config = SHAPES["1.1, H * C != D"]
    write_folder(
        in_memory(random_arrays(config), config),
        tmp_path / "out",
        dtype="bfloat16",
        tokenizer=None,
        card="",
    )
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "out", torch_dtype=torch.float32
    )
    arrays = batch(config)
    expected = our_logits(*loaded(open_folder(tmp_path / "out", Access())), *arrays)
    np.testing.assert_allclose(their_logits(model.eval(), *arrays), expected, atol=1e-4)


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_files_with_the_flag(tmp_path, shards):
    """As transformers 4 wrote them: with aliases of the embedding, which share its storage."""
    config = SHAPES["1.0"]
    model = theirs(config)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    assert {"shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"} <= set(state)
    if shards == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        files = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(state)}
        for file in set(files.values()):
            part = {name: tensor for name, tensor in state.items() if files[name] == file}
            torch.save(part, tmp_path / file)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": files}))
    source = open_folder(tmp_path, Access(allow_pickle=True))
    arrays = batch(config)
    np.testing.assert_allclose(
        our_logits(*loaded(source), *arrays), their_logits(model, *arrays), atol=1e-4
    )


TEXTS = (
    "Tom has 3 apples and 12 bags. How many?",
    "  two  spaces\nand a newline\t",
    "curly {x} ~ ^ 日本 é ½ ﬁ",
    "",
)


def tokenizer_of(out, tokenizer, vocab_size):
    config = replace(SHAPES["1.0"], vocab_size=vocab_size)
    source = in_memory(random_arrays(config), config, tokenizer.fingerprint)
    write_folder(source, out, dtype="bfloat16", tokenizer=tokenizer, card="")
    return transformers.AutoTokenizer.from_pretrained(out)


def test_their_tokenizer_of_bytes_gives_our_ids(tmp_path):
    """Of a ByT5 there is no file beside a checkpoint: its fingerprint says it."""
    bytes_of = ByteTokenizer()
    theirs = tokenizer_of(tmp_path / "out", bytes_of, 384)
    for text in TEXTS:
        assert theirs(text).input_ids == [*bytes_of.encode(text), bytes_of.special_ids.end]
    config = replace(SHAPES["1.0"], vocab_size=384)
    source = in_memory(random_arrays(config), config, bytes_of.fingerprint)
    assert tokenizer_files.read(source).fingerprint == bytes_of.fingerprint


def test_their_tokenizer_gives_the_ids_of_t5s_vocabulary(tmp_path, shared_data):
    ours = SentencePieceTokenizer(shared_data / "t5_vocab" / "spiece.model")
    found = tokenizer_of(tmp_path / "out", ours, 32128)
    assert len(found) == ours.vocab_size == 32100
    for text in (*TEXTS, "<extra_id_0> in <extra_id_99> out", "fill <extra_id_7>"):
        assert found(text).input_ids == [*ours.encode(text), ours.special_ids.end], text
    assert (found.pad_token_id, found.eos_token_id, found.unk_token_id) == (0, 1, 2)


def test_their_tokenizer_gives_the_ids_of_the_demos_vocabulary(tmp_path):
    ours = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    found = tokenizer_of(tmp_path / "out", ours, ours.vocab_size)
    assert len(found) == ours.vocab_size
    for text in TEXTS:
        assert found(text).input_ids == [*ours.encode(text), ours.special_ids.end], text
