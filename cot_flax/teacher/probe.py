"""Finds out what a server and its model do, by a few small requests before the many of a run."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.client import SCORING, OpenAITeacher
from cot_flax.teacher.connection import read_choice
from cot_flax.teacher.findings import NOISE, Findings, Wanted
from cot_flax.teacher.recipes import messages
from cot_flax.teacher.requests import (
    NotNow,
    Refused,
    Request,
    Unscorable,
)
from cot_flax.teacher.tokens import read_logprobs

MOST_REQUESTS = 20
MOST_SECONDS = 30.0
TOKENS = 24
"""The length of a probe's texts."""
MOST_N = 128  # OpenAI's own limit.
MOST_TOP = 20  # of OpenAI's chat API
CHAINS = 4
PROMPT = "Q: Write a few sentences about a journey by train.\nA:"
FOREIGN = "铅笔×2=√4 é 🙂 {<}\n铅笔×2=√4 é 🙂 {<}\n铅笔×2"
"""Characters of two to four bytes, and those that T5's tokenizer lacks."""
_FIRST = ("chains", "n", "scoring")  # which take several requests where a server refuses
_ANSWERS = ("zebra", "quartz")


class _Enough(Exception):
    """The requests are used up."""


class _Counted:
    """A connection that counts what a probe pays for, and ends it."""

    def __init__(self, connection, found: Findings):
        self._connection, self._found = connection, found
        self.host, self.place = connection.host, connection.place

    async def post(self, is_chat: bool, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._found.requests >= MOST_REQUESTS:
            raise _Enough
        self._found.requests += 1
        answer = await self._connection.post(is_chat, body)
        self._connection.attempts = min(2, self._connection.attempts)  # What fails is left open.
        usage = answer.get("usage") or {}
        self._found.prompt_tokens += usage.get("prompt_tokens") or 0
        self._found.completion_tokens += usage.get("completion_tokens") or 0
        return answer

    async def models(self) -> list[str]:
        self._found.requests += 1
        return await self._connection.models()

    async def close(self) -> None:
        await self._connection.close()


class _Probe:
    """Asks one server; `found` grows with every answer."""

    def __init__(self, teacher: OpenAITeacher, wanted: Wanted):
        server = teacher.connection.place.rstrip("/")
        self.found = Findings(server, teacher.name, chat=wanted.chat)
        teacher.connection = _Counted(teacher.connection, self.found)
        self._teacher, self._wanted = teacher, wanted
        self._alike: dict[str, bool] = {}  # what makes all chains alike, in a server that draws
        self._text, self._whole = "", ""
        self._logprobs: Logprobs | None = None

    async def run(self) -> Findings:
        """Raises UserError where no server is there, or it refuses every request."""
        start = time.monotonic()
        try:
            await self._ask_greedily()
            questions = dict(self._questions())
            self.found.unseen = list(questions)
            # A server that was waited for until it was loaded is asked all the same.
            left = MOST_SECONDS - min(time.monotonic() - start, MOST_SECONDS / 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    for are_first in (True, False):
                        chosen = [q for q in questions.items() if (q[0] in _FIRST) == are_first]
                        await asyncio.gather(*(self._answered(*q) for q in chosen))
        finally:
            await self._teacher.close()
        if self.found.draws:
            for name, is_alike in self._alike.items():
                self._note(name, is_alike)
        self.found.seconds = time.monotonic() - start
        self.found.habits = asdict(self._teacher.habits)
        return self.found

    def _questions(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """By their names, the more important ones first."""
        wanted, every = self._wanted, self._wanted.everything
        draws = every or wanted.draws
        if draws:
            yield "chains", self._draw
        if every or wanted.samples > 1:
            yield "n", self._count_chains
        if (every and not self.found.chat) or wanted.scores:
            yield "scoring", self._score
        if every or (wanted.stops and self._text):
            yield "stop", self._stop
        if every or draws:
            for name, value in (("top_p", 1e-3), ("top_k", 1), ("min_p", 1.0)):
                yield name, self._narrowed(name, value)
        if every or not wanted.scores:
            yield "repetition_penalty", self._penalise
        if every or wanted.seed:
            yield "seed", self._seed
        if every or wanted.top_logprobs:
            yield "top_k of log-probabilities", self._count_alternatives
        if every:
            yield "characters", self._look_at_characters
            yield "thinking", self._ask_other_api
            yield "choice", self._choose

    async def _answered(self, name: str, question: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(Refused, NotNow, _Enough):
            await question()
            self.found.unseen.remove(name)

    def _request(self, **more: Any) -> Request:
        prompt = messages([("user", PROMPT)]) if self.found.chat else PROMPT
        return Request(prompt, **({"max_tokens": TOKENS, "temperature": 0.0} | more))

    async def _ask(self, request: Request) -> list[str]:
        """The texts of one answer, each with the thought before it."""
        answer = await self._teacher.choices(request)
        read = [read_choice(choice) for choice in answer["choices"]]
        return [choice.thought + choice.text for choice in read]

    async def _ask_greedily(self) -> None:
        """Also finds out which API the server has, where that is open."""
        if self._wanted.everything:
            self.found.listed = await self._teacher.connection.models()
        k = self._wanted.top_logprobs or (5 if self._wanted.everything else None)
        try:
            answer = await self._greedy_answer(k)
        except UserError as error:
            if not self._wanted.everything or self.found.chat:
                raise
            self.found.chat = True
            try:
                answer = await self._greedy_answer(k)
            except UserError:
                raise error from None
            self.found.other_api = False
        (choice, *_), usage = answer["choices"], answer.get("usage") or {}
        read = read_choice(choice)
        self.found.model = str(answer.get("model") or "")
        self.found.fingerprint = str(answer.get("system_fingerprint") or "")
        self.found.thought = _place_of_thought(choice, read.thought, read.text)
        self._text, self._whole = read.text, read.thought + read.text
        if (usage.get("completion_tokens") or 0) > TOKENS + 1:
            self.found.ignored.append(self._teacher.habits.limit_name)
        if k is None or self.found.shape == "":
            return
        record = choice.get("logprobs")
        self._logprobs, self.found.problem = read_logprobs(record, read.text, read.thought)
        if read.thought and not read.text:
            self._logprobs, self.found.problem = read_logprobs(record, read.thought)
        self.found.shape = _shape(record) if self._logprobs else ""
        self.found.own_is_top = _own_is_top(self._logprobs)
        self.found.top_k = max((len(top) for top in _tops(self._logprobs)), default=0)

    async def _greedy_answer(self, k: int | None) -> dict[str, Any]:
        try:
            return await self._teacher.choices(self._request(top_logprobs=k))
        except Refused as error:
            if k is None or not error.reason.startswith("http_"):
                raise
            answer = await self._teacher.choices(self._request())
            self.found.shape, self.found.problem = "", f"refused: {error.said or error.got}"
            self.found.refused.append("logprobs")
            return answer

    async def _draw(self) -> None:
        for temperature in (0.7, 1.5):
            texts: list[str] = []
            while (done := len(texts)) < CHAINS:
                more = {"n": CHAINS - done, "done": done}
                texts += await self._ask(self._request(temperature=temperature, **more))
            if not self.found.chains:
                self.found.chains, self.found.different = len(texts), len(set(texts))
            if not any(texts):
                return
            self.found.draws = len(set(texts)) > 1
            if self.found.draws:
                return

    async def _count_chains(self) -> None:
        request = self._request(temperature=1.0, n=MOST_N, max_tokens=1)
        answer = await self._teacher.choices(request)
        self.found.n = len(answer["choices"])
        most = self._teacher.habits.most_n or MOST_N
        if self.found.n < most:
            self._teacher.habits.most_n = self.found.n
            self.found.ignored.append("n")

    async def _count_alternatives(self) -> None:
        if not self.found.shape:
            return
        request = self._request(top_logprobs=MOST_TOP, max_tokens=2)
        try:
            answer = await self._teacher.choices(request)
        except Refused:
            return
        read = read_choice(answer["choices"][0])
        logprobs, _ = read_logprobs(answer["choices"][0].get("logprobs"), read.text, read.thought)
        count = max((len(top) for top in _tops(logprobs)), default=0)
        self.found.top_k = min(MOST_TOP, max(count, self.found.top_k or 0))

    async def _score(self) -> None:
        k, text = self._wanted.top_logprobs or 5, self._text or " A train left."
        try:
            first = await self._teacher.score(PROMPT, text, k)
        except Unscorable as error:
            self.found.scoring, self.found.scoring_problem = "", error.reason
            return
        self.found.scoring, self.found.tokens = self._teacher.habits.scoring, len(first.tokens)
        self.found.scored_is_top = _own_is_top(first) if self._text else None
        if self._logprobs and not self.found.chat:
            self.found.agreement = _apart(self._logprobs, first)
        self.found.repeated = _apart(first, await self._teacher.score(PROMPT, text, k))

    async def _stop(self) -> None:
        words = self._text.split()
        if len(words) < 3:
            return
        (text, *_) = await self._ask(self._request(stop=(words[2],)))
        self._note("stop", words[2] not in text)

    def _narrowed(self, name: str, value: float) -> Callable[[], Awaitable[None]]:
        """With such a value the likeliest token alone is left to draw."""

        async def question() -> None:
            request = self._request(temperature=1.5, n=CHAINS, **{name: value})
            try:
                texts = await self._ask(request)
            except Refused as error:
                self._note_refusal(name, error)
            else:
                self._alike[name] = len({*texts, *[self._whole] * (len(texts) == 1)}) == 1

        return question

    async def _penalise(self) -> None:
        try:
            (text, *_) = await self._ask(self._request(repetition_penalty=2.0))
        except Refused as error:
            self._note_refusal("repetition_penalty", error)
        else:
            self._note("repetition_penalty", text != self._whole)

    async def _seed(self) -> None:
        request = self._request(temperature=1.0, seed=7)
        first, second = [(await self._ask(request))[0] for _ in range(2)]
        self._alike["seed"] = first == second

    async def _look_at_characters(self) -> None:
        prompt = messages([("user", FOREIGN)]) if self.found.chat else FOREIGN
        request = self._request(top_logprobs=5 if self.found.shape else None)
        answer = await self._teacher.choices(replace(request, prompt=prompt))
        (choice, *_) = answer["choices"]
        if self.found.shape:
            read = read_choice(choice)
            _, problem = read_logprobs(choice.get("logprobs"), read.text, read.thought)
            self.found.foreign_problem = problem
            self.found.characters = _parts_of_characters(choice["logprobs"])
        if not self.found.scoring or "echo" not in SCORING[self.found.scoring]:
            return
        body = {"model": self._teacher.name, "prompt": FOREIGN, "temperature": 0.0}
        body |= {"logprobs": 1, **SCORING[self.found.scoring]}
        echoed = await self._teacher.connection.post(False, body)
        text = read_choice(echoed["choices"][0]).text
        self.found.lost = "".join(dict.fromkeys(c for c in FOREIGN if c not in text))

    async def _ask_other_api(self) -> None:
        """Of two APIs a thinking model shows in the chat what it is."""
        if self.found.other_api is False:
            return
        asked, self.found.chat = self.found.chat, not self.found.chat
        request = self._request()
        self.found.chat = asked
        try:
            answer = await self._teacher.choices(request)
        except NotNow:
            raise
        except UserError:
            self.found.other_api = False
            return
        self.found.other_api = True
        (choice, *_) = answer["choices"]
        read = read_choice(choice)
        place = _place_of_thought(choice, read.thought, read.text)
        self.found.thought = self.found.thought or place

    async def _choose(self) -> None:
        schema = {"name": "answer", "schema": {"type": "string", "enum": list(_ANSWERS)}}
        kinds = {
            "structured_outputs": {"choice": list(_ANSWERS)},
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        for name, value in kinds.items():
            with contextlib.suppress(Refused):
                (text, *_) = await self._ask(self._request(extra_body={name: value}))
                if text.strip().strip('"') in _ANSWERS:
                    self.found.choice = name
                    return
        self.found.choice = ""

    def _note(self, name: str, is_honoured: bool) -> None:
        (self.found.honoured if is_honoured else self.found.ignored).append(name)

    def _note_refusal(self, name: str, error: Refused) -> None:
        if not error.reason.startswith("http_"):
            raise error
        self.found.refused.append(name)


def _place_of_thought(choice: Mapping[str, Any], thought: str, text: str) -> str:
    """The field of a message, or the mark in its text."""
    if not thought:
        return "<think>" if "<think>" in text or "</think>" in text else ""
    message = choice.get("message") or {}
    named = [name for name in ("reasoning_content", "reasoning") if message.get(name)]
    return named[0] if named else "content"


def _shape(record: Mapping[str, Any]) -> str:
    return "logprobs.tokens" if record.get("tokens") else "logprobs.content"


def _tops(logprobs: Logprobs | None) -> list[Mapping[str, float]]:
    return [top for top in (logprobs.top_logprobs if logprobs else ()) if top]


def _own_is_top(logprobs: Logprobs | None) -> float | None:
    """The share of the tokens with alternatives that are as likely as the best of them."""
    if logprobs is None:
        return None
    pairs = zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    best = [own >= max(top.values()) - NOISE for own, top in pairs if len(top) > 1]
    return sum(best) / len(best) if best else None


def _apart(one: Logprobs, other: Logprobs) -> float:
    """Nats between two scorings: token by token, or of the whole texts where the tokens differ."""
    if one.tokens == other.tokens:
        pairs = zip(one.token_logprobs, other.token_logprobs, strict=True)
        return sum(abs(a - b) for a, b in pairs)
    return abs(sum(one.token_logprobs) - sum(other.token_logprobs))


def _parts_of_characters(record: Mapping[str, Any]) -> str:
    entries = record.get("content") or []
    tokens = record.get("tokens") or [entry["token"] for entry in entries]
    if any(entry.get("bytes") for entry in entries) or any("bytes:" in token for token in tokens):
        return "bytes"
    if "" in tokens:
        return "empty"
    return "U+FFFD" if any("\ufffd" in token for token in tokens) else "whole"


def probe(teacher: OpenAITeacher, wanted: Wanted) -> Findings:
    """Asks a server what it does: at most 20 requests in 30 seconds, a wait for the first apart.

    The teacher is closed then.

    Raises:
        UserError: no server is there, or it refuses every request (key, model, path, credit).
    """
    return asyncio.run(_Probe(teacher, wanted).run())
