"""Tests of texts and scores against the plain decoder and NumPy's log-softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.axes import MeshRules
from cot_flax.generation.beam import beam_search
from cot_flax.generation.decoding import decode
from cot_flax.generation.generator import Beams, Generator, place_keys
from cot_flax.generation.sampling import Sampling, choose
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.students.student import build
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.text.calculator import result_behind
from cot_flax.text.tokenizers import open_tokenizer
from cot_flax.training.sharding import MeshConfig, make_mesh, replicated

TOKENIZER = open_tokenizer(VOCABULARY_PATH)
CONFIG = T5Config(
    vocab_size=256,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=32,
)
PROMPTS = ["Tom has 3 apples.", "How many apples has Tom?", "Tom"]
IDS = [[*TOKENIZER.encode(prompt), 1] for prompt in PROMPTS]
DRAW = Sampling(temperature=1.0, top_k=20)
LENGTH = 6


@pytest.fixture(scope="module")
def student():
    student = build(CONFIG)
    params = jax.jit(student.init)(jax.random.key(0))["params"]
    return student, jax.tree.map(lambda leaf: leaf * 2.0, params)


@pytest.fixture(scope="module")
def batch():
    rows = np.zeros((3, 64), np.int32)
    for row, ids in zip(rows, IDS, strict=True):
        row[: len(ids)] = ids
    return rows


@pytest.mark.parametrize("prompts", [PROMPTS, IDS], ids=["texts", "ids"])
def test_texts_are_those_of_the_plain_decoder(prompts, student, batch):
    settings = {"max_tokens": LENGTH, "samples": 2}
    found = Generator(*student, TOKENIZER).generate(prompts, sampling=DRAW, slots=2, **settings)
    keys = place_keys(0, 3)
    expected = np.asarray(decode(*student, batch, rng=keys, **settings, **DRAW._asdict()))
    for samples, ids_NT in zip(found, expected.tolist(), strict=True):
        for continuation, ids in zip(samples, ids_NT, strict=True):
            assert continuation.ids == (ids[: ids.index(1)] if 1 in ids else ids)
            assert continuation.text == TOKENIZER.decode(continuation.ids)


def lean_to_arithmetic(logits, last):
    """Behind an operator, `=` or the start comes a number, behind a number mostly one of these."""
    ids = [TOKENIZER.whole_piece(f" {piece}") for piece in "123456789+-*="]
    numbers, signs = np.full((2, logits.shape[-1]), -30.0, np.float32)
    numbers[ids[:9]] = 0.0
    signs[ids] = [-3.0] * 9 + [0.0] * 3 + [1.0]
    opens = jnp.isin(last, np.array([0, *ids[9:]]))[..., None]
    shape = logits.shape
    bias = jnp.where(opens, *(jnp.broadcast_to(bias, shape) for bias in (numbers, signs)))
    return logits * 0.1 + bias


class CalculatingStudent(T5Student):
    def step(self, *arguments):
        logits_BNV, ring = super().step(*arguments)
        return lean_to_arithmetic(logits_BNV, arguments[1]), ring


def test_a_calculator_writes_the_results_as_a_loop_without_cache_does(student, forward):
    """Token by token with the whole answer read anew, and every sample by itself."""
    model, params = CalculatingStudent(CONFIG), student[1]
    length, samples, keys, sampling = 64, 4, place_keys(0, 3), Sampling(1.0)
    draw = jax.jit(lambda z, key, at: choose(z, sampling, key[None], at[None]))
    results = 0

    def naive(i, n):
        nonlocal results
        ids, due = [], []
        while len(ids) < length and 1 not in ids:
            if not due:
                shifted = np.zeros((1, length), np.int32)
                shifted[0, 1 : len(ids) + 1] = ids
                real = np.ones((1, length), np.int32)
                logits_V = forward(model, params, np.array([IDS[i]]), shifted, real)[0, len(ids)]
                logits_V = lean_to_arithmetic(logits_V, jnp.array([0, *ids][-1]))
                logits_1NV = jnp.broadcast_to(logits_V, (1, samples, len(logits_V)))
                due = [int(draw(logits_1NV, keys[i], jnp.int32(len(ids)))[0, n])]
            ids.append(due.pop(0))
            result = result_behind(TOKENIZER.decode(ids)) if not due else None
            if result is not None:
                due = TOKENIZER.encode("=" + result)[1:]
                results += 1
        return ids[: ids.index(1)] if 1 in ids else ids

    settings = {"max_tokens": length, "samples": samples, "sampling": sampling, "slots": 2}
    writer = Generator(model, params, TOKENIZER)
    found = writer.generate(PROMPTS, calculator=True, **settings)
    expected = [[naive(i, n) for n in range(samples)] for i in range(3)]
    assert [[one.ids for one in samples] for samples in found] == expected
    assert results > 8
    assert found != writer.generate(PROMPTS, **settings)
    config = MeshConfig(data=2)
    devices = MeshRules(make_mesh(config), config.rules())
    placed = jax.device_put(params, replicated(devices.mesh))
    on_two = Generator(model, placed, TOKENIZER, devices)
    assert on_two.generate(PROMPTS, calculator=True, **settings) == found


def test_the_best_beam_alone(student, batch):
    beams = Beams(3, 0.6, "t5x")
    found = Generator(*student, TOKENIZER).generate(IDS, max_tokens=LENGTH, beams=beams, slots=2)
    expected, _ = beam_search(*student, batch, max_tokens=LENGTH, **beams._asdict())
    for (continuation,), ids in zip(found, expected[:, 0].tolist(), strict=True):
        assert continuation.ids == (ids[: ids.index(1)] if 1 in ids else ids)


def test_scores_are_the_log_softmax(student):
    """Rows of several lengths together, against each alone without padding.

    Products of other shapes are summed in another order: logits up to 15 differ by some 1e-5.
    """
    model, params = student
    near = partial(np.testing.assert_allclose, atol=5e-5)
    texts = ["The answer is 72.", "Tom", "apples has Tom"]
    for i, scores in enumerate(Generator(*student, TOKENIZER).score(PROMPTS, texts, 4)):
        ids = TOKENIZER.encode(texts[i])
        rows = {
            "encoder_input_tokens": np.array([IDS[i]]),
            "decoder_input_tokens": np.array([[0, *ids[:-1]]]),
            "decoder_target_tokens": np.array([ids]),
        }
        logits = np.asarray(model.hidden(params, rows)[0] @ model.head(params), np.float64)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert scores.ids_T.tolist() == ids
        near(scores.logprobs_T, expected[np.arange(len(ids)), ids])
        mute = np.array([*TOKENIZER.writable, *[False] * (256 - TOKENIZER.vocab_size)])
        expected[:, ~mute] = -np.inf
        assert scores.top_ids_TK.tolist() == np.argsort(-expected)[:, :4].tolist()
        near(scores.top_logprobs_TK, -np.sort(-expected)[:, :4])


def test_a_mesh_of_its_own(student):
    model, params = student
    config = MeshConfig(data=2)
    devices = MeshRules(make_mesh(config), config.rules())
    placed = jax.device_put(params, replicated(devices.mesh))
    on_two = Generator(model, placed, TOKENIZER, devices)
    alone = Generator(*student, TOKENIZER)
    settings = {"max_tokens": LENGTH, "sampling": DRAW, "samples": 2}
    assert on_two.generate(PROMPTS, **settings) == alone.generate(PROMPTS, **settings)
    pairs = zip(on_two.score(PROMPTS, PROMPTS, 2), alone.score(PROMPTS, PROMPTS, 2), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.logprobs_T, theirs.logprobs_T, atol=1e-5)


def test_nothing_to_do(student):
    writer = Generator(*student, TOKENIZER)
    assert writer.generate([], max_tokens=3) == writer.score([], [], 3) == []
