"""Tests of exporting: a run leaves with what it learnt, as a folder that stands alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tokenizers import END, byte_level

from cot_flax.errors import UserError
from cot_flax.generation.generator import Generator
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.students.lora import Lora, merge
from cot_flax.students.parameters import flatten, nest, stack_layers
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.text.tokenizers import SentencePieceTokenizer, open_tokenizer
from cot_flax.training.checkpoints import Checkpointer, Metadata, save_vocabulary
from cot_flax.training.state import TrainState, abstract_variables
from cot_flax.weights import export as exporting
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import load

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=32,
)
FINGERPRINT = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0).fingerprint


def card(name, parameters, folder, place):
    return f"{name} of {parameters}, from {folder} at {place}"


export = partial(exporting.export, card=card)


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    shapes = T5Student(CONFIG).parameter_shapes().items()
    return nest({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes})


def save(folder, config, params, vocabulary=FINGERPRINT):
    checkpointer = Checkpointer(str(folder), period=1, keep=None)
    state = TrainState(jnp.int32(2), params, (), jnp.zeros(2, jnp.uint32))
    checkpointer.save(state, Metadata(dataclasses.asdict(config), vocabulary, 2), step=2)
    checkpointer.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model directory with its vocabulary."""
    folder = tmp_path_factory.mktemp("export") / "run"
    save(folder, CONFIG, drawn())
    save_vocabulary(str(folder), {"spiece.model": VOCABULARY_PATH.read_bytes()})
    return folder


def assert_holds(folder, params, **tolerance):
    source, wanted = open_source(str(folder)), flatten(params)
    assert source.tensors.keys() == wanted.keys()
    for name, tensor in source.tensors.items():
        np.testing.assert_allclose(tensor.whole(), wanted[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("format", ["huggingface", "t5x"])
def test_a_run_goes_out_bit_for_bit(format, run, tmp_path):
    done = export(str(run), tmp_path / "out", format=format)
    assert done.place == str(run / "checkpoints" / "2")
    assert done.parameters == sum(
        np.prod(shape) for shape in T5Student(CONFIG).parameter_shapes().values()
    )
    assert done.bytes > 4 * done.parameters
    assert_holds(tmp_path / "out", drawn(), rtol=0, atol=0)


def test_a_folder_for_hugging_face_stands_alone(run, tmp_path):
    export(str(run), tmp_path / "out", format="huggingface", dtype="bfloat16")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "model.safetensors", "README.md", "tokenizer_config.json"}
    assert (tmp_path / "out" / "spiece.model").read_bytes() == VOCABULARY_PATH.read_bytes()
    assert open_source(str(tmp_path / "out")).vocabulary == FINGERPRINT
    count = sum(map(np.prod, T5Student(CONFIG).parameter_shapes().values()))
    assert (tmp_path / "out" / "README.md").read_text() == card(
        "out", count, run, str(run / "checkpoints" / "2")
    )
    # bfloat16 keeps 8 bits.
    assert_holds(tmp_path / "out", drawn(), rtol=2**-8, atol=0)


def test_a_vocabulary_of_another_kind_leaves_with_the_run(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path / "bpe", special=("<|pad|>", END)))
    config = dataclasses.replace(CONFIG, vocab_size=320)
    shapes = T5Student(config).parameter_shapes().items()
    params = nest({name: np.ones(shape, np.float32) for name, shape in shapes})
    save(tmp_path / "run", config, params, tokenizer.fingerprint)
    save_vocabulary(str(tmp_path / "run"), tokenizer.files)
    export(str(tmp_path / "run"), tmp_path / "out", format="huggingface")
    assert open_source(str(tmp_path / "out")).vocabulary == tokenizer.fingerprint
    # The special ids stand in the file beside it; without them it is another vocabulary.
    assert open_tokenizer(tmp_path / "out").special_ids == tokenizer.special_ids
    other = open_tokenizer(byte_level(tmp_path / "other", corpus=["a b"]))
    save_vocabulary(str(tmp_path / "run"), other.files)
    with pytest.raises(UserError, match=f"a tokenizer of .*fingerprint {tokenizer.fingerprint}"):
        export(str(tmp_path / "run"), tmp_path / "again", format="huggingface")


def test_weights_are_read_beside_a_tokenizer_that_we_do_not_know(run, tmp_path):
    export(str(run), tmp_path / "out", format="huggingface")
    (tmp_path / "out" / "spiece.model").unlink()
    (tmp_path / "out" / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    assert open_source(str(tmp_path / "out")).vocabulary == ""


def test_round_and_round(run, tmp_path):
    export(str(run), tmp_path / "a", format="t5x")
    export(str(tmp_path / "a"), tmp_path / "b", format="huggingface", tokenizer=VOCABULARY_PATH)
    export(str(tmp_path / "b"), tmp_path / "c", format="t5x")
    assert_holds(tmp_path / "c", drawn(), rtol=0, atol=0)


def test_scanned_layers_with_adapters_go_out_plain(tmp_path):
    lora = Lora(rank=2)
    config = dataclasses.replace(CONFIG, scan_layers=True, lora=lora)
    params, rng = drawn(), np.random.default_rng(1)
    for stack in ("encoder", "decoder"):
        for name, layer in params[stack].items():
            for attention in layer.values() if name.startswith("layers_") else ():
                for target in lora.targets:
                    if target in attention:
                        a, b = rng.normal(size=(16, 2)), rng.normal(size=(2, 8))
                        attention[target] |= {"lora_a": a.astype("f4"), "lora_b": b.astype("f4")}
    save(tmp_path / "run", config, stack_layers(params))
    export(str(tmp_path / "run"), tmp_path / "out", format="t5x")
    assert_holds(tmp_path / "out", merge(params, lora), rtol=1e-5, atol=1e-5)


def test_wrong_input(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"--format gguf; expected one of \('huggingface', 't5x', "):
        export(str(run), out, format="gguf")
    with pytest.raises(UserError, match="--dtype float16"):
        export(str(run), out, format="t5x", dtype="float16")
    with pytest.raises(UserError, match=f"no folder {tmp_path}/none"):
        export(str(tmp_path / "none"), out, format="t5x")
    save(tmp_path / "bare", CONFIG, drawn())
    with pytest.raises(UserError, match=r"no .*bare/spiece.model, nor tokenizer.json; .*--tok"):
        export(str(tmp_path / "bare"), out, format="huggingface")
    save(tmp_path / "other", CONFIG, drawn(), "0123456789abcdef")
    with pytest.raises(UserError, match="fingerprint 0123456789abcdef"):
        export(str(tmp_path / "other"), out, format="huggingface", tokenizer=VOCABULARY_PATH)
    out.mkdir()
    (out / "file").write_text("")
    with pytest.raises(UserError, match="out, which is not empty"):
        export(str(run), out, format="t5x")
    assert [path.name for path in out.iterdir()] == ["file"]


def test_ctranslate2_writes_the_same_tokens(tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="no extra ctranslate2")
    tokenizer = open_tokenizer(VOCABULARY_PATH)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    params = jax.jit(T5Student(config).init)(jax.random.key(0))["params"]
    run = tmp_path / "run"
    save(run, config, jax.tree.map(lambda leaf: leaf * 2.0, params))
    export(run, tmp_path / "out", format="ctranslate2", tokenizer=VOCABULARY_PATH)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.bin", "config.json", "spiece.model", "README.md"}
    source = open_source(str(run))
    params = load(source, abstract_variables(source.student)["params"])
    prompts = ["Anna has 3 coins.", "How many pens does Ben have now?", "Ben loses 2 books."]
    ours = Generator(source.student, params, tokenizer).generate(prompts, max_tokens=12)
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    pieces = [[*tokenizer.pieces(prompt).strings, "</s>"] for prompt in prompts]
    theirs = translator.translate_batch(pieces, beam_size=1, max_decoding_length=12)
    for (own,), other in zip(ours, theirs, strict=True):
        assert [tokenizer.id_to_piece(i) for i in own.ids] == other.hypotheses[0]
    assert len({tuple(own.ids) for (own,) in ours}) > 1
