"""Tests of the decoder, against a loop without cache and against the softmax."""

import dataclasses
import itertools
from functools import partial

import jax
import numpy as np
import pytest

from cot_flax.generation import decoding
from cot_flax.generation.decoding import decode
from cot_flax.students.parameters import stack_layers
from cot_flax.students.t5 import T5Student

LENGTH = 8
PROMPTS = np.array([[10, 11, 12, 13, 0, 0], [20, 5, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4]], np.int32)


@pytest.fixture(scope="module")
def lively(tiny):
    """The tiny student with larger kernels, so that it does not repeat one token."""
    model, params = tiny
    return model, jax.tree.map(lambda leaf: leaf * 2.0, params)


@pytest.fixture(scope="module")
def teacher_forced(lively, forward):
    """Logits after a prompt and the tokens so far, without any cache: [V]."""

    def logits(prompt, tokens, params=lively[1]):
        shifted = np.zeros((1, LENGTH), np.int32)
        shifted[0, 1 : len(tokens) + 1] = tokens
        real = np.ones((1, LENGTH), np.int32)
        return np.asarray(forward(lively[0], params, prompt[None], shifted, real))[0, len(tokens)]

    return logits


@pytest.fixture(scope="module")
def greedy(lively):
    return np.asarray(decode(*lively, PROMPTS, max_tokens=LENGTH))[:, 0]


def until_end(choose):
    tokens = []
    while len(tokens) < LENGTH and 1 not in tokens:
        tokens.append(int(choose(tokens)))
    return tokens + [0] * (LENGTH - len(tokens))


def exchanged(params, token):
    """The same student with the names of `token` and of the end (1) exchanged; and the names."""
    names = np.arange(24)
    names[[1, token]] = token, 1
    kernel = params["decoder"]["logits_dense"]["kernel"]
    decoder = params["decoder"] | {"logits_dense": {"kernel": kernel[:, names]}}
    embedding = params["token_embedder"]["embedding"][names]
    return params | {"decoder": decoder, "token_embedder": {"embedding": embedding}}, names


def test_greedy_is_the_argmax_of_teacher_forced_passes(greedy, teacher_forced):
    for prompt, tokens in zip(PROMPTS, greedy, strict=True):
        expected = until_end(lambda done, prompt=prompt: teacher_forced(prompt, done).argmax())
        assert tokens.tolist() == expected
    assert len({tuple(row) for row in greedy}) == 3 and len(set(greedy[0])) > 3


def test_after_the_end_come_zeros(lively, greedy, teacher_forced):
    row = greedy[0].tolist()
    place = next(i for i, token in enumerate(row) if i and token > 1 and token not in row[:i])
    params, names = exchanged(lively[1], row[place])
    output = np.asarray(decode(lively[0], params, names[PROMPTS], max_tokens=LENGTH))[:, 0]
    assert output[0].tolist() == [*row[:place], 1, *[0] * (LENGTH - place - 1)]
    for prompt, tokens in zip(names[PROMPTS], output, strict=True):
        expected = until_end(lambda done, p=prompt: teacher_forced(p, done, params).argmax())
        assert tokens.tolist() == expected


def test_no_step_is_taken_after_all_have_ended(lively, greedy, monkeypatch):
    row = greedy[0].tolist()
    place = next(i for i, token in enumerate(row) if i and token > 1 and token not in row[:i])
    params, names = exchanged(lively[1], row[place])
    steps, add_tokens = [], decoding.add_tokens

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return add_tokens(*arguments)

    monkeypatch.setattr(decoding, "add_tokens", counted)
    decode(lively[0], params, names[PROMPTS[:1]], max_tokens=LENGTH + 3)  # a program of its own
    jax.effects_barrier()
    assert len(steps) == place + 1


def test_greedy_tokens_are_those_of_t5x(from_t5x):
    config, params, expected = from_t5x
    output = decode(T5Student(config), params, expected["encoder_input_tokens"], max_tokens=12)
    np.testing.assert_array_equal(output[:, 0], expected["greedy"])


def test_greedy_tokens_are_those_of_hugging_face(from_hugging_face):
    config, params, expected = from_hugging_face
    output = decode(T5Student(config), params, expected["encoder_input_tokens"], max_tokens=16)
    # Theirs begin with the start token.
    np.testing.assert_array_equal(output[:, 0], expected["greedy"][:, 1:])


def test_scanned_and_rematerialised_students_decode_alike(lively, greedy):
    model, params = lively
    config = dataclasses.replace(model.config, scan_layers=True, remat="full")
    unrolled, unstacked = T5Student(config).for_decoding(stack_layers(params))
    assert unrolled == model
    np.testing.assert_array_equal(
        decode(unrolled, unstacked, PROMPTS, max_tokens=LENGTH)[:, 0], greedy
    )


def chi_square(tokens, logits, temperature):
    """The statistic of the drawn tokens, over degrees of freedom; rare ones are one bin."""
    probabilities = np.exp((logits - logits.max()) / temperature)
    expected = len(tokens) * probabilities / probabilities.sum()
    observed = np.bincount(tokens, minlength=len(logits))
    rare = expected < 10
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    observed = np.append(observed[~rare], observed[rare].sum())
    return ((observed - expected) ** 2 / np.maximum(expected, 1)).sum(), len(expected) - 1


@pytest.fixture(scope="module")
def sampled(tiny):
    """4,000 samples of two tokens for the same prompt under two keys, at temperature 0.7."""
    prompts = np.stack([PROMPTS[0], PROMPTS[0]])
    keys = jax.random.split(jax.random.key(5), 2)
    output = decode(*tiny, prompts, max_tokens=2, samples=4000, temperature=0.7, rng=keys)
    return np.asarray(output)


def test_samples_have_the_distribution_of_the_softmax(sampled, tiny, teacher_forced):
    first = sampled[0, :, 0]
    logits = teacher_forced(PROMPTS[0], [], tiny[1])
    statistic, freedom = chi_square(first, logits, 0.7)
    assert freedom > 5
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)
    # The bound has power: a slightly different temperature breaks it.
    assert chi_square(first, logits, 0.9)[0] > freedom + 5 * np.sqrt(2 * freedom)


def test_later_samples_depend_on_the_earlier_ones(sampled, tiny, teacher_forced):
    token = np.bincount(sampled[0, sampled[0, :, 0] > 1, 0]).argmax()
    second = sampled[0, sampled[0, :, 0] == token, 1]
    statistic, freedom = chi_square(second, teacher_forced(PROMPTS[0], [token], tiny[1]), 0.7)
    assert freedom > 5
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_samples_positions_and_keys_draw_apart(lively):
    """With equal logits everywhere a draw tells nothing but its randomness."""
    model, params = lively
    flat = params | {
        "decoder": params["decoder"] | {"logits_dense": {"kernel": np.zeros((16, 24))}}
    }
    keys = jax.random.split(jax.random.key(0), 2)
    draws = decode(
        model, flat, PROMPTS[:2], max_tokens=LENGTH, samples=50, temperature=1.0, rng=keys
    )
    first, second = np.asarray(draws)
    # 24 equal tokens: one draw in 24 agrees by chance, and one row in 24 ends at each position.
    assert np.mean(first[:, 0] == second[:, 0]) < 0.2
    assert np.mean(first[:, 0] == first[:, 1]) < 0.2
    assert np.mean(first[1:] == first[:-1]) < 0.5
    assert len({tuple(row) for row in first}) > 40


KEYS = jax.random.split(jax.random.key(3), 3)


@pytest.fixture(scope="module")
def draw(lively):
    """Three samples a prompt."""
    return partial(decode, *lively, max_tokens=LENGTH, samples=3)


def test_greedy_samples_of_a_prompt_are_equal(draw, greedy):
    output = draw(PROMPTS, rng=KEYS, temperature=0.0)
    np.testing.assert_array_equal(output, np.repeat(greedy[:, None], 3, axis=1))


def test_samples_of_a_prompt_do_not_depend_on_its_batch(draw):
    together = draw(PROMPTS, rng=KEYS, temperature=1.0)
    backwards = draw(PROMPTS[::-1], rng=KEYS[::-1], temperature=1.0)
    np.testing.assert_array_equal(backwards[::-1], together)
    alone = draw(PROMPTS[1:2], rng=KEYS[1:2], temperature=1.0)
    np.testing.assert_array_equal(alone, together[1:2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nor_does_anything_on_padding(temperature, draw):
    longer = np.pad(PROMPTS, ((0, 0), (0, 5)))
    np.testing.assert_array_equal(
        draw(longer, rng=KEYS, temperature=temperature),
        draw(PROMPTS, rng=KEYS, temperature=temperature),
    )


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_what_is_decoded_repeats_no_ngram_and_does_not_end_early(lively, top_p):
    """Greedy, and drawn with paper [4]'s rules: top-p 0.8, no 3-gram twice."""
    drawn = {"temperature": 1.0, "top_p": top_p, "rng": jax.random.split(jax.random.key(0), 3)}
    for settings in ({}, drawn):
        rows = decode(
            *lively, PROMPTS, max_tokens=24, no_repeat_ngram=2, min_new_tokens=6, **settings
        )
        for row in np.asarray(rows)[:, 0].tolist():
            length = row.index(1) if 1 in row else len(row)
            grams = list(itertools.pairwise(row[: length + 1]))
            assert length >= 6
            assert len(set(grams)) == len(grams)
    plain = np.asarray(decode(*lively, PROMPTS, max_tokens=24))[:, 0].tolist()
    assert any(len(set(itertools.pairwise(row))) < 10 for row in plain)  # so it does by itself
