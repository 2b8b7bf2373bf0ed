"""Gives texts that somebody wrote the log-probabilities of another teacher."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from cot_flax.chains.samples import Sample, read_samples, write_samples
from cot_flax.teacher.costs import Prices, Totals
from cot_flax.teacher.dispatch import Desk, work_through
from cot_flax.teacher.journal import Journal, journal_path
from cot_flax.teacher.requests import Completion, Reply, Teacher


def rescore(
    samples: str | os.PathLike,
    out: str | os.PathLike,
    teacher: Teacher,
    prompt_of: Callable[[str], str],
    *,
    top_logprobs: int = 5,
    concurrency: int = 16,
    prices: Prices | None = None,
) -> Totals:
    """Gives the samples of a file the log-probabilities that `teacher` assigns to their texts.

    `teacher["params"]["scored_by"]` of a sample names it. A text that it cannot score keeps no
    log-probabilities and is counted by reason. Journal, order and errors are as in
    `dispatch.sample`.

    Args:
        samples: a samples file.
        prompt_of: makes a question into the text that the sample's text follows.
        top_logprobs: of the likeliest tokens a position.
    """
    totals = Totals(prices)
    total = sum(1 for _ in read_samples(samples))  # A broken line is found before anything is paid.
    with Journal(journal_path(out)) as journal:
        desk = Desk(journal, totals, concurrency)

        def call_of(sample: Sample) -> tuple[str, str, int]:
            return prompt_of(sample.question), sample.text, top_logprobs

        async def score(sample: Sample) -> None:
            call = call_of(sample)
            await desk.ask(
                _score_key(teacher.name, *call), lambda: _score(teacher, *call), _is_score
            )

        def scored() -> Iterator[Sample]:
            for sample in read_samples(samples):
                key = _score_key(teacher.name, *call_of(sample))
                yield _rescored(sample, key, teacher.name, desk)

        work_through(read_samples(samples), total, score, desk, teacher.close)
        write_samples(out, scored())
    return totals


async def _score(teacher: Teacher, prompt: str, text: str, top_logprobs: int) -> Reply:
    logprobs = await teacher.score(prompt, text, top_logprobs)
    return Reply((Completion("", logprobs, "scored"),), len(logprobs.tokens), 0)


def _is_score(reply: Reply) -> bool:
    """Journals of older versions hold failures, too."""
    return reply.completions[0].logprobs is not None


def _score_key(teacher: str, prompt: str, text: str, top_logprobs: int) -> str:
    content = json.dumps(["score", teacher, prompt, text, top_logprobs])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _rescored(sample: Sample, key: str, teacher: str, desk: Desk) -> Sample:
    desk.totals.samples += 1
    if key in desk.refused:
        desk.totals.problems[desk.refused[key].reason] += 1
        logprobs = None
    else:
        logprobs = desk.journal[key].completions[0].logprobs
    params = {**sample.teacher["params"], "scored_by": teacher}
    return replace(sample, logprobs=logprobs, teacher={**sample.teacher, "params": params})
