"""A teacher behind any server that speaks OpenAI's API: vLLM, llama.cpp, OpenAI itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.connection import Connection, text_of
from cot_flax.teacher.failures import NotNow, RequestFailed, Unscorable
from cot_flax.teacher.requests import Completion, Reply, Request
from cot_flax.teacher.tokens import read_echo, read_logprobs, read_prompt_logprobs

_OPENAI = "api.openai.com"
_DEFAULTS = vars(Request(""))
# How to get the log-probabilities of a given text: the plain way, for servers that must write at
# least one token, and for a vLLM that refuses `echo`.
_WAYS_TO_SCORE = (
    {"echo": True, "max_tokens": 0},
    {"echo": True, "max_tokens": 1},
    {"max_tokens": 1},
)


class OpenAITeacher:
    """A `Teacher` over HTTP. It belongs to the event loop of its first request.

    Every request is repeated with a growing wait after 408, 409, 429, 5xx, a timeout, a lost
    connection or an answer that cannot be read; Retry-After is honoured. The key is sent to the
    server and appears nowhere else.

    Attributes:
        name: the model's.
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

        Raises:
            UserError: no key for a server that is not on this machine, or none that can be one; a
                base URL without http(s)://.
        """
        self.name = model
        self._connection = Connection(
            base_url,
            key_variable,
            timeout=timeout,
            attempts=attempts,
            wait_initial=wait_initial,
            wait_max=wait_max,
        )
        self._ways_to_score: Sequence[Mapping[str, Any]] = _WAYS_TO_SCORE
        self._has_scored = False

    async def close(self) -> None:
        """Closes the connections."""
        await self._connection.close()

    async def complete(self, request: Request) -> Reply:
        """Answers one request; asks again for what is missing where a server ignores `n`.

        Raises:
            RequestFailed: the server refuses this request, or all attempts are used up.
            UserError: the server refuses every request (key, model, path, credit).
        """
        completions: list[Completion] = []
        paid: Counter[str] = Counter()
        while len(completions) < request.n:
            body = self._body(request, len(completions))
            answer = await self._connection.post(request.is_chat, body)
            completions += [self._completion(choice, request) for choice in answer["choices"]]
            paid.update(_tokens_used(answer))
        kept = tuple(completions[: request.n])
        return Reply(kept, paid["prompt_tokens"], paid["completion_tokens"])

    async def score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        """Scores `text` after `prompt` through the completions API.

        Raises:
            Unscorable: not this text: its tokens do not fit the text, or the server refuses it.
            RequestFailed: all attempts are used up.
            UserError: the server scores no given text, or refuses every request.
        """
        for way in self._ways_to_score:
            choice = await self._scored_choice(way, prompt + text, top_logprobs)
            if choice is not None:
                self._ways_to_score, self._has_scored = (way,), True
                return _scores(choice, prompt, text)
        if self._has_scored:
            raise Unscorable("refused")
        raise UserError(
            f"no log-probabilities of a given text from {self._connection.place}",
            "a server with `echo` or `prompt_logprobs` in its completions API",
            "serve the model with vLLM, or score with a checkpoint",
        )

    async def _scored_choice(
        self, way: Mapping[str, Any], whole: str, k: int
    ) -> Mapping[str, Any] | None:
        """None: the server refuses this way, or its answer shows that it does not know it."""
        body = {"model": self.name, "prompt": whole, "temperature": 0.0, "logprobs": k, **way}
        if "echo" not in way:
            body["extra_body"] = {"prompt_logprobs": k}
        try:
            (choice, *_) = (await self._connection.post(False, body))["choices"]
        except NotNow:
            raise
        except RequestFailed:
            return None
        if "echo" not in way:
            return choice if choice.get("prompt_logprobs") else None
        return choice if text_of(choice).startswith(whole) and choice.get("logprobs") else None

    def _body(self, request: Request, done: int) -> dict[str, Any]:
        """The call for what is missing after `done` completions."""
        body = {"model": self.name, "n": request.n - done, "temperature": request.temperature}
        for name in ("top_p", "presence_penalty", "frequency_penalty", "stop", "seed"):
            if (value := getattr(request, name)) != _DEFAULTS[name]:
                body[name] = value
        if request.seed is not None:
            body["seed"] = request.seed + done
        k = request.top_logprobs
        if not request.is_chat:
            body |= {"prompt": request.prompt, "max_tokens": request.max_tokens}
            return body if k is None else body | {"logprobs": k}
        # OpenAI's newer models refuse the old name; other servers may not know the new one.
        new = self._connection.host == _OPENAI
        body["max_completion_tokens" if new else "max_tokens"] = request.max_tokens
        body["messages"] = request.prompt
        return body if k is None else body | {"logprobs": True, "top_logprobs": k}

    def _completion(self, choice: Mapping[str, Any], request: Request) -> Completion:
        text, logprobs, problem = text_of(choice), None, ""
        if request.top_logprobs is not None:
            logprobs, problem = read_logprobs(choice.get("logprobs"), text)
        return Completion(text, logprobs, choice.get("finish_reason") or "unknown", problem)


def _scores(choice: Mapping[str, Any], prompt: str, text: str) -> Logprobs:
    if choice.get("prompt_logprobs"):
        logprobs, reason = read_prompt_logprobs(choice["prompt_logprobs"], prompt, text)
    else:
        logprobs, reason = read_echo(choice["logprobs"], prompt, text)
    if logprobs is None:
        raise Unscorable(reason)
    return logprobs


def _tokens_used(answer: Mapping[str, Any]) -> dict[str, int]:
    usage = answer.get("usage") or {}
    return {name: usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
