"""The public Codex dump becomes samples of natural logs."""

import json
from math import log

import pytest

from cot_flax.chains.codex import read_codex_dump
from cot_flax.chains.samples import Logprobs, read_samples, write_samples
from cot_flax.errors import UserError

ECHO = [" step", "\n"]


def dump_record(tokens, probabilities, top5):
    return {
        "gsm8k_train_index": 7,
        "sample": 3,
        "question": "What is 1 + 1?",
        "gold": "2",
        "model": "code-davinci-002",
        "text": "".join(tokens),
        "tokens": tokens,
        "token_probs": probabilities,
        "top5": top5,
    }


def gate_record(tokens):
    return dump_record(tokens, [0.5] * len(tokens), [[]] * len(tokens))


CODEX_RECORD = dump_record(
    [*ECHO, "It", " is", " 2", "\n", "\n"],
    [1.0, 0.9, 0.5, 1.0, 0.0, 0.9, 0.9],
    [[], [], [["Two", 0.25], ["It", 0.5]], [[" is", 1.0], ["a", 0.0]], [[" 2", 0.0]], [], []],
)


def read_codex(tmp_path, *records):
    path = tmp_path / "dump.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_codex_dump(path))


def test_a_chain_becomes_a_sample_of_natural_logs(tmp_path):
    (sample,) = read_codex(tmp_path, CODEX_RECORD)
    assert (sample.id, sample.dataset, sample.split) == ("gsm8k-train-7", "gsm8k", "train")
    assert (sample.sample, sample.question, sample.gold_answer) == (3, "What is 1 + 1?", "2")
    assert (sample.format, sample.prompt_hash) == ("few_shot_cot", "")
    assert sample.teacher["model"] == "code-davinci-002"
    assert (sample.text, sample.finish_reason) == ("It is 2", "stop")
    # A sampled 0.0 is the rounding bound of four decimals; a 0.0 among the top is left out.
    assert sample.logprobs == Logprobs(
        ("It", " is", " 2"),
        (log(0.5), 0.0, log(0.00005)),
        ({"Two": log(0.25), "It": log(0.5)}, {" is": 0.0}, {}),
    )


def test_its_samples_obey_the_contract_of_the_file(tmp_path):
    samples = read_codex(tmp_path, CODEX_RECORD)
    write_samples(tmp_path / "samples.jsonl", samples)
    assert list(read_samples(tmp_path / "samples.jsonl")) == samples


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([*ECHO, "a", "\n", "\n"], "a"),
        ([*ECHO, "a", "\n\n", "\n"], "a"),
        ([*ECHO, "\n", "\n"], ""),
    ],
)
def test_passes_the_gate(tmp_path, tokens, text):
    (sample,) = read_codex(tmp_path, gate_record(tokens))
    assert (sample.text, sample.finish_reason) == (text, "stop")


@pytest.mark.parametrize(
    "tokens",
    [
        [" steps", "\n", "a", "\n", "\n"],
        [" step", " ", "a", "\n", "\n"],
        [*ECHO, "a", "b", "\n"],
        [*ECHO, "a", "\n", "\n\n"],
        [*ECHO, "\n"],
        [" step"],
        [],
    ],
)
def test_what_fails_the_gate_is_kept_uncut_and_marked(tmp_path, tokens):
    (sample,) = read_codex(tmp_path, gate_record(tokens))
    assert (sample.text, sample.finish_reason) == ("".join(tokens), "malformed")
    assert sample.logprobs.tokens == tuple(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({name: ...}, f"no field '{name}'") for name in CODEX_RECORD],
        ({"gold": 2}, "'gold' of type int"),
        ({"text": "other"}, "tokens that do not join"),
        ({"token_probs": [0.5]}, "7 tokens, 1 token_logprobs, 7 top_logprobs"),
        ({"token_probs": ["half"] * 7}, "token_probs or top5 of another shape"),
        ({"token_probs": [-0.5] * 7}, "token_probs or top5 of another shape"),
        ({"token_probs": [2.0] * 7}, "log-probability 0.69"),
        ({"top5": [["a", 0.5]] * 7}, "token_probs or top5 of another shape"),
        ({"top5": [1] * 7}, "token_probs or top5 of another shape"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, message):
    record = {k: v for k, v in (CODEX_RECORD | change).items() if v is not ...}
    with pytest.raises(UserError, match=f"dump.jsonl, line 2: {message}"):
        read_codex(tmp_path, CODEX_RECORD, record)


def test_the_real_dump(shared_data):
    samples = list(read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl"))
    assert len(samples) == 52
    # This one runs to the token limit of 256, so that its last tokens are no newlines.
    (malformed,) = [s for s in samples if s.finish_reason != "stop"]
    assert (malformed.id, malformed.sample) == ("gsm8k-train-32", 44)
    assert len(malformed.logprobs.tokens) == 256
    first = samples[0]
    assert first.text.startswith("If Natalia sold 48 clips in April, she sold 48/2 = 24 clips")
    assert first.text.endswith("\nThe answer is 72")
    assert first.logprobs.token_logprobs[0] == log(0.1009)
    assert sum(len(s.logprobs.tokens) for s in samples) == 2893 - 51 * 4
