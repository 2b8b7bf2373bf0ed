"""Gives texts that somebody wrote the log-probabilities of another teacher."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from cot_flax.chains.samples import Sample, read_samples, write_samples
from cot_flax.teacher.costs import Prices, Totals, size_of
from cot_flax.teacher.dispatch import Call, Desk, work_through
from cot_flax.teacher.journal import Journal
from cot_flax.teacher.requests import Completion, Reply, Teacher
from cot_flax.text.answers import answers_match, extract_answer
from cot_flax.text.prompts import build_target
from cot_flax.text.wording import ENGLISH, Wording


def rescore(
    samples: str | os.PathLike,
    out: str | os.PathLike,
    journal: str | os.PathLike,
    teacher: Teacher,
    prompt_of: Callable[[str], str],
    *,
    top_logprobs: int = 5,
    concurrency: int = 16,
    prices: Prices | None = None,
    max_cost: float | None = None,
    spent: float = 0.0,
    wording: Wording = ENGLISH,
) -> Totals:
    """Gives the samples of a file the log-probabilities that `teacher` assigns to their texts.

    A text that leaves the right answer to `gold_answer` is closed with it first; see `closed`.
    `teacher["params"]["scored_by"]` of a sample names it. A text that it cannot score keeps no
    log-probabilities and is counted by reason; a thought apart keeps none of another teacher. A
    record without a chain stays as it is.
    Journal, order and errors are as in `dispatch.sample`.

    Args:
        samples: a samples file.
        prompt_of: makes a question into the text that the sample's text follows.
        top_logprobs: of the likeliest tokens a position.
        wording: of the closing sentence.
    """
    totals = Totals(prices)
    # A broken line is found before anything is paid.
    total = sum(not sample.is_direct for sample in read_samples(samples))

    def texts() -> Iterator[Sample]:
        found = (sample for sample in read_samples(samples) if not sample.is_direct)
        return (closed(sample, wording) for sample in found)

    with Journal(journal) as opened:
        desk = Desk(opened, totals, concurrency, max_cost=max_cost, spent=spent)

        def call_of(sample: Sample) -> Call:
            return _call(teacher, prompt_of(sample.question), sample.text, top_logprobs)

        async def score(sample: Sample) -> None:
            await desk.ask(call_of(sample))

        def scored() -> Iterator[Sample]:
            for sample in read_samples(samples):
                if sample.is_direct:
                    totals.samples += 1
                    yield sample
                else:
                    chain = closed(sample, wording)
                    yield _rescored(chain, call_of(chain).key, teacher.name, desk)

        work_through(texts(), total, score, desk, teacher.close)
        write_samples(out, scored())
    return totals


def closed(sample: Sample, wording: Wording = ENGLISH) -> Sample:
    """The sample with its text as a student will learn it, closed with its answer.

    A chain whose own answer is another one stays as it is, for a filter to see that. Of given
    rationales, which no teacher was asked for, an own answer is what they mark as one; of a
    teacher's chain also a last number.
    """
    gold = sample.gold_answer
    if not gold:
        return sample
    kind = "number" if extract_answer(gold, kind="number", mode="flexible") else "text"
    mode = "flexible" if sample.teacher["params"] else "strict"
    own = extract_answer(sample.text, kind=kind, mode=mode)
    if own is not None and not answers_match(own, gold, kind=kind):
        return sample
    target = build_target(sample.text, gold, "zero_shot_cot", wording=wording)
    closing = target[len(sample.text.strip()) :]
    return replace(sample, text=sample.text.rstrip() + closing) if closing else sample


def _call(teacher: Teacher, prompt: str, text: str, top_logprobs: int) -> Call:
    async def send(n: int, done: int) -> Reply:
        logprobs = await teacher.score(prompt, text, top_logprobs)
        return Reply((Completion("", logprobs, "scored"),), len(logprobs.tokens), 0)

    content = json.dumps(["score", teacher.name, prompt, text, top_logprobs])
    return Call(
        key=hashlib.sha256(content.encode()).hexdigest()[:32],
        n=1,
        send=send,
        is_answer=lambda completion: completion.logprobs is not None,
        prompt_bytes=size_of(prompt + text),
        max_tokens=1,
    )


def _rescored(sample: Sample, key: str, teacher: str, desk: Desk) -> Sample:
    desk.totals.samples += 1
    if key in desk.refused:
        desk.totals.problems[desk.refused[key].reason] += 1
        logprobs = None
    else:
        # Journals of older versions hold failures, too.
        found = (reply.completions[0].logprobs for reply in desk.journal[key])
        logprobs = next(filter(None, found))
    params = {**sample.teacher["params"], "scored_by": teacher}
    named = {**sample.teacher, "params": params}
    return replace(sample, logprobs=logprobs, thought_logprobs=None, teacher=named)
