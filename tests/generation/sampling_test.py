"""Tests of drawing, against exact distributions computed with NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.generation.sampling import Sampling, choose, forbid

V = 300  # more than two blocks, the last one not full
LOGITS = np.random.default_rng(0).normal(size=V).astype(np.float32) * 2
DRAWS = 20_000


@partial(jax.jit, static_argnames="draws")
def draw(logits_V, sampling, seed=0, draws=DRAWS):
    logits_BNV = jnp.broadcast_to(logits_V, (1, draws, len(logits_V)))
    keys = jax.random.split(jax.random.key(seed), 1)
    return choose(logits_BNV, sampling, keys, jnp.zeros(1, jnp.int32))[0]


def exact(logits, temperature, top_k=0, top_p=1.0):
    """Probabilities after temperature, top-k and top-p in turn, by sorting."""
    p = np.exp(logits.astype(np.float64) / temperature)
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


def excess(tokens, p):
    """By how many standard deviations chi-square is above its mean; rare tokens are one bin."""
    expected, observed = DRAWS * p, np.bincount(tokens, minlength=len(p))
    assert not observed[p == 0].any()
    rare = expected < 10
    expected = np.append(expected[~rare], expected[rare].sum())
    observed = np.append(observed[~rare], observed[rare].sum())
    expected, observed = expected[expected > 0], observed[expected > 0]
    freedom = len(expected) - 1
    assert freedom > 2
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_k": 40},
        {"temperature": 1.0, "top_k": 1000},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.5, "top_p": 0.95},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.8},
    ],
)
def test_draws_have_the_exact_distribution(settings):
    tokens = np.asarray(draw(LOGITS, Sampling(**settings)))
    assert excess(tokens, exact(LOGITS, **settings)) < 5
    # The bound has power: a slightly different temperature breaks it.
    other = settings | {"temperature": settings["temperature"] * 1.15}
    wrong = np.where(exact(LOGITS, **settings) > 0, exact(LOGITS, **(other | {"top_p": 1.0})), 0)
    assert excess(tokens, wrong / wrong.sum()) > 5


def test_temperature_zero_is_the_first_of_the_likeliest():
    logits = LOGITS.copy()
    logits[[70, 200]] = 50.0
    assert set(draw(logits, Sampling(), draws=3).tolist()) == {70}


def test_a_cut_keeps_ties():
    logits = np.zeros(V, np.float32)
    logits[[3, 150, 299]] = 9.0
    for cut in ({"top_k": 2}, {"top_p": 0.5}):
        drawn = draw(logits, Sampling(1.0, **cut), draws=100).tolist()
        assert set(drawn) == {3, 150, 299}


def test_tokens_without_probability_are_never_drawn():
    logits = np.full(V, -np.inf, np.float32)
    logits[[127, 128, 256]] = [0.0, 1.0, -3.0]
    tokens = np.asarray(draw(logits, Sampling(1.0)))
    assert set(tokens.tolist()) == {127, 128, 256}


def test_other_numbers_compile_nothing_anew():
    draw(LOGITS, Sampling(0.5, 3, 0.9), draws=4)
    before = draw._cache_size()
    draw(LOGITS, Sampling(0.7, 8, 0.8), draws=4)
    assert draw._cache_size() == before


def test_fewer_samples_are_the_first_of_more():
    some, more = (draw(LOGITS, Sampling(1.0), draws=n).tolist() for n in (5, 9))
    assert more[:5] == some and len(set(more)) > 4


START, END = 0, 1


def processed(written, *, n=0, least=0, samples=1):
    """Which tokens are forbidden after these, of a vocabulary of 12 and at most 10 tokens."""
    output = np.full((1, samples, 10), 5, np.int32)  # what lies beyond the age is not looked at
    output[0, :, : len(written)] = written
    settings = Sampling(no_repeat_ngram=n, min_new_tokens=least)
    arguments = np.full(1, START, np.int32), output, np.full(1, len(written), np.int32)
    found = jax.jit(forbid, static_argnums=5)(
        jnp.zeros((1, samples, 12)), settings, *arguments, END
    )
    assert np.all(np.isneginf(found) | (found == 0))
    return [set(np.flatnonzero(np.isneginf(row)).tolist()) for row in np.asarray(found)[0]]


def banned_by_rule(written, n):
    """The rule of transformers' NoRepeatNGramLogitsProcessor, by its definition."""
    tokens = [START, *written]
    if len(tokens) + 1 < n:
        return set()
    last = tokens[len(tokens) - n + 1 :]
    grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == last}


def test_an_ngram_comes_once():
    # 7 8 was followed by 9 and by 3, and stands at the end.
    assert processed([7, 8, 9, 7, 8, 3, 7, 8], n=3) == [{9, 3}]
    assert processed([7, 8, 9, 7, 8, 3, 7, 8], n=4) == [set()]
    assert processed([7, 8, 7], n=2) == [{8}]
    assert processed([], n=3) == [set()] and processed([7], n=3) == [set()]
    assert processed([7, 7], n=3, samples=2) == [set(), set()]
    assert processed([7, 7, 7], n=3) == [{7}]
    assert processed([4, 6], n=1) == [{START, 4, 6}]
    assert processed([4, 6], n=0) == [set()]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_ngrams_are_those_of_the_rule(n):
    rng = np.random.default_rng(n)
    for length in (0, 1, 2, 5, 9):
        for _ in range(6):
            written = rng.integers(0, 3, length).tolist()
            assert processed(written, n=n) == [banned_by_rule(written, n)]


def test_the_end_comes_after_so_many_tokens():
    lengths = range(5)
    found = [processed([4] * length, least=3)[0] for length in lengths]
    assert found == [{END}, {END}, {END}, set(), set()]
