"""Tests of decoding in slots, against the plain decoder with one prompt at a time."""

import jax
import numpy as np
import pytest
from flax.linen import partitioning

from cot_flax.generation import slots
from cot_flax.generation.decoding import decode
from cot_flax.generation.sampling import Sampling
from cot_flax.generation.slots import Slots, bucket, decode_all
from cot_flax.training.sharding import MeshConfig, make_mesh, param_shardings
from cot_flax.training.state import abstract_variables

LENGTH = 20
DRAW = Sampling(temperature=1.0, top_k=12, top_p=0.9)


@pytest.fixture(scope="module")
def lively(tiny):
    """The tiny student with larger kernels and an end that comes at uneven places."""
    model, params = tiny
    params = jax.tree.map(lambda leaf: leaf * 2.0, params)
    kernel = np.array(params["decoder"]["logits_dense"]["kernel"])
    kernel[:, 1] *= 1.5
    return model, params | {"decoder": params["decoder"] | {"logits_dense": {"kernel": kernel}}}


@pytest.fixture(scope="module")
def prompts():
    """17 prompts of 3 buckets."""
    rng = np.random.default_rng(1)
    lengths = [*rng.integers(2, 40, 13), 70, 64, 150, 1]
    return [rng.integers(2, 24, n).astype(np.int32) for n in lengths]


KEYS = jax.random.split(jax.random.key(4), 17)


@pytest.fixture(scope="module")
def plain(lively, prompts):
    """What `decode` says to each prompt alone, padded to 150."""

    def answers(samples, sampling):
        batch = np.zeros((len(prompts), 150), np.int32)
        for row, ids in zip(batch, prompts, strict=True):
            row[: len(ids)] = ids
        output = decode(
            *lively, batch, max_tokens=LENGTH, samples=samples, rng=KEYS, **sampling._asdict()
        )
        return np.asarray(output)

    return answers


@pytest.mark.parametrize(
    ("samples", "sampling", "slots"), [(1, Sampling(), 4), (3, DRAW, 4), (3, DRAW, 64)]
)
def test_says_what_the_plain_decoder_says(samples, sampling, slots, lively, prompts, plain):
    settings = {"max_tokens": LENGTH, "samples": samples, "sampling": sampling}
    output = decode_all(*lively, prompts, KEYS, slots=slots, **settings)
    expected = plain(samples, sampling)
    np.testing.assert_array_equal(output, expected)
    written = (expected > 0).sum(axis=2)
    assert len(np.unique(written)) > 5 and written.max() == LENGTH  # uneven, and some are cut


def test_a_mesh_decodes_the_same(lively, prompts, plain):
    """7 slots wanted for 2 x 2 devices, which get 4 each; prompts of one width."""
    model, params = lively
    config = MeshConfig(data=2, model=2)
    mesh, rules = make_mesh(config), config.rules()
    places = param_shardings(mesh, rules, abstract_variables(model))
    with jax.set_mesh(mesh), partitioning.axis_rules(rules):
        placed = jax.device_put(params, places)
        settings = {"slots": 7, "max_tokens": LENGTH, "samples": 3, "sampling": DRAW}
        output = decode_all(model, placed, prompts[:13], KEYS[:13], **settings)
    np.testing.assert_array_equal(output, plain(3, DRAW)[:13])


def test_a_prompts_samples_depend_on_no_other_prompt(lively, prompts, plain):
    chosen = [16, 2, 14]
    output = decode_all(
        *lively,
        [prompts[i] for i in chosen],
        KEYS[np.array(chosen)],
        slots=2,
        max_tokens=LENGTH,
        samples=3,
        sampling=DRAW,
    )
    np.testing.assert_array_equal(output, plain(3, DRAW)[chosen])


def test_arrivals_amid_decoding_say_the_same(lively, prompts, plain):
    """Short ones first, so that the later and longer ones widen the slots of those that decode."""
    decoding = Slots(*lively, slots=3, max_tokens=LENGTH, samples=3, sampling=DRAW)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found, widths, waiting = {}, [], list(order)
    assert not decoding.busy and list(decoding.advance()) == []
    while waiting or decoding.busy:
        for i in waiting[:2]:
            assert decoding.submit(prompts[i], KEYS[i]) == order.index(i)
        waiting = waiting[2:]
        found |= dict(decoding.advance())
        widths.append(decoding._width)
    assert {64, 128, 192} <= {*widths} and widths != sorted(widths, reverse=True)
    output = np.stack([found[ticket] for ticket in range(len(prompts))])
    np.testing.assert_array_equal(output, plain(3, DRAW)[order])


def test_who_decodes_does_not_see_that_the_slots_widen(lively, prompts, plain):
    decoding = Slots(*lively, slots=2, max_tokens=LENGTH, samples=3, sampling=DRAW)
    place, long = max(range(13), key=lambda i: (plain(3, DRAW)[i] > 0).sum()), 15
    decoding.submit(prompts[place], KEYS[place])
    assert list(decoding.advance()) == []
    decoding.submit(prompts[long], KEYS[long])
    found = {}
    while decoding.busy:
        found |= dict(decoding.advance())
    np.testing.assert_array_equal([found[0], found[1]], plain(3, DRAW)[[place, long]])


def test_programs_do_not_grow_with_the_prompts(lively, prompts):
    programs = (slots._insert, slots._advance, slots._narrow)

    def compiled(chosen):
        keys = jax.random.split(jax.random.key(0), len(chosen))
        decode_all(*lively, chosen, keys, slots=3, max_tokens=7)
        return [program._cache_size() for program in programs]

    once = compiled(prompts * 3)
    assert compiled(prompts * 6) == once


def test_a_refilled_slot_does_not_see_its_predecessor(lively, prompts):
    """Whatever lies in the ring and wherever its head is: the answer is that of a fresh slot."""
    model, params = lively
    padded = np.pad(prompts[3], (0, 64 - len(prompts[3])))[None]

    def answer(soil):
        state = slots._empty(model, 2, 64, 1, LENGTH)
        state = state._replace(
            ring=jax.tree.map(lambda leaf: leaf + soil, state.ring),
            prompts=jax.tree.map(lambda leaf: (leaf + soil).astype(leaf.dtype), state.prompts),
            head=state.head + 5,
        )
        state = slots._insert(model, params, state, padded, KEYS[3:4], np.array([1]))
        while state.open_B[1]:
            state, *_ = slots._advance(model, params, Sampling(2.0), state, None)
        return np.asarray(state.output_BNT)[1]

    clean = answer(0.0)
    assert len(set(clean[0].tolist())) > 3
    np.testing.assert_array_equal(answer(300.0), clean)


def test_slots_are_filled_before_the_slowest_has_ended(lively, prompts, monkeypatch):
    """Fewer steps than batch after batch, of which each waits for its slowest prompt."""
    steps, advance = [], slots._advance
    monkeypatch.setattr(slots, "STEPS", 1)
    monkeypatch.setattr(slots, "_advance", lambda *args: steps.append(1) or advance(*args))
    short = sorted(prompts, key=len)[:12]
    output = decode_all(*lively, short, KEYS[:12], slots=3, max_tokens=LENGTH + 1, sampling=DRAW)
    written = (output > 0).sum(axis=(1, 2))[::-1]  # in the order of decoding, the longest first
    in_batches = written.reshape(-1, 3).max(axis=1).sum()
    assert written.sum() / 3 <= len(steps) < in_batches


def test_no_prompts_no_answers(lively):
    assert decode_all(*lively, [], KEYS[:0], slots=4, max_tokens=5).shape == (0, 1, 5)


@pytest.mark.parametrize(
    ("length", "width"),
    [(1, 64), (64, 64), (65, 128), (200, 256), (257, 384), (512, 512), (513, 768), (1000, 1024)],
)
def test_buckets_are_two_an_octave(length, width):
    assert bucket(length) == width


def test_what_is_written_grows_to_the_output(lively, prompts, plain):
    decoding = Slots(*lively, slots=2, max_tokens=LENGTH, samples=3, sampling=DRAW)
    for i in range(3):
        decoding.submit(prompts[i], KEYS[i])
    assert decoding.written() == {}
    lengths, expected = [], plain(3, DRAW)
    while decoding.busy:
        ended = dict(decoding.advance())
        written = decoding.written()
        assert not ended.keys() & written.keys()
        for ticket, ids_Nt in written.items():
            length = ids_Nt.shape[1]
            np.testing.assert_array_equal(ids_Nt, expected[ticket, :, :length])
            lengths.append(length)
    assert 0 < min(lengths) <= slots.STEPS < max(lengths)


def test_a_cancelled_prompt_frees_its_slot_and_no_other(lively, prompts, plain):
    decoding = Slots(*lively, slots=2, max_tokens=LENGTH, samples=3, sampling=DRAW)
    order = sorted(range(5), key=lambda i: -len(prompts[i]))
    for i in order:
        decoding.submit(prompts[i], KEYS[i])
    found = dict(decoding.advance())
    decoding.cancel(0)  # decodes
    decoding.cancel(3)  # waits
    decoding.cancel(17)  # is nowhere
    assert 0 not in decoding.written()
    while decoding.busy:
        found |= dict(decoding.advance())
    assert found.keys() - {0} == {1, 2, 4}
    for ticket in (1, 2, 4):
        np.testing.assert_array_equal(found[ticket], plain(3, DRAW)[order[ticket]])


def test_nothing_decodes_for_a_cancelled_prompt(lively, prompts):
    decoding = Slots(*lively, slots=2, max_tokens=LENGTH, sampling=Sampling(min_new_tokens=LENGTH))
    decoding.submit(prompts[0], KEYS[0])
    list(decoding.advance())
    decoding.cancel(0)
    decoding.submit(prompts[1], KEYS[1])
    list(decoding.advance())
    assert np.asarray(decoding._state.ages_B)[0] == slots.STEPS
    assert decoding.written()[1].shape == (1, slots.STEPS)


def test_each_prompt_has_its_own_temperature_and_top_p(lively, prompts, plain):
    """One is greedy, one as hot as DRAW, one narrow, beside each other in slots of one program."""
    draw = Sampling(temperature=1.0, top_k=12)
    decoding = Slots(*lively, slots=3, max_tokens=LENGTH, samples=3, sampling=draw)
    own = [Sampling(0.0, 12), Sampling(1.0, 12, 0.9), Sampling(0.7, 12, 1.0)]
    for i, chosen in enumerate(own):
        decoding.submit(prompts[i], KEYS[i], temperature=chosen.temperature, top_p=chosen.top_p)
    found = {}
    while decoding.busy:
        found |= dict(decoding.advance())
    for i, chosen in enumerate(own):
        np.testing.assert_array_equal(found[i], plain(3, chosen)[i])
    assert len({found[1].tobytes(), plain(3, own[0])[1].tobytes()}) == 2
