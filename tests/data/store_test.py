import dataclasses
import json
import math

import numpy as np
import pytest
import seqio

from cot_flax.data import store
from cot_flax.data.features import fingerprint
from cot_flax.errors import UserError
from cot_flax.teacher.samples import Logprobs, Sample


def sample(text, gold="2", *, number=0, tokens=None, reason="stop", id="sums-0"):
    """A teacher's sample; `tokens` are (token, logprob, top) triples."""
    logprobs = tokens and Logprobs(*map(tuple, zip(*tokens, strict=True)))
    return Sample(
        id=id,
        dataset="sums",
        split="train",
        question="One and one?",
        gold_answer=gold,
        format="zero_shot_cot",
        prompt_hash="",
        teacher={"model": "nobody", "params": {}},
        sample=number,
        text=text,
        logprobs=logprobs,
        finish_reason=reason,
    )


def read(path, vocabulary, top_k=5):
    dataset = store.dataset(str(path), vocabulary=vocabulary, top_k=top_k)
    return list(dataset.as_numpy_iterator())


def right(s):
    return s.text.endswith(f"The answer is {s.gold_answer}")


def test_right_chains_come_back_in_order(world_store, samples, vocabulary):
    kept = [s for s in samples if right(s)]
    found = read(world_store, vocabulary)
    seen = set()
    for record, s in zip(found, kept, strict=True):
        assert record["id"].decode() == f"{s.id}/{s.sample}"
        assert record["question"].decode() == s.question
        assert record["answer"].decode() == s.gold_answer
        assert record["targets"].tolist() == [*vocabulary.encode(s.text), 1]
        assert record["first"] == (s.id not in seen)
        seen.add(s.id)


def test_rows_are_the_teachers_own_distribution(world_store, samples, vocabulary):
    """Every token but the first of a line is one piece, so its row is known."""
    pieces = {vocabulary.tokenizer.IdToPiece(i): i for i in range(vocabulary.vocab_size)}
    for record, s in zip(read(world_store, vocabulary), filter(right, samples), strict=True):
        ids_TK = record["teacher_top_ids"].reshape(-1, 5)
        logprobs_TK = record["teacher_top_logprobs"].reshape(-1, 5)
        steps = zip(*vars(s.logprobs).values(), strict=True)
        steps = [step for step in steps if step[0] != "\n"]
        assert len(steps) + 1 == len(record["targets"])
        for (token, logprob, top), ids, logprobs, own in zip(
            steps, ids_TK, logprobs_TK, record["targets"], strict=False
        ):
            expected = {own: 0.0}
            if token.replace(" ", "\u2581") in pieces:
                entries = top | {token: logprob}
                expected = {pieces[t.replace(" ", "\u2581")]: p for t, p in entries.items()}
            found = {i: p for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True) if i}
            assert found == pytest.approx(expected, abs=1e-6)


def test_the_manifest_counts_and_names(world_store, samples, vocabulary):
    manifest = store.read_manifest(world_store)
    counts = manifest["counts"]
    assert counts["kept"] == sum(map(right, samples))
    assert counts["wrong_answer"] == len(samples) - counts["kept"] > 0
    assert manifest["vocabulary"] == fingerprint(vocabulary)
    assert (manifest["top_k"], manifest["teachers"]) == (5, ["story-teacher"])
    found = read(world_store, vocabulary)
    assert counts["positions"] == sum(len(record["targets"]) for record in found)
    soft = sum((r["teacher_top_logprobs"].reshape(-1, 5) < 0).any(axis=1).sum() for r in found)
    assert soft <= counts["soft_positions"] < counts["positions"]


def test_every_rejected_sample_is_written_down_with_its_reason(tmp_path, vocabulary):
    samples = [
        sample("1 + 1 = 2.\nThe answer is 2"),
        sample("1 + 1 = 3.\nThe answer is 3", number=1),
        sample("I do not know", number=2),
        sample("1 + 1", number=3, reason="length"),
        sample("1 + 1 = 2.\nThe answer is 2", number=4, reason="malformed"),
    ]
    manifest = store.write_store(str(tmp_path), samples, vocabulary=vocabulary)
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").open()]
    assert lines == [
        {"reason": reason, "id": "sums-0", "sample": s.sample, "text": s.text}
        for s, reason in zip(
            samples[1:], ("wrong_answer", "no_answer", "truncated", "malformed"), strict=True
        )
    ]
    reasons = ("kept", "wrong_answer", "no_answer", "truncated", "malformed")
    assert manifest["counts"] == dict.fromkeys(reasons, 1)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_chains_without_logprobs_have_no_rows(tmp_path, vocabulary):
    store.write_store(str(tmp_path), [sample("The answer is 2")], vocabulary=vocabulary)
    (record,) = read(tmp_path, vocabulary)
    assert record["targets"].tolist() == [*vocabulary.encode("The answer is 2"), 1]
    assert record["teacher_top_ids"].size == record["teacher_top_logprobs"].size == 0


def test_an_answer_that_the_store_adds_is_certain(tmp_path, vocabulary):
    """Leading white space, which targets do not have, must not move what is added."""
    half = math.log(0.5)
    tokens = [(t, 0.0, {}) for t in ("\n", " ", "\n", "\n", "\n", "\n", "1")]
    tokens += [(t, half, {t: half}) for t in (" +", " 1", " =", " 2", ".")]
    written = sample("".join(token for token, _, _ in tokens), tokens=tokens)
    store.write_store(str(tmp_path), [written], vocabulary=vocabulary)
    (record,) = read(tmp_path, vocabulary)
    assert vocabulary.decode(record["targets"].tolist()) == "1 + 1 = 2. The answer is 2"
    ids, logprobs = (record[f"teacher_top_{name}"].reshape(-1, 5) for name in ("ids", "logprobs"))
    np.testing.assert_array_equal(ids[:, 0], record["targets"])
    np.testing.assert_allclose(logprobs[:, 0], [0] + [half] * 5 + [0] * 5, atol=1e-6)
    assert not ids[:, 1:].any()
    # All but the first piece, which has no space in the teacher's tokens, and EOS.
    assert store.read_manifest(str(tmp_path))["counts"]["soft_positions"] == 9


def test_the_k_likeliest_are_kept(world_store, samples, vocabulary, tmp_path):
    store.write_store(str(tmp_path), samples, vocabulary=vocabulary, top_k=2)
    for two, five in zip(read(tmp_path, vocabulary, 2), read(world_store, vocabulary), strict=True):
        for name in ("teacher_top_ids", "teacher_top_logprobs"):
            np.testing.assert_array_equal(
                two[name].reshape(-1, 2), five[name].reshape(-1, 5)[:, :2]
            )


def test_no_usable_chain_is_an_error_and_leaves_no_store(tmp_path, vocabulary, samples):
    store.write_store(str(tmp_path), samples, vocabulary=vocabulary)  # an older one
    with pytest.raises(UserError, match=r"no usable chain .*wrong_answer.*rejected\.jsonl"):
        wrong = [sample("The answer is 3")]
        store.write_store(str(tmp_path), wrong, vocabulary=vocabulary)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        read(tmp_path, vocabulary)


def test_a_folder_that_is_no_store_is_named(tmp_path, vocabulary):
    with pytest.raises(UserError, match=rf"no manifest\.json in {tmp_path}.*run prepare first"):
        read(tmp_path, vocabulary)


def test_a_store_of_another_vocabulary_or_k_is_refused(world_store, vocabulary):
    with pytest.raises(UserError, match=r"a store with vocabulary .*prepare` again"):
        read(world_store, seqio.ByteVocabulary())
    with pytest.raises(UserError, match=r"a store with top_k 5 at .*the task's top_k 4"):
        read(world_store, vocabulary, top_k=4)


def test_all_teachers_are_named(tmp_path, vocabulary):
    samples = [
        dataclasses.replace(sample("The answer is 2", number=i), teacher={"model": name})
        for i, name in enumerate(("b", "a", "b"))
    ]
    manifest = store.write_store(str(tmp_path), samples, vocabulary=vocabulary)
    assert manifest["teachers"] == ["a", "b"]
