"""What a run costs: before it, as an upper bound, and while it goes on."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cot_flax.teacher.journal import Answers, journal_path, read_answers
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import Recipe
from cot_flax.teacher.requests import Completion, Messages, Request

CHARACTERS_A_TOKEN = 4  # A rule of thumb for English.
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
        problems: samples that should have log-probabilities and have none, by reason.
        refused: chains that are left out because the teacher refused them, by reason.
        refusals: what it said, by question.
        thoughts: samples whose teacher thought apart from the text.
        empty: samples without a text.
    """

    prices: Prices | None = None
    samples: int = 0
    requests: int = 0
    from_journal: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, str] = field(default_factory=dict)
    thoughts: int = 0
    empty: int = 0

    @property
    def cost(self) -> float | None:
        """Of this run, in $; None without prices."""
        return self.prices and self.prices.cost(self.prompt_tokens, self.completion_tokens)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        questions: how many.
        requests: first-step requests.
        answered: of these, how many the journal holds.
        most_requests: requests still to be sent, follow-ups included; an upper bound.
        prompts: of the first questions, as they would be sent.
        prompt_tokens: of `most_requests`; an estimate from the characters.
        completion_tokens: of `most_requests`; an upper bound.
        cost: of `most_requests` in $, from these two; None without prices.
    """

    questions: int
    requests: int
    answered: int
    most_requests: int
    prompts: tuple[str | Messages, ...]
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def plan(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: str,
    out: str | os.PathLike,
    *,
    prices: Prices | None = None,
) -> Plan:
    """What `dispatch.sample` of the same arguments would do. Sends nothing, writes nothing.

    Args:
        teacher: its name.

    Raises:
        UserError: the journal beside `out` has a broken line.
    """
    found: Counter[str] = Counter()
    prompts: list[str | Messages] = []
    with read_answers(journal_path(out)) as answers:
        for question in questions:
            first = recipe.first(question)
            if len(prompts) < PROMPTS_SHOWN:
                prompts.append(first[0].prompt)
            found["requests"] += len(first)
            found["answered"] += sum(_is_known(request, teacher, answers) for request in first)
            for prompt_tokens, completion_tokens in _to_pay(question, recipe, teacher, answers):
                found["most_requests"] += 1
                found["prompt_tokens"] += prompt_tokens
                found["completion_tokens"] += completion_tokens
    names = ("requests", "answered", "most_requests", "prompt_tokens", "completion_tokens")
    return Plan(
        questions=len(questions),
        prompts=tuple(prompts),
        cost=prices and prices.cost(found["prompt_tokens"], found["completion_tokens"]),
        **{name: found[name] for name in names},
    )


def _to_pay(
    question: Question, recipe: Recipe, teacher: str, answers: Answers
) -> Iterator[tuple[int, int]]:
    """(prompt, completion) tokens of each request that the journal does not answer."""
    for request in recipe.first(question):
        known = _is_known(request, teacher, answers)
        if not known:
            yield _tokens(request)
        completions = (
            answers[request.key(teacher)].completions if known else [_UNWRITTEN] * request.n
        )
        for completion in completions:
            follow_up = recipe.next(question, request, completion)
            if follow_up and not (known and _is_known(follow_up, teacher, answers)):
                yield _tokens(follow_up, unwritten=0 if known else request.max_tokens)


def _is_known(request: Request, teacher: str, answers: Answers) -> bool:
    key = request.key(teacher)
    return key in answers and request.is_answered_by(answers[key])


def _tokens(request: Request, unwritten: int = 0) -> tuple[int, int]:
    """`unwritten`: tokens that the prompt will have from a completion that is yet to come."""
    parts = [m["content"] for m in request.prompt] if request.is_chat else [request.prompt]
    prompt = math.ceil(sum(map(len, parts)) / CHARACTERS_A_TOKEN)
    return prompt + unwritten, request.n * request.max_tokens
