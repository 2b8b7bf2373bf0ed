from collections import Counter
from dataclasses import replace

import pytest

from cot_flax.teacher.codex import read_codex_dump
from cot_flax.teacher.filtering import judge, keep, rejection
from cot_flax.teacher.samples import Sample

RIGHT = Sample(
    id="q",
    dataset="gsm8k",
    split="train",
    question="Tom buys 1,000 nails and then 200 more. How many has he?",
    gold_answer="1,200",
    format="few_shot_cot",
    prompt_hash="",
    teacher={"model": "m", "params": {}},
    sample=0,
    text="1000 + 200 = 1200.\nThe answer is 1200",
    logprobs=None,
    finish_reason="stop",
)
CASES = [
    ({}, None),
    ({"finish_reason": "content_filter"}, None),  # judged by its answer alone
    ({"text": "He has many."}, "no_answer"),
    ({"text": ""}, "no_answer"),
    ({"text": "The answer is 1201"}, "wrong_answer"),
    ({"text": "The answer is -1200"}, "wrong_answer"),
    ({"finish_reason": "length"}, "truncated"),
    ({"finish_reason": "malformed"}, "malformed"),
    # The first broken rule gives the reason.
    ({"finish_reason": "length", "text": "He"}, "truncated"),
    ({"finish_reason": "malformed", "text": "The answer is 1"}, "malformed"),
]


@pytest.mark.parametrize(("change", "reason"), CASES)
def test_the_first_broken_rule_is_the_reason(change, reason):
    assert rejection(replace(RIGHT, **change), kind="number") == reason


@pytest.mark.parametrize(
    ("kind", "gold", "right", "wrong"),
    [
        ("choice", "B", "The answer is (B).", "The answer is (C)."),
        ("yes_no", "yes", "So the answer is yes.", "So the answer is no."),
        ("text", "blue", "The answer is blue", "The answer is red"),
    ],
)
def test_answers_of_every_kind(kind, gold, right, wrong):
    assert rejection(replace(RIGHT, gold_answer=gold, text=right), kind=kind) is None
    assert rejection(replace(RIGHT, gold_answer=gold, text=wrong), kind=kind) == "wrong_answer"


def test_every_sample_is_judged_or_kept_and_counted_in_order():
    samples = [replace(RIGHT, sample=n, **change) for n, (change, _) in enumerate(CASES)]
    judged = list(judge(samples, kind="number"))
    assert judged == list(zip(samples, [reason for _, reason in CASES], strict=True))
    counts = Counter()
    assert list(keep(samples, kind="number", counts=counts)) == samples[:2]
    assert counts == {"kept": 2, "no_answer": 2, "wrong_answer": 2, "truncated": 2, "malformed": 2}


def test_holds_one_sample_at_a_time():
    def endless():
        while True:
            yield RIGHT

    assert next(keep(endless(), kind="number", counts=Counter())) == RIGHT


def test_the_real_chains(shared_data):
    counts = Counter()
    samples = read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl")
    kept = list(keep(samples, kind="number", counts=counts))
    # By reading them: the 51 that end do so in "The answer is" and the gold answer.
    assert counts == {"kept": 51, "malformed": 1}
    assert all(sample.text.endswith(f"\nThe answer is {sample.gold_answer}") for sample in kept)
