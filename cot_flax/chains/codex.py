"""Paper [1]'s teacher: the public Codex dump on GSM8K, of which `teach` makes a samples file."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cot_flax.chains.records import records, reject, require
from cot_flax.chains.samples import Logprobs, Sample, sample_from_record

_ROUNDED_AWAY = 5e-5  # Of the Codex dump's four decimals: less was written as 0.0.
_CODEX_PARAMS = {"temperature": 0.5, "max_tokens": 256, "logprobs": 5}


def read_codex_dump(path: str | os.PathLike) -> Iterator[Sample]:
    """Yields every chain of the public Codex dump on GSM8K as a sample, with natural logs.

    The dump holds probabilities of four decimals, unsorted. Its first two tokens echo the end of
    the prompt ("Let's think step by step"), its last two are the newlines after the answer.

    A chain that passes the paper's sanity gate loses the echo and the trailing newlines and has
    finish_reason "stop". One that fails it is yielded uncut with finish_reason "malformed", so
    that filtering rejects and counts it; the paper relabels it as wrong.

    A top-5 entry of 0.0 is left out: all that is known is that it lies below 5e-5. A sampled
    token of 0.0 gets the log of 5e-5, the most that it can have had. prompt_hash is "", for the
    dump does not hold the prompt.

    Raises:
        UserError: a line is not of the dump's shape; the message names file and line.

    Source: Fu et al. 2023, their notebook `dev_align_codex_to_flan_t5_dtw`, cell 32.
    """
    for place, record in records(path):
        yield _without_echo(sample_from_record(_codex_record(record, place), place))


def _codex_record(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {
        "id": f"gsm8k-train-{require(record, 'gsm8k_train_index', int, place)}",
        "dataset": "gsm8k",
        "split": "train",
        "question": require(record, "question", str, place),
        "gold_answer": require(record, "gold", str, place),
        "format": "few_shot_cot",
        "prompt_hash": "",
        "teacher": {"model": require(record, "model", str, place), "params": _CODEX_PARAMS},
        "sample": require(record, "sample", int, place),
        "text": require(record, "text", str, place),
        "logprobs": _codex_logprobs(record, place),
        "finish_reason": "stop",
    }


def _codex_logprobs(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    probabilities = require(record, "token_probs", list, place)
    top5 = require(record, "top5", list, place)
    try:
        return {
            "tokens": require(record, "tokens", list, place),
            "token_logprobs": [math.log(p or _ROUNDED_AWAY) for p in probabilities],
            "top_logprobs": [{token: math.log(p) for token, p in pairs if p} for pairs in top5],
        }
    except (TypeError, ValueError) as error:
        wanted = "probabilities, and lists of [token, probability]"
        reject("wrong_type", place, f"token_probs or top5 of another shape ({error})", wanted)


def _without_echo(sample: Sample) -> Sample:
    tokens = sample.logprobs.tokens
    if not _passes_gate(tokens):
        return replace(sample, finish_reason="malformed")
    kept = slice(2, -2)
    logprobs = Logprobs(*(values[kept] for values in vars(sample.logprobs).values()))
    return replace(sample, text="".join(tokens[kept]), logprobs=logprobs)


def _passes_gate(tokens: Sequence[str]) -> bool:
    return (
        len(tokens) >= 4
        and tuple(tokens[:2]) == (" step", "\n")
        and tokens[-2] in ("\n", "\n\n")
        and tokens[-1] == "\n"
    )
