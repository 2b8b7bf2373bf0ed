"""What a run costs: before it, as an upper bound, while it goes on, and where it has to stop.

Tokens of a prompt are estimated from its bytes in UTF-8, whatever its language; what the server
counted of other prompts corrects the estimate.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cot_flax.errors import UserError
from cot_flax.teacher.journal import Answers, read_answers
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import Recipe
from cot_flax.teacher.requests import Completion, Messages, Reply, Request

# Of SmolLM2's vocabulary: 3.1 in fu2023's prompts, 2.4 where most is digits, 1.6 in Chinese.
BYTES_A_TOKEN = 3.0
MARGIN = 1.1  # Of the most that is expected of a prompt over the most that was seen.
TEMPLATE_TOKENS = 100  # That a chat's template may add, whatever the prompt's length.
# A usage that covers one of n texts leaves n times as many bytes for each token.
_FEW_TOKENS = 1.5
PROMPTS_SHOWN = 3

_UNWRITTEN = Completion("", None, "stop")


@dataclass(frozen=True)
class Prices:
    """What the server charges: $ per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In $."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class PromptTokens:
    """How many tokens prompts have, by what the server counted of others."""

    def __init__(self):
        self._bytes = self._tokens = 0
        self._highest = 0.0

    def learn(self, size: int, tokens: int) -> None:
        """Takes into account that a prompt of so many bytes had so many tokens."""
        if size and tokens:
            self._bytes += size
            self._tokens += tokens
            self._highest = max(self._highest, tokens / size)

    def about(self, size: int) -> int:
        """The likeliest number of tokens in so many bytes."""
        return math.ceil(size * self._tokens / self._bytes if self._bytes else size / BYTES_A_TOKEN)

    def most(self, size: int) -> int:
        """What a prompt of so many bytes does not exceed; before an answer, a token a byte."""
        return math.ceil(size * (MARGIN * self._highest or 1.0)) + TEMPLATE_TOKENS


def size_of(prompt: str | Messages) -> int:
    """The bytes of a prompt in UTF-8."""
    parts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return sum(len(part.encode(errors="surrogatepass")) for part in parts)


def tokens_paid(
    request: Request, completions: Sequence[Completion], usage: Mapping[str, Any] | None
) -> tuple[int, int]:
    """(prompt, completion) tokens of one answer.

    Some servers count one of n completions as if it were all (llama.cpp), others count none: then
    the tokens are those of the log-probabilities, of the limits that ended texts, or estimates.

    Args:
        request: what was asked.
        completions: the answer.
        usage: as in OpenAI's API, or None.
    """
    size, written = size_of(request.prompt), [size_of(c.text + c.thought) for c in completions]
    prompt, counted = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    prompt = prompt or math.ceil(size / BYTES_A_TOKEN)
    least = sum(
        sum(len(part.tokens) for part in (c.thought_logprobs, c.logprobs) if part)
        or request.max_tokens * (c.finish_reason == "length")
        for c in completions
    )
    if not counted:
        return prompt, max(least, math.ceil(sum(written) / BYTES_A_TOKEN))
    bytes_a_token = max(BYTES_A_TOKEN, size / prompt)
    if len(completions) > 1 and sum(written) > _FEW_TOKENS * bytes_a_token * counted:
        counted *= len(completions)
    return prompt, max(least, counted)


def most_tokens(body: Mapping[str, Any]) -> int:
    """An estimate of the tokens that a request of OpenAI's API takes at most, both ways."""
    prompt = body.get("messages", body.get("prompt"))
    written = body.get("max_completion_tokens", body.get("max_tokens", 0))
    return math.ceil(size_of(prompt) / BYTES_A_TOKEN) + body.get("n", 1) * written


def tokens_counted(usage: Mapping[str, Any] | None) -> int:
    """The tokens of an answer, both ways, as the server counts; 0 where it does not."""
    return _count(usage, "prompt_tokens") + _count(usage, "completion_tokens")


def _count(usage: Mapping[str, Any] | None, name: str) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) else 0


@dataclass
class Totals:
    """What a run did.

    Attributes:
        prices: None where unknown.
        samples: samples written.
        requests: answers of the teacher in this run.
        from_journal: requests that the journal answered.
        prompt_tokens: sent in this run, as the server counts.
        completion_tokens: received in this run, as the server counts.
        most_tokens: that these answers might have had, by the limit of each.
        problems: samples that should have log-probabilities and have none, by reason.
        refused: chains that are left out because the teacher refused them, by reason.
        refusals: what it said, by question.
        thoughts: samples whose teacher thought apart from the text.
        thought_tokens: of these thoughts, where they have log-probabilities.
        empty: chains that are left out because they have no text.
    """

    prices: Prices | None = None
    samples: int = 0
    requests: int = 0
    from_journal: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    most_tokens: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, str] = field(default_factory=dict)
    thoughts: int = 0
    thought_tokens: int = 0
    empty: int = 0

    @property
    def cost(self) -> float | None:
        """Of this run, in $; None without prices."""
        return self.prices and self.prices.cost(self.prompt_tokens, self.completion_tokens)

    def add(self, reply: Reply, most_tokens: int) -> None:
        """Counts an answer of this run, which might have had so many tokens."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.most_tokens += most_tokens


def check_limit(max_cost: float | None, prices: Prices | None) -> None:
    """Raises UserError for a limit of $ without prices."""
    if max_cost is not None and prices is None:
        remedy = "give --price-in and --price-out"
        raise UserError("--max-cost without prices", "what a token costs", remedy)


class Budget:
    """Lets no request begin that could lead beyond `most`, those in flight at their highest price.

    It belongs to one event loop.
    """

    def __init__(
        self, totals: Totals, tokens: PromptTokens, most: float | None, spent: float = 0.0
    ):
        """Spends nothing yet.

        Args:
            totals: what is spent.
            tokens: of prompts.
            most: $ of this run, None for no limit.
            spent: $ that went before, on a probe.

        Raises:
            UserError: a limit without prices.
        """
        check_limit(most, totals.prices)
        self._totals, self._tokens, self._most, self._before = totals, tokens, most, spent
        self._reserved: list[float] = []
        self._change = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, size: int, written: int) -> AsyncIterator[None]:
        """Waits until there is money for a prompt of so many bytes and so many tokens written.

        What was spent is to be in the totals when the context ends.

        Raises:
            UserError: it is not there, and nothing in flight can leave any.
        """
        if self._most is None:
            yield
            return
        price = self._totals.prices.cost(self._tokens.most(size), written)
        async with self._change:
            while self._spent + sum(self._reserved) + price > self._most:
                if not self._reserved:
                    raise self._exhausted(price)
                await self._change.wait()
                price = self._totals.prices.cost(self._tokens.most(size), written)
            self._reserved.append(price)
        try:
            yield
        finally:
            async with self._change:
                self._reserved.remove(price)
                self._change.notify_all()

    @property
    def _spent(self) -> float:
        return self._before + self._totals.cost

    def _exhausted(self, price: float) -> UserError:
        probe = " and a probe" if self._before else ""
        return UserError(
            f"--max-cost ${self._most:,.4f}: ${self._spent:,.4f} spent on "
            f"{self._totals.requests:,} requests{probe}, and the next may cost ${price:,.4f}",
            "room for it",
            "the same command goes on where this one stopped, with what another --max-cost allows",
        )


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        questions: how many.
        answered: of these, how many need nothing more of their first step.
        most_requests: requests still to be sent, second steps included; an upper bound.
        prompts: of the first questions, as they would be sent.
        prompt_bytes: of `most_requests`, without what is yet to be written.
        unwritten: tokens of prompts that are yet to be written; an upper bound.
        prompt_tokens: of `most_requests`; an estimate from the bytes.
        completion_tokens: of `most_requests`; an upper bound.
        cost: of `most_requests` in $, from these two; None without prices.
    """

    questions: int
    answered: int
    most_requests: int
    prompts: tuple[str | Messages, ...]
    prompt_bytes: int
    unwritten: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def plan(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: str,
    journal: str | os.PathLike,
    *,
    prices: Prices | None = None,
) -> Plan:
    """What `dispatch.sample` of the same arguments would do. Sends nothing, writes nothing.

    Args:
        teacher: its name.
        journal: the file.

    Raises:
        UserError: the journal has a broken line.
    """
    tokens, to_pay = PromptTokens(), Counter[str]()
    prompts: list[str | Messages] = []
    with read_answers(journal) as answers:
        for question in questions:
            first = recipe.first(question)
            if len(prompts) < PROMPTS_SHOWN:
                prompts.append(first.prompt)
            for reply in answers[first.key(teacher)]:
                tokens.learn(size_of(first.prompt), reply.prompt_tokens)
            to_pay["answered"] += not missing(first, teacher, answers)
            for request, unwritten in _to_pay(question, recipe, teacher, answers):
                calls = math.ceil(request.n / recipe.numbers.per_request)
                to_pay["most_requests"] += calls
                to_pay["prompt_bytes"] += calls * size_of(request.prompt)
                to_pay["unwritten"] += unwritten
                to_pay["completion_tokens"] += request.n * request.max_tokens
    prompt_tokens = tokens.about(to_pay["prompt_bytes"]) + to_pay["unwritten"]
    return Plan(
        questions=len(questions),
        prompts=tuple(prompts),
        prompt_tokens=prompt_tokens,
        cost=prices and prices.cost(prompt_tokens, to_pay["completion_tokens"]),
        **{
            name: to_pay[name]
            for name in (
                *("answered", "most_requests", "prompt_bytes", "unwritten", "completion_tokens"),
            )
        },
    )


def _to_pay(
    question: Question, recipe: Recipe, teacher: str, answers: Answers
) -> Iterator[tuple[Request, int]]:
    """What is still to be asked; and tokens that a prompt will have from what is yet to come."""
    for request in to_ask(question, recipe, teacher, answers):
        yield request, 0
    first = recipe.first(question)
    if follow_up := recipe.next(question, first, _UNWRITTEN):
        for _ in range(missing(first, teacher, answers)):
            yield follow_up, first.max_tokens


def to_ask(question: Question, recipe: Recipe, teacher: str, answers: Answers) -> Iterator[Request]:
    """What can be asked at once: chains that are missing, second steps of those that are there."""
    steps = [recipe.first(question), *second_steps(question, recipe, teacher, answers)]
    for request in {step.key(teacher): step for step in steps}.values():
        if lacking := missing(request, teacher, answers):
            done = sum(len(reply.completions) for reply in answers[request.key(teacher)])
            yield replace(request, n=lacking, done=done)


def second_steps(
    question: Question, recipe: Recipe, teacher: str, answers: Answers
) -> Iterator[Request]:
    """The second step of every chain that is there."""
    first = recipe.first(question)
    for completion in filter(first.is_answered_by, given(first, teacher, answers)):
        if follow_up := recipe.next(question, first, completion):
            yield follow_up
            for answer in given(follow_up, teacher, answers):
                if next_line := recipe.next_line(follow_up, answer):
                    yield next_line


def given(request: Request, teacher: str, answers: Answers) -> list[Completion]:
    """The completions of a request: those with all that was asked for first; at most `n`."""
    found = [c for reply in answers[request.key(teacher)] for c in reply.completions]
    return sorted(found, key=lambda c: not request.is_answered_by(c))[: request.n]


def missing(request: Request, teacher: str, answers: Answers) -> int:
    """How many completions of a request have yet to come."""
    return request.n - sum(map(request.is_answered_by, given(request, teacher, answers)))
