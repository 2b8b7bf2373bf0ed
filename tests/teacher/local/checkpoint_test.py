"""Tests of the JAX teacher on a checkpoint of random parameters with the world's vocabulary."""

import asyncio
import dataclasses
import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax.errors import UserError
from cot_flax.generation import slots
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.teacher.local.checkpoint import JaxTeacher
from cot_flax.teacher.requests import Request, Unscorable
from cot_flax.training.checkpoints import Checkpointer, Metadata
from cot_flax.training.state import TrainState, abstract_variables

VOCABULARY = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY_PATH))
CONFIG = T5Config(
    vocab_size=256,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=16,
)
UNKNOWN, UNWRITTEN = 2, " \u2047 "
PROMPT = "Q: Tom has 3 apples. How many?"
REQUEST = Request(PROMPT, n=8, max_tokens=12, temperature=0.7, top_logprobs=5)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def student():
    module = T5Student(CONFIG)
    params = jax.jit(module.init)(jax.random.key(0))["params"]
    return module, jax.tree.map(lambda leaf: leaf * 2.0, params)


def save(folder, params, fingerprint, config=CONFIG):
    state = TrainState(jnp.int32(7), params, (), jax.random.PRNGKey(0))
    checkpointer = Checkpointer(str(folder), period=1, keep=1)
    checkpointer.save(state, Metadata(dataclasses.asdict(config), fingerprint, 7), step=7)
    checkpointer.close()
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(student, tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), student[1], "")


@pytest.fixture(scope="module")
def teacher(checkpoint):
    return JaxTeacher(checkpoint, VOCABULARY_PATH, max_input_tokens=100)


def complete(teacher, request):
    return asyncio.run(teacher.complete(request))


@pytest.fixture(scope="module")
def reply(teacher):
    return complete(teacher, REQUEST)


@pytest.fixture(scope="module")
def dense_logprobs(student):
    """NumPy's log-softmax at each position of one pass without padding or cache: [T, V]."""
    module, params = student

    def logprobs(prompt, ids):
        inputs = np.array([[*VOCABULARY.encode(prompt), 1]], np.int32)
        previous = np.array([[0, *ids[:-1]]], np.int32)
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": previous,
            "decoder_target_tokens": np.array([ids], np.int32),
        }
        logits = np.asarray(module.hidden(params, batch)[0] @ module.head(params), np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return logprobs


def ids_of(tokens):
    """The ids that a draw's tokens can have been: the first may have lost a space."""
    pieces = [token.replace(" ", "\u2581") for token in tokens]
    ids, rest = VOCABULARY.piece_to_id(["\u2581" + pieces[0], pieces[0]]), pieces[1:]
    return [[first, *VOCABULARY.piece_to_id(rest)] for first in ids if first != UNKNOWN]


def test_tokens_join_to_the_text(reply):
    for completion in reply.completions:
        logprobs = completion.logprobs
        assert "".join(logprobs.tokens) == completion.text != ""
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert reply.prompt_tokens == len(VOCABULARY.encode(PROMPT)) + 1
    written = sum(len(completion.logprobs.tokens) for completion in reply.completions)
    assert reply.completion_tokens == written


def test_samples_differ(reply):
    assert len({completion.text for completion in reply.completions}) == 8


def test_scores_are_the_log_softmax(teacher, dense_logprobs):
    text = "The answer is 72."
    ids = VOCABULARY.encode(text)
    logprobs = asyncio.run(teacher.score(PROMPT, text, 5))
    assert logprobs.tokens == ("The", " answer", " is", " 7", "2", ".")
    expected = dense_logprobs(PROMPT, ids)
    np.testing.assert_allclose(
        logprobs.token_logprobs, expected[np.arange(len(ids)), ids], atol=1e-5
    )
    for i, (row, top) in enumerate(zip(expected, logprobs.top_logprobs, strict=True)):
        values = list(top.values())
        assert values == sorted(values, reverse=True) and np.exp(values).sum() <= 1
        row[[0, 1, 2]] = row[236:] = -np.inf  # padding, end, unknown, and what has no piece
        likeliest = np.argsort(-row)[:5]
        pieces = [VOCABULARY.id_to_piece(int(j)).replace("\u2581", " ") for j in likeliest]
        assert list(top) == (pieces if i else [piece.lstrip(" ") for piece in pieces])
        np.testing.assert_allclose(values, row[likeliest], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_draws_are_scored_without_their_temperature(temperature, teacher, dense_logprobs):
    request = dataclasses.replace(REQUEST, temperature=temperature)
    compared = 0
    for completion in complete(teacher, request).completions:
        logprobs = completion.logprobs
        if UNWRITTEN in logprobs.tokens:  # which id was drawn cannot be read off the text
            continue
        expected = [
            dense_logprobs(PROMPT, ids)[np.arange(len(ids)), ids] for ids in ids_of(logprobs.tokens)
        ]
        assert any(np.allclose(logprobs.token_logprobs, row, atol=1e-4) for row in expected)
        compared += 1
    assert compared


def test_a_higher_temperature_draws_less_likely_tokens(teacher):
    means = []
    for temperature in (0.0, 0.7, 3.0):
        reply = complete(teacher, dataclasses.replace(REQUEST, temperature=temperature))
        logprobs = [completion.logprobs.token_logprobs for completion in reply.completions]
        means.append(np.mean(np.concatenate(logprobs)))
    assert means[0] > means[1] + 0.1 > means[2] + 0.2


def test_a_drawn_text_is_scored_as_it_was_drawn(teacher):
    """Short draws, of which many are segmented again as they were drawn."""
    request = dataclasses.replace(REQUEST, n=200, max_tokens=2)
    again = 0
    for completion in complete(teacher, request).completions:
        drawn = completion.logprobs
        if UNWRITTEN in drawn.tokens or len(ids_of(drawn.tokens)) > 1:
            continue  # the text may stand for other ids than were drawn
        scored = asyncio.run(teacher.score(PROMPT, completion.text, 5))
        if scored.tokens == drawn.tokens:
            again += 1
            assert scored.token_logprobs == pytest.approx(drawn.token_logprobs, abs=1e-4)
            assert list(scored.top_logprobs[0]) == list(drawn.top_logprobs[0])
    assert again > 5


def test_a_text_is_scored_as_it_stands(teacher):
    """The vocabulary writes neither the line break nor the snowman; the tokens do."""
    text = " \n The answer\nis  \u2603. \n"
    logprobs = asyncio.run(teacher.score(PROMPT, text, 5))
    assert "".join(logprobs.tokens) == text
    assert logprobs.tokens[:3] == (" \n The", " answer", "\nis") and logprobs.tokens[-1] == ". \n"
    assert asyncio.run(teacher.score(PROMPT, " answer\n", 5)).tokens == (" answer\n",)
    for nothing in ("", " \n"):
        with pytest.raises(Unscorable, match="no_words"):
            asyncio.run(teacher.score(PROMPT, nothing, 5))
    with pytest.raises(Unscorable, match="prompt_too_long"):
        asyncio.run(teacher.score("Tom has 3 apples. " * 25, "The answer is 3", 5))


def test_equal_requests_draw_equal_samples(teacher, reply):
    async def together():
        return await asyncio.gather(teacher.complete(REQUEST), teacher.complete(REQUEST))

    assert asyncio.run(together()) == [reply, reply]


@pytest.mark.parametrize(
    "change", [{"done": 1}, {"seed": 7}, {"prompt": "Q: Tom has 4 apples. How many?"}]
)
def test_other_requests_seeds_and_prompts_draw_others(change, teacher, reply):
    texts = [completion.text for completion in reply.completions]
    others = complete(teacher, dataclasses.replace(REQUEST, **change)).completions
    assert len({*texts, *(completion.text for completion in others)}) > 12  # of 16


def test_a_narrow_nucleus_draws_the_likeliest_tokens(teacher):
    greedy, nucleus = (
        complete(teacher, dataclasses.replace(REQUEST, **change)).completions
        for change in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 1e-6})
    )
    assert {c.text for c in nucleus} == {c.text for c in greedy}


def test_no_logprobs_where_none_were_asked_for(teacher, reply):
    silent = complete(teacher, Request(PROMPT, max_tokens=12))
    assert [completion.logprobs for completion in silent.completions] == [None]


def test_the_end_is_no_token(teacher):
    """Nearly uniform draws of 256 tokens, of which two end a text."""
    request = dataclasses.replace(REQUEST, n=60, max_tokens=16, temperature=1000.0)
    reply = complete(teacher, request)
    ended = [c for c in reply.completions if c.finish_reason == "stop"]
    assert 0 < len(ended) < 30
    for completion in reply.completions:
        assert "".join(completion.logprobs.tokens) == completion.text
        whole = len(completion.logprobs.tokens) == 16
        assert completion.finish_reason == ("length" if whole else "stop")


def test_a_stop_string_ends_the_text(teacher):
    whole = complete(teacher, dataclasses.replace(REQUEST, n=1, temperature=0.0)).completions[0]
    stop = whole.text[5:8]
    place = whole.text.index(stop)
    request = dataclasses.replace(REQUEST, n=1, temperature=0.0, stop=("no such text", stop))
    (cut,) = complete(teacher, request).completions
    assert cut.text == whole.text[:place] == "".join(cut.logprobs.tokens)
    assert cut.finish_reason == "stop"
    kept = len(cut.logprobs.tokens)
    assert 0 < kept < len(whole.logprobs.tokens)
    assert cut.logprobs.token_logprobs == whole.logprobs.token_logprobs[:kept]


def test_prompts_of_like_length_share_a_program(teacher, reply):
    before = slots._insert._cache_size()
    complete(teacher, dataclasses.replace(REQUEST, prompt=PROMPT + " Tom has 3 apples."))
    assert slots._insert._cache_size() == before > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ({"role": "user", "content": "Hi"},)}, "no chat"),
        ({"presence_penalty": 0.5}, "presence_penalty = 0.5"),
        ({"frequency_penalty": 0.5}, "frequency_penalty = 0.5"),
        ({"prompt": "Tom has 3 apples. " * 25}, "expected at most 100"),
    ],
)
def test_what_cannot_be_answered_says_so(change, message, teacher):
    with pytest.raises(UserError, match=message):
        complete(teacher, dataclasses.replace(REQUEST, **change))


def test_only_the_vocabulary_of_the_checkpoint_will_do(student, tmp_path):
    fingerprint = hashlib.sha256(VOCABULARY_PATH.read_bytes()).hexdigest()[:16]
    checkpoint = save(tmp_path / "run", student[1], fingerprint)
    assert JaxTeacher(checkpoint, VOCABULARY_PATH).name.endswith("run/checkpoints/7")
    other = ModelProto.FromString(VOCABULARY_PATH.read_bytes())
    other.pieces[9].score -= 1
    (tmp_path / "other.model").write_bytes(other.SerializeToString())
    with pytest.raises(UserError, match=f"the checkpoint's vocabulary {fingerprint}"):
        JaxTeacher(checkpoint, tmp_path / "other.model")
    for path in (tmp_path / "missing.model", None):
        with pytest.raises(UserError, match=r"no .*\.model[;,] .*name the file"):
            JaxTeacher(checkpoint, path)
    with pytest.raises(UserError, match="a SentencePiece model file"):
        JaxTeacher(checkpoint, __file__)


def test_takes_the_vocabulary_that_lies_beside_the_checkpoint(student, tmp_path):
    checkpoint = save(tmp_path, student[1], "")
    (tmp_path / "spiece.model").write_bytes(VOCABULARY_PATH.read_bytes())
    assert asyncio.run(JaxTeacher(checkpoint).score("Tom has 3", "has 3", 5)).tokens[0] == "has"


def test_a_vocabulary_fits_with_the_sentinels_that_seqio_adds(tmp_path):
    """They are then part of prompts and texts; the first of 236 + 100 is the last id."""
    seqio = pytest.importorskip("seqio")
    features = pytest.importorskip("cot_flax.data.features")
    with_sentinels = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=100)
    fingerprint = features.fingerprint(with_sentinels)
    config = dataclasses.replace(CONFIG, vocab_size=352)
    shapes = abstract_variables(T5Student(config))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    teacher = JaxTeacher(save(tmp_path, params, fingerprint, config), VOCABULARY_PATH)
    logprobs = asyncio.run(teacher.score("Tom <extra_id_99> 3", "has <extra_id_0> apples", 5))
    assert logprobs.tokens == ("has", " <extra_id_0>", " apples")
    assert logprobs.token_logprobs == pytest.approx([-np.log(352)] * 3, abs=1e-5)


def test_needs_no_tensorflow():
    program = """
import sys
for name in ("tensorflow", "tensorflow_text", "seqio", "t5x", "gin", "torch", "transformers"):
    sys.modules[name] = None  # an import of it raises
import cot_flax.teacher.local.checkpoint, cot_flax.teacher.local.huggingface
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
