"""A teacher behind any server that speaks OpenAI's API: vLLM, llama.cpp, OpenAI itself."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.connection import OPENAI, Connection, read_choice
from cot_flax.teacher.costs import tokens_paid
from cot_flax.teacher.findings import Habits
from cot_flax.teacher.requests import (
    TEACHERS_OWN,
    Completion,
    Refused,
    Reply,
    Request,
    Unscorable,
)
from cot_flax.teacher.tokens import read_echo, read_logprobs, read_prompt_logprobs, read_thought

_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_DEFAULTS = vars(Request(""))
# Of reading scores: another of the options below may do better.
_NO_SCORES = ("not_given", "unknown_shape", "token_ids", "tokens_do_not_join", "shifted")
_COUNTS = ("prompt_tokens", "completion_tokens")
SCORING = {
    # llama-cpp-python takes 0 tokens for no limit; others refuse 1 with an echo, or 0.
    "echo and one token": {"echo": True, "max_tokens": 1},
    "echo": {"echo": True, "max_tokens": 0},
    "prompt_logprobs": {"max_tokens": 1},
}
"""How to get the log-probabilities of a given text, by name."""


class OpenAITeacher:
    """A `Teacher` over HTTP. It belongs to the event loop of its first request.

    Every request is repeated with a growing wait after 408, 409, 5xx, a timeout, a lost connection
    or an answer that was cut off; Retry-After is honoured. After 429 all requests pause, and none
    is given up while others are answered. A server that has never
    answered is not waited for. The key is sent to the server and appears nowhere else.

    Attributes:
        name: the model's, as the server is asked for it.
        connection: to the server.
        habits: of the server, as far as they are known by now.
        paid: requests that were answered, and their prompt_tokens and completion_tokens.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 300.0,
        attempts: int = 8,
        wait_initial: float = 1.0,
        wait_max: float = 60.0,
        rpm: float | None = None,
        tpm: float | None = None,
        headers: Mapping[str, str] | None = None,
        habits: Habits | None = None,
    ):
        """Sends nothing yet.

        Args:
            model: the name that the server knows it by.
            base_url: of the server, such as http://localhost:8000/v1; None is OpenAI's.
            key_variable: the environment variable that holds the key.
            timeout: seconds until a request without an answer is given up.
            attempts: of each request, at least 1.
            wait_initial: seconds before the second attempt; they double with every further one.
            wait_max: seconds, the most between two attempts unless the server asks for more.
            rpm: requests a minute, at most; None leaves it to the server.
            tpm: tokens a minute, at most.
            headers: more of them, sent with every request.
            habits: of the server, where they are known.

        Raises:
            UserError: no key for OpenAI's own server, or none that can be one; a base URL without
                http(s)://.
        """
        self.name = model
        self.connection = Connection(
            base_url,
            key_variable,
            timeout=timeout,
            attempts=attempts,
            wait_initial=wait_initial,
            wait_max=wait_max,
            rpm=rpm,
            tpm=tpm,
            headers=headers or {},
        )
        self.habits = replace(habits or Habits())
        if not self.habits.limit_name:
            # OpenAI's newer models refuse the old name; other servers may not know the new one.
            new = self.connection.host == OPENAI
            self.habits.limit_name = _NEW_LIMIT if new else _LIMIT
        self.paid: Counter[str] = Counter()
        self._model_names: set[str] = set()
        self._has_scored = False

    async def close(self) -> None:
        """Closes the connections."""
        await self.connection.close()

    async def complete(self, request: Request) -> Reply:
        """Answers one request, with fewer completions where a server ignores or refuses `n`.

        Raises:
            Refused: the server refuses this request for good.
            NotNow: all attempts are used up.
            UserError: the server refuses every request (key, model, path, credit).
        """
        answer = await self.choices(request)
        reply = self._reply(answer, request)
        self.paid.update(
            prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens
        )
        return reply

    def read(self, raw: str, request: Request) -> Reply:
        """Reads an answer that came by another way than a request of ours; raises as `complete`."""
        answer = self.connection.read(raw)
        if isinstance(answer, UserError):
            raise answer
        return self._reply(answer, request)

    def _reply(self, answer: Mapping[str, Any], request: Request) -> Reply:
        completions = [self._completion(choice, request) for choice in answer["choices"]]
        kept = tuple(completions[: request.n])
        return Reply(kept, *tokens_paid(request, completions, answer.get("usage")))

    async def choices(self, request: Request) -> dict[str, Any]:
        """An answer as it came, with as many of the `n` as the server takes at a time.

        What a server refuses in the form of the request, not in its content, is learned: another
        name of the token limit, a smaller `n`. Raises as `complete` does.
        """
        habits = self.habits
        most = "most_n" if request.temperature else "most_greedy_n"
        n, other_limit = min(request.n, getattr(habits, most) or request.n), False
        while True:
            body = self._body(request, n, other_limit)
            try:
                answer = await self.connection.post(request.is_chat, body)
            except Refused as error:
                if not error.reason.startswith("http_"):
                    raise
                if _NEW_LIMIT in error.got and request.is_chat and not other_limit:
                    other_limit = True
                elif "top_p" in error.got and request.top_p == 1 and habits.sends_top_p:
                    habits.sends_top_p = False
                elif n > 1 and not _is_of_setting(error.said, request):
                    # Some servers take no n above 1 (vLLM where it is greedy) or 4 (llama.cpp).
                    n = _smaller(n, error.said)
                else:
                    raise
                continue
            if n < request.n:
                setattr(habits, most, n)
            if other_limit:
                habits.limit_name = _other(habits.limit_name)
            self._note(answer)
            return answer

    def _note(self, answer: Mapping[str, Any]) -> None:
        """Counts it; says so where another model answers than before."""
        self.paid["requests"] += 1
        name = answer.get("model")
        if not isinstance(name, str) or name in self._model_names:
            return
        if self._model_names:
            known = ", ".join(sorted(self._model_names))
            text = "%s answers as model %r, where it answered as %s before"
            logging.getLogger(__name__).warning(text, self.connection.place, name, known)
        self._model_names.add(name)

    async def score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        """Scores `text` after `prompt` through the completions API.

        Raises:
            Unscorable: not this text: its tokens do not fit the text, or the server refuses it; or
                none, where the server scores no given text.
            NotNow: all attempts are used up.
            UserError: the server refuses every request.
        """
        reasons, known = [], self.habits.scoring
        for name in [known] if known else SCORING:
            logprobs, reason = await self._scored(SCORING[name], prompt, text, top_logprobs)
            if logprobs is not None:
                self.habits.scoring, self._has_scored = name, True
                return logprobs
            reasons.append(reason)
        of_text = [reason for reason in reasons if reason not in (*_NO_SCORES, "refused")]
        if of_text or self._has_scored or set(reasons) == {"refused"}:
            raise Unscorable((of_text or reasons)[0])
        raise Unscorable(
            reasons[0],
            f"no log-probabilities of a given text from {self.connection.place} "
            f"({', '.join(dict.fromkeys(reasons))})",
            "serve the model with vLLM, or score with a checkpoint",
            is_paid=True,
        )

    async def _scored(
        self, options: Mapping[str, Any], prompt: str, text: str, k: int
    ) -> tuple[Logprobs | None, str]:
        """The scores, or why these options give none."""
        whole = prompt + text
        body = {"model": self.name, "prompt": whole, "temperature": 0.0, "logprobs": k, **options}
        if "echo" not in options:
            body["extra_body"] = {"prompt_logprobs": k}
        try:
            answer = await self.connection.post(False, body)
        except Refused as error:
            return None, "refused" if error.reason.startswith("http_") else error.reason
        self._note(answer)
        usage = answer.get("usage") or {}
        self.paid.update({name: usage.get(name) or 0 for name in _COUNTS})
        (choice, *_) = answer["choices"]
        if "echo" not in options:
            return read_prompt_logprobs(choice.get("prompt_logprobs"), prompt, text)
        if not read_choice(choice).text.startswith(whole):
            return None, "not_given"
        return read_echo(choice.get("logprobs"), prompt, text)

    def body(self, request: Request) -> dict[str, Any]:
        """A request as the API takes it."""
        body = self._body(request, request.n, other_limit=False)
        return body | body.pop("extra_body", {})

    def _body(self, request: Request, n: int, other_limit: bool) -> dict[str, Any]:
        """The call for `n` completions, the fields that OpenAI does not have in `extra_body`.

        top_p is sent though 1 is OpenAI's default: a server may have another one, such as that of
        the model's generation_config.
        """
        body = {"model": self.name, "n": n, "temperature": request.temperature}
        if self.habits.sends_top_p or request.top_p != 1:
            body["top_p"] = request.top_p
        for name in ("presence_penalty", "frequency_penalty", "stop", "seed"):
            if (value := getattr(request, name)) != _DEFAULTS[name]:
                body[name] = value
        if request.seed is not None:
            body["seed"] = request.seed + request.done
        own = {name: getattr(request, name) for name in TEACHERS_OWN}
        extra = {name: value for name, value in own.items() if value is not None}
        if extra := extra | dict(request.extra_body or {}):
            body["extra_body"] = extra
        k = request.top_logprobs
        if not request.is_chat:
            body |= {"prompt": request.prompt, _LIMIT: request.max_tokens}
            return body if k is None else body | {"logprobs": k}
        limit = _other(self.habits.limit_name) if other_limit else self.habits.limit_name
        body |= {"messages": request.prompt, limit: request.max_tokens}
        return body if k is None else body | {"logprobs": True, "top_logprobs": k}

    def _completion(self, choice: Mapping[str, Any], request: Request) -> Completion:
        read, logprobs, problem, of_thought = read_choice(choice), None, "", None
        if request.top_logprobs is not None:
            record = choice.get("logprobs")
            logprobs, problem = read_logprobs(record, read.text, read.thought)
            of_thought = read_thought(record, read.thought)
        return Completion(
            read.text, logprobs, read.finish_reason, problem, read.thought, of_thought
        )


def _other(limit_name: str) -> str:
    return _LIMIT if limit_name == _NEW_LIMIT else _NEW_LIMIT


def _is_of_setting(message: str, request: Request) -> bool:
    """Whether a refusal names a setting of the request that few servers have, and not `n`."""
    given = [name for name in TEACHERS_OWN if getattr(request, name) is not None]
    return any(name in message for name in given) and not re.search(r"\bn\b", message)


def _smaller(n: int, message: str) -> int:
    """The largest number below `n` that a refusal of it names, else 1."""
    named = [int(number) for number in re.findall(r"(?<![\d.])\d{1,6}(?![\d.])", message)]
    return max([number for number in named if 1 <= number < n], default=1)
