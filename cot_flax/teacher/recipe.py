"""What a recipe is: the calls that a question takes, and the chain that is made of the replies."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cot_flax.errors import UserError
from cot_flax.teacher.clipping import certain, end_at, join, trim
from cot_flax.teacher.questions import Question
from cot_flax.teacher.requests import Completion, Messages, Request
from cot_flax.text.answers import ANSWER_MARKER

BRIDGE = "Therefore, the answer is"

_BEHIND_FIRST_LINE = re.compile(r"\S[^\n]*(\n)")


@dataclass(frozen=True)
class Numbers:
    """What a caller may change of a recipe.

    Attributes:
        samples: chains a question.
        temperature: of the chains; 0 is greedy.
        max_tokens: the most tokens of a completion.
        shots: worked questions in the prompt.
        top_p: nucleus sampling; 1.0 is off.
        presence_penalty: as in OpenAI's API.
        frequency_penalty: as in OpenAI's API.
        stop: strings that end a completion.
        top_logprobs: log-probabilities of the k likeliest tokens a position; None asks for none.
        per_request: the most completions that one call may ask for; OpenAI's limit is 128.

    Raises:
        UserError: a number that no teacher can be asked with.
    """

    samples: int
    temperature: float
    max_tokens: int
    shots: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    per_request: int = 128

    def __post_init__(self):
        least = {"samples": 1, "temperature": 0, "max_tokens": 1, "shots": 0, "per_request": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{name} {getattr(self, name)}", f"at least {low}", "correct it")


@dataclass(frozen=True)
class Recipe:
    """One way to ask a teacher for chains.

    Attributes:
        name: what it is called.
        format: the format of `text.prompts.FORMATS` that the teacher saw.
        numbers: how many, how warm, how long.
        prompt: makes a question into what is sent.
        clean: makes what came back into the chain.
        two_steps: a second, greedy call draws the answer out of each chain (Zero-shot-CoT).
    """

    name: str
    format: str
    numbers: Numbers
    prompt: Callable[[Question], str | Messages]
    clean: Callable[[Completion], Completion]
    two_steps: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """The sampling parameters, for the record of a sample."""
        numbers = asdict(self.numbers) | {"stop": list(self.numbers.stop)}
        del numbers["per_request"]
        return {"recipe": self.name, **numbers}

    def first(self, question: Question) -> list[Request]:
        """The calls for one question; together they ask for `samples` completions."""
        numbers, prompt = self.numbers, self.prompt(question)
        whole, rest = divmod(numbers.samples, numbers.per_request)
        sizes = [numbers.per_request] * whole + [rest] * bool(rest)
        return [
            Request(
                prompt,
                n=size,
                max_tokens=numbers.max_tokens,
                temperature=numbers.temperature,
                top_p=numbers.top_p,
                presence_penalty=numbers.presence_penalty,
                frequency_penalty=numbers.frequency_penalty,
                stop=numbers.stop,
                top_logprobs=numbers.top_logprobs,
                series=series,
            )
            for series, size in enumerate(sizes)
        ]

    def next(self, question: Question, request: Request, completion: Completion) -> Request | None:
        """The call that follows on one completion of `request`, or None where nothing does.

        Chains of the same words share it: it is greedy.
        """
        if not self.two_steps:
            return None
        if request.is_chat:
            turns = [("assistant", completion.text), ("user", BRIDGE)]
            prompt = (*request.prompt, *messages(turns))
        else:
            prompt = f"{request.prompt}{completion.text}\n{BRIDGE}"
        return replace(request, prompt=prompt, n=1, temperature=0.0, series=0)

    def sample_of(
        self,
        question: Question,
        completion: Completion,
        follow_up_request: Request | None = None,
        follow_up: Completion | None = None,
    ) -> Completion:
        """The chain as it is stored: cleaned, and in two steps with the answer behind it.

        The words between the steps have log-probability 0 and no alternatives. Of a second
        completion that is no chat's the first line counts: a plain language model runs on. A chain
        of which either step hit the token limit has finish_reason "length".
        """
        chain = self.clean(completion)
        if follow_up is None:
            return chain
        is_chat = follow_up_request.is_chat
        answer = trim(follow_up) if is_chat else end_at(follow_up, _BEHIND_FIRST_LINE)
        cut = "length" in (chain.finish_reason, answer.finish_reason)
        bridge = certain(_bridge(answer.text, is_chat))
        return join([chain, bridge, answer], "length" if cut else answer.finish_reason)


def messages(turns: Iterable[tuple[str, str]]) -> Messages:
    """(role, content) pairs as messages of a chat."""
    return tuple({"role": role, "content": content} for role, content in turns)


def _bridge(answer: str, is_chat: bool) -> str:
    """What stands between chain and answer: a chat may have answered in a whole sentence."""
    if is_chat and ANSWER_MARKER.search(answer):
        return "\n"
    return f"\n{BRIDGE}" + " " * (not answer.startswith(" "))
