import asyncio
import time
from collections import deque
from contextlib import AsyncExitStack

import pytest
from support.story_server import STORIES, StoryServer, prompt_of

from cot_flax.errors import UserError
from cot_flax.teacher import pace
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.dispatch import sample
from cot_flax.teacher.journal import journal_path
from cot_flax.teacher.pace import Pace
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import Numbers, Recipe

QUESTIONS = [
    Question(f"story-{i}", "stories", "train", story.question) for i, story in enumerate(STORIES)
]
RECIPE = Recipe(
    "plain",
    "zero_shot_cot",
    Numbers(samples=1, temperature=0.7, max_tokens=50),
    prompt=lambda question: prompt_of(question.question),
    clean=lambda completion: completion,
)
MINUTE = 0.3  # seconds
TOO_MANY = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit"}}


@pytest.fixture(autouse=True)
def _short_minute(monkeypatch):
    monkeypatch.setattr(pace, "MINUTE", MINUTE)


class Limit:
    """A server that takes `most` requests in any minute; refused ones may count, too."""

    def __init__(self, most, counts_refused=False):
        self.most, self.counts_refused = most, counts_refused
        self.times, self.taken, self.refused = deque(), 0, 0

    def __call__(self, body):
        now = time.monotonic()
        while self.times and self.times[0] < now - MINUTE:
            self.times.popleft()
        if len(self.times) >= self.most:
            self.refused += 1
            if self.counts_refused:
                self.times.append(now)
            return 429, TOO_MANY
        self.times.append(now)
        self.taken += 1
        return None


def run(server, tmp_path, questions=QUESTIONS, **settings):
    teacher = OpenAITeacher(
        "story", base_url=server.url, wait_initial=0.01, wait_max=MINUTE, **settings
    )
    out = tmp_path / "s.jsonl"
    return sample(questions, RECIPE, teacher, out, journal_path(out))


@pytest.mark.parametrize(
    ("retry_after", "counts_refused"), [(None, False), (None, True), ("0", True), ("0.15", False)]
)
def test_forty_questions_behind_six_requests_a_minute(tmp_path, retry_after, counts_refused):
    """None is given up, though the server says too little, nothing, or counts its refusals."""
    limit = Limit(6, counts_refused)
    with StoryServer(script=limit, retry_after=retry_after) as server:
        totals = run(server, tmp_path)
    assert (totals.samples, totals.requests, limit.taken) == (40, 40, 40)
    assert limit.refused < 100


def test_a_limit_that_is_known_is_kept(tmp_path):
    limit = Limit(12)  # some more, for a busy machine
    with StoryServer(script=limit) as server:
        start = time.monotonic()
        totals = run(server, tmp_path, QUESTIONS[:20], rpm=6)
    assert (totals.samples, limit.refused) == (20, 0)
    assert time.monotonic() - start > 19 / 6 * MINUTE


def test_a_server_that_refuses_all_is_given_up(tmp_path):
    limit = Limit(0)
    with (
        StoryServer(script=limit, retry_after="0") as server,
        pytest.raises(UserError, match=r"HTTP 429"),
    ):
        run(server, tmp_path, attempts=3)
    assert limit.refused < 60


@pytest.mark.parametrize("limits", [{"rpm": 0}, {"tpm": -1.0}])
def test_a_limit_that_lets_nothing_through_is_refused(limits):
    with pytest.raises(UserError, match=r"pm (0|-1.0); expected more than 0"):
        Pace(**limits)


def turns(held, tokens, count, used=None):
    """The seconds after which so many requests of so many tokens may go."""

    async def go():
        start = time.monotonic()
        for _ in range(count):
            async with held.turn(tokens) as turn:
                turn.tokens = tokens if used is None else used
            yield turn.start - start

    async def all_of():
        return [seconds async for seconds in go()]

    return asyncio.run(all_of())


def test_tokens_are_reserved_and_corrected():
    """300 a minute of 0.3 s: 100 take 0.1 s, and less where less was used."""
    for held, tokens in [(Pace(tpm=300), 100), (Pace(rpm=3, tpm=300), 10)]:
        starts = turns(held, tokens, 4)
        assert all(start >= 0.1 * i for i, start in enumerate(starts))
    assert turns(Pace(tpm=300), 10**6, 4, used=1)[-1] < 1.0
    assert turns(Pace(), 10**9, 3)[-1] < 1.0


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"remaining-requests": "0", "reset-requests": "200ms"}, 0.2),
        ({"remaining-requests": "0", "reset-requests": "0.2"}, 0.2),
        ({"remaining-requests": "1", "reset-requests": "6m0s"}, 0),
        ({"remaining-requests": "0", "reset-requests": "6m0s"}, MINUTE),  # then it is tried
        ({"remaining-requests": "0"}, 0),
        ({"remaining-requests": "none", "reset-requests": "soon"}, 0),
        ({"remaining-tokens": "99", "reset-tokens": "0.2s"}, 0.2),
        ({"remaining-tokens": "100", "reset-tokens": "1h"}, 0),
        # 50 of 300 are lacking: a sixth of the minute, though the whole comes back in an hour.
        ({"remaining-tokens": "50", "reset-tokens": "1h", "limit-tokens": "300"}, 0.05),
    ],
)
def test_what_the_server_says_is_left_is_kept_to(headers, pause):
    async def go():
        held = Pace()
        async with held.turn(100) as turn:
            held.answered(turn, {f"x-ratelimit-{name}": text for name, text in headers.items()})
        async with held.turn(100) as second:
            return second.start - turn.start

    assert pause <= asyncio.run(go()) < pause + 0.5


def test_refusals_of_one_wave_are_one_pause_and_then_one_goes_ahead():
    async def go():
        held = Pace(wait_initial=0.1, wait_max=0.3)
        async with AsyncExitStack() as stack:
            wave = [await stack.enter_async_context(held.turn(1)) for _ in range(5)]
        waited = [held.refused(turn, None) for turn in wave]
        assert waited == [0.1] * 5
        async with held.turn(1) as ahead:
            second = asyncio.create_task(turn_of(held))
            await asyncio.sleep(0.05)
            assert not second.done()  # until the one ahead is answered
            held.answered(ahead, {})
        assert (await second).start > ahead.start
        assert ahead.start - wave[0].start >= 0.1
        again = await turn_of(held)
        assert [held.refused(again, 0.02)] == [0.02]
        for expected in (0.2, 0.3, 0.3):
            held._paused_until = 0.0
            assert held.refused(await turn_of(held), 0.02) == expected
        held._paused_until = 0.0
        held.answered(await turn_of(held), {})
        assert held.refused(await turn_of(held), None) == 0.3  # what was long enough

    async def turn_of(held):
        async with held.turn(1) as turn:
            return turn

    asyncio.run(go())
