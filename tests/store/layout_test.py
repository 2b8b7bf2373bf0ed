import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cot_flax.chains.preparation import Preparation, Record
from cot_flax.chains.projection import Projection
from cot_flax.chains.samples import write_samples
from cot_flax.data.features import fingerprint
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store import layout
from cot_flax.store.prepare import prepare
from cot_flax.store.tasks import StoreSource
from cot_flax.tasks.stories import SOURCE

SHARDS = 3  # of the world's store: 24 samples by 8
FILES = (
    *(f"train.tfrecord-0000{i}-of-0000{SHARDS}" for i in range(SHARDS)),
    "info.train.json",
    "stats.train.json",
)


def read(folder):
    return list(layout.dataset(str(folder)).as_numpy_iterator())


def rows(record, k=5):
    """The bytes of a record as ids [T, K] and log-probabilities [T, K]."""
    ids = np.frombuffer(record["teacher_top_ids"], "<u2").reshape(-1, k).astype(int)
    return (
        np.where(ids == 65535, -1, ids),
        2 * np.log(np.frombuffer(record["teacher_top_logprobs"], "<u2").reshape(-1, k) / 65535),
    )


NARROW = layout.StoredIds(16, 65535)
TOKENS = [(token, 0.0, {token: 0.0}) for token in ("The", " answer", " is", " 2")]
ROOT_STEP = 1 / 65535  # d(x^2) = 2 x dx, with x the root and dx half a step


def right(s):
    return s.text.endswith(f"The answer is {s.gold_answer}")


def test_right_chains_come_back_in_order(world_store, samples, vocabulary):
    seen = set()
    for record, s in zip(read(world_store), filter(right, samples), strict=True):
        assert record["id"].decode() == f"{s.id}/{s.sample}"
        assert record["question"].decode() == s.question
        assert record["answer"].decode() == s.gold_answer
        assert record["targets"].tolist() == [*vocabulary.encode(s.text), 1]
        assert record["first"] == (s.id not in seen)
        seen.add(s.id)


def test_rows_are_the_teachers_own_distribution(world_store, samples, vocabulary):
    """Every token but the first of a line is one piece, so its row is known."""
    pieces = {vocabulary.tokenizer.IdToPiece(i): i for i in range(vocabulary.vocab_size)}
    for record, s in zip(read(world_store), filter(right, samples), strict=True):
        steps = zip(*vars(s.logprobs).values(), strict=True)
        steps = [step for step in steps if step[0] != "\n"]
        ids_TK, logprobs_TK = rows(record)
        assert len(steps) + 1 == len(record["targets"]) == len(ids_TK)
        for (token, logprob, top), ids, logprobs, own in zip(
            steps, ids_TK, logprobs_TK, record["targets"], strict=False
        ):
            expected = {own: 0.0}
            if token.replace(" ", "\u2581") in pieces:
                entries = top | {token: logprob}
                expected = {pieces[t.replace(" ", "\u2581")]: p for t, p in entries.items()}
            found = {i: p for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True) if i >= 0}
            assert found.keys() == expected.keys()
            for i, logprob in found.items():
                p = math.exp(expected[i])
                assert math.exp(logprob) == pytest.approx(p, abs=ROOT_STEP * math.sqrt(p) + 1e-9)


def test_a_position_takes_20_bytes_at_k_5(world_store):
    for record in read(world_store):
        size = len(record["teacher_top_ids"]) + len(record["teacher_top_logprobs"])
        assert size == 20 * len(record["targets"])


@given(
    arrays.arrays(
        np.float32, (3, 4), elements=st.floats(-1e5, 0, width=32) | st.floats(-1, 0, width=32)
    ),
    arrays.arrays(np.int32, (3, 4), elements=st.integers(0, (1 << 16) - 2)),
)
def test_a_probability_is_kept_to_half_a_step_of_its_root(logprobs_TK, ids_TK):
    projection = Projection(ids_TK, logprobs_TK, np.zeros(3, np.int8), np.ones(3, np.float32))
    example = tf.train.Example.FromString(
        layout.serialize(Record("a/0", "One?", "1", True, True, (3, 4, 1), projection), NARROW)
    )
    values = {name: f.bytes_list.value[0] for name, f in example.features.feature.items() if
              name.startswith("teacher")}  # fmt: skip
    ids, logprobs = rows(values, k=4)
    np.testing.assert_array_equal(ids, ids_TK)
    exact = np.exp(logprobs_TK.astype(np.float64))
    # Nothing is lost: the least probability that can be said is that of one step.
    bound = np.maximum(ROOT_STEP * np.sqrt(exact), 65535.0**-2)
    assert np.all(np.abs(np.exp(logprobs) - exact) <= 1.001 * bound + 1e-12)
    assert np.all(logprobs[logprobs_TK == 0] == 0)


def test_what_utf_8_cannot_say_becomes_a_question_mark():
    example = tf.train.Example.FromString(
        layout.serialize(Record("a/0", "half \ud83d", "\ud83d", False, True, (1,), None), NARROW)
    )
    feature = example.features.feature
    assert feature["question"].bytes_list.value == [b"half ?"]
    assert feature["answer"].bytes_list.value == [b"?"]
    assert feature["first"].int64_list.value == [0]
    assert feature["teacher_top_ids"].bytes_list.value == [b""]


def test_chains_without_logprobs_have_no_rows(make_store, make_sample, vocabulary):
    (record,) = read(make_store([make_sample("The answer is 2")]))
    assert record["targets"].tolist() == [*vocabulary.encode("The answer is 2"), 1]
    assert record["teacher_top_ids"] == record["teacher_top_logprobs"] == b""


def test_an_answer_that_the_store_adds_is_certain(make_store, make_sample, vocabulary):
    """Leading white space, which targets do not have, must not move what is added."""
    half = math.log(0.5)
    tokens = [(t, 0.0, {}) for t in ("\n", " ", "\n", "\n", "\n", "\n", "1")]
    tokens += [(t, half, {t: half}) for t in (" +", " 1", " =", " 2", ".")]
    text = "".join(token for token, _, _ in tokens)
    folder = make_store([make_sample(text, tokens=tokens)], projection="fu2023")
    (record,) = read(folder)
    assert vocabulary.decode(record["targets"].tolist()) == "1 + 1 = 2. The answer is 2"
    ids, logprobs = rows(record)
    np.testing.assert_array_equal(ids[:, 0], record["targets"])
    np.testing.assert_allclose(logprobs[:, 0], [0] + [half] * 5 + [0] * 5, atol=2e-5)
    assert np.all(ids[:, 1:] == -1)
    # The first piece has no space in the teacher's tokens, and four words have no token at all.
    kinds = layout.read_manifest(folder)["tally"]["kinds"]
    assert kinds == {"other_string": 1, "soft": 5, "no_token": 4, "end": 1}


def test_the_k_likeliest_are_kept(world_store, samples, make_store):
    for two, five in zip(read(make_store(samples, top_k=2)), read(world_store), strict=True):
        for left, right_ in zip(rows(two, 2), rows(five), strict=True):
            np.testing.assert_array_equal(left, right_[:, :2])


def test_the_manifest_counts_and_names(world_store, samples, vocabulary):
    manifest = layout.read_manifest(world_store)
    kept = sum(map(right, samples))
    assert (manifest["read"], manifest["kept"], manifest["rejected"]) == (len(samples), kept, 0)
    assert manifest["dropped"] == len(samples) - kept > 0
    assert manifest["tally"]["fates"] == {"kept": kept, "wrong_answer": len(samples) - kept}
    assert manifest["vocabulary"] == fingerprint(vocabulary)
    assert (manifest["top_k"], manifest["teachers"]) == (5, {"story-teacher": kept})
    assert sorted(manifest["files"]) == sorted(FILES)
    found = read(world_store)
    positions = sum(len(record["targets"]) for record in found)
    assert sum(manifest["tally"]["kinds"].values()) == manifest["tally"]["tokens"] == positions
    soft = sum((rows(record)[1] < 0).any(axis=1).sum() for record in found)
    assert soft <= manifest["tally"]["kinds"]["soft"] < positions


def test_another_prompt_is_another_hash(make_store, make_sample):
    chains = [make_sample("The answer is 2", id=str(i)) for i in range(2)]
    hashed = [make_sample("The answer is 2", id=str(i), prompt_hash=str(i)) for i in range(2)]
    swapped = [make_sample("The answer is 2", id=str(i), prompt_hash=str(1 - i)) for i in range(2)]
    first, second, third = (
        layout.read_manifest(make_store(s))["prompt_hash"] for s in (chains, hashed, swapped)
    )
    assert first != second == third


def test_all_teachers_are_named(make_store, make_sample):
    chains = [
        make_sample("The answer is 2", id=str(i), teacher={"model": name, "params": {}})
        for i, name in enumerate(("b", "a", "b"))
    ]
    assert layout.read_manifest(make_store(chains))["teachers"] == {"a": 1, "b": 2}


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"no readable manifest\.json in {tmp_path}.*goes on"):
        layout.dataset(str(tmp_path))


@pytest.fixture
def copied(world_store, tmp_path):
    """A store of its own: what was checked once is remembered by its path."""
    return Path(shutil.copytree(world_store, tmp_path / "copy"))


def check(folder, vocabulary):
    layout.check(str(folder), fingerprint(vocabulary))


def test_a_whole_store_passes(copied, vocabulary):
    check(copied, vocabulary)


def test_a_store_of_another_vocabulary_is_refused(copied):
    with pytest.raises(UserError, match=r"a store with vocabulary .*prepare` again"):
        check(copied, seqio.ByteVocabulary())


def test_a_store_of_another_format_is_refused(copied, vocabulary):
    manifest = json.loads((copied / "manifest.json").read_text())
    for record in (manifest | {"format": layout.FORMAT + 1}, manifest):
        if record is manifest:
            del manifest["format"]
        (copied / "manifest.json").write_text(json.dumps(record))
        with pytest.raises(
            UserError, match=rf"a store with format \w+ at .*format {layout.FORMAT};"
        ):
            check(copied, vocabulary)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "longer"])
def test_damage_to_any_file_is_named(copied, vocabulary, name, damage):
    file = copied / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= damage == "flipped"  # one bit
        kept = content[:-1] if damage == "cut" else content
        file.write_bytes(kept + b"\n" * (damage == "longer"))
    message = f"no file {file};" if damage == "missing" else f"{file} with SHA-256 "
    with pytest.raises(UserError, match=f"{message}.*copy the store again"):
        check(copied, vocabulary)


@pytest.mark.parametrize("content", [None, "", '{"vocabulary": '])
def test_a_manifest_that_is_missing_or_cut_is_named(copied, vocabulary, content):
    (copied / "manifest.json").unlink()
    if content is not None:
        (copied / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=f"no readable manifest.json in {copied};"):
        check(copied, vocabulary)


def test_a_store_is_read_through_once_a_process(copied, vocabulary):
    check(copied, vocabulary)
    (copied / FILES[0]).unlink()
    check(copied, vocabulary)  # not looked at again


def test_removing_leaves_what_is_not_the_stores(copied):
    (copied / "notes.txt").write_text("mine")
    (copied / "validation.tfrecord-00000-of-00001").write_text("mine")
    layout.remove(copied)
    assert {file.name for file in copied.iterdir()} == {
        "notes.txt",
        "validation.tfrecord-00000-of-00001",
    }


@pytest.mark.parametrize(
    ("size", "bits"), [(32_100, 16), (65_535, 16), (65_536, 32), (262_144, 32)]
)
def test_ids_are_as_wide_as_the_vocabulary_needs(size, bits):
    """Hand-made rows: the largest id, id 0 and an absent entry come back as they were."""
    assert layout.id_bits(size) == bits
    stored = layout.ids_of({"format": 2, "id_bits": bits})
    ids_TK = np.array([[size - 1, 0, -1], [0, -1, -1]], np.int32)
    packed = stored.encode(ids_TK)
    assert len(packed) == ids_TK.size * bits // 8
    raw = np.frombuffer(packed, f"<u{bits // 8}")
    assert raw.tolist() == np.where(ids_TK < 0, 2**bits - 1, ids_TK.astype(int)).ravel().tolist()
    assert stored.decode_tf(tf.constant(packed)).numpy().tolist() == ids_TK.ravel().tolist()


def test_a_vocabulary_beyond_16_bits_makes_a_store_of_32(tmp_path, make_sample):
    """SeqIO's sentinels stand behind the pieces, so the ids of the text stay as they are."""
    wide = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=1 << 16)
    write_samples(tmp_path / "samples.jsonl", [make_sample("The answer is 2", tokens=TOKENS)])
    prepare([str(tmp_path / "samples.jsonl")], str(tmp_path / "store"), vocabulary=wide,
            settings=Preparation(top_k=2), workers=1)  # fmt: skip
    manifest = layout.read_manifest(str(tmp_path / "store"))
    assert (manifest["format"], manifest["id_bits"]) == (2, 32)
    source = StoreSource(lambda: str(tmp_path / "store"), vocabulary=wide, data=SOURCE)
    (record,) = source._unpack(source.get_dataset("train")).as_numpy_iterator()
    np.testing.assert_array_equal(record["teacher_top_ids"][:, 0], record["targets"])
    assert (record["teacher_top_ids"][-1] == [1, -1]).all()
