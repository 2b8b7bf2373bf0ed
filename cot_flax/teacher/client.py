"""A teacher behind any server that speaks OpenAI's API: vLLM, llama.cpp, OpenAI itself.

Under it a connection: retries, errors, and a key that nothing else sees.
"""

import email.utils
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import openai
import stamina
import stamina.instrumentation

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.requests import (
    Completion,
    NotNow,
    Reply,
    Request,
    RequestFailed,
    Unscorable,
    of_status,
)
from cot_flax.teacher.tokens import read_echo, read_logprobs, read_prompt_logprobs

RETRIES_IN_SILENCE = 3  # From this one on, a retry of the same request is a warning.
_OPENAI = "api.openai.com"
_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
_DEFAULTS = vars(Request(""))
# How to get the log-probabilities of a given text: plainly, for servers that must write at
# least one token, and for a vLLM that refuses `echo`.
_SCORING_OPTIONS = (
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
        self._scoring_options: Sequence[Mapping[str, Any]] = _SCORING_OPTIONS
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
        for options in self._scoring_options:
            choice = await self._scored_choice(options, prompt + text, top_logprobs)
            if choice is not None:
                self._scoring_options, self._has_scored = (options,), True
                return _scores(choice, prompt, text)
        if self._has_scored:
            raise Unscorable("refused")
        raise UserError(
            f"no log-probabilities of a given text from {self._connection.place}",
            "a server with `echo` or `prompt_logprobs` in its completions API",
            "serve the model with vLLM, or score with a checkpoint",
        )

    async def _scored_choice(
        self, options: Mapping[str, Any], whole: str, k: int
    ) -> Mapping[str, Any] | None:
        """None: the server refuses these options, or its answer shows that it knows them not."""
        body = {"model": self.name, "prompt": whole, "temperature": 0.0, "logprobs": k, **options}
        if "echo" not in options:
            body["extra_body"] = {"prompt_logprobs": k}
        try:
            (choice, *_) = (await self._connection.post(False, body))["choices"]
        except NotNow:
            raise
        except RequestFailed:
            return None
        if "echo" not in options:
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


class Connection:
    """One server and one key. It belongs to the event loop of its first call.

    Attributes:
        host: the server's name, without the port.
        place: the server's address for messages, without any password.
    """

    def __init__(
        self,
        base_url: str | None,
        key_variable: str,
        *,
        timeout: float,
        attempts: int,
        wait_initial: float,
        wait_max: float,
    ):
        """See `OpenAITeacher`."""
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            got = f"characters in {key_variable} that no key has"
            raise UserError(got, "printable ASCII", "put the key into that variable again")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            remedy = "write it like http://localhost:8000/v1"
            raise UserError(f"the base URL {base_url!r}", "http:// or https:// before it", remedy)
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=self._key or "none", timeout=timeout, max_retries=0
        )
        url = self._client.base_url
        self.host, self.place = url.host, f"{url.netloc.decode()}{url.path}"
        if not self._key and self.host not in _LOCAL:
            remedy = f"put the key into the environment variable {key_variable}"
            raise UserError(f"no key for {self.host}", "a key", remedy)
        self._retries = {
            "attempts": attempts,
            "timeout": None,
            "wait_initial": wait_initial,
            "wait_max": wait_max,
            "wait_jitter": wait_initial,
        }
        stamina.instrumentation.set_on_retry_hooks([_log_retry])

    async def close(self) -> None:
        """Closes what is still open to the server, in the loop that opened it."""
        await self._client.close()

    async def post(self, is_chat: bool, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the decoded answer, of which it is known that every choice has a text.

        Raises:
            NotNow: all attempts are used up.
            RequestFailed: the server refuses this request.
            UserError: the server refuses every request (key, model, path, credit).
        """
        async for attempt in stamina.retry_context(on=_when_to_retry, **self._retries):
            with attempt:
                answer = await self._attempt(is_chat, body)
                if isinstance(answer, UserError):
                    # Raised here and not where the library's error was caught: that one may quote
                    # the key, and would hang on this one as its context.
                    raise answer
                return answer

    async def _attempt(self, is_chat: bool, body: Mapping[str, Any]) -> dict[str, Any] | UserError:
        api = self._client.chat.completions if is_chat else self._client.completions
        try:
            response = await api.with_raw_response.create(**body)
            return self._answer(response.http_response.text)
        except openai.APIStatusError as error:
            return self._status_failure(error)
        except openai.OpenAIError as error:
            return NotNow(f"{type(error).__name__} from {self.place}")

    def _answer(self, raw: str) -> dict[str, Any] | NotNow:
        try:
            answer = json.loads(raw)
            texts = [text_of(choice) for choice in answer["choices"]]
        except (ValueError, KeyError, TypeError):
            texts = []
        if not texts or not all(isinstance(text, str) for text in texts):
            return NotNow(f"an answer that cannot be read from {self.place}: {self._shown(raw)}")
        return answer

    def _status_failure(self, error: openai.APIStatusError) -> UserError:
        if error.code == "insufficient_quota":
            remedy = "see the account's limits"
            return UserError(f"no credit left at {self.place}", "some credit", remedy)
        return of_status(
            error.status_code,
            self._shown(error.response.text),
            place=self.place,
            key_variable=self._key_variable,
            retry_after=_retry_after(error.response.headers),
        )

    def _shown(self, text: str) -> str:
        """At most 300 characters on one line, without the key."""
        if self._key:
            text = text.replace(self._key, "(the key)")
        return " ".join(text.split())[:300]


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of one choice of either API."""
    if "message" not in choice:
        return choice["text"]
    # The content is null where a model only refuses or only calls a tool.
    return choice["message"]["content"] or ""


def _when_to_retry(error: Exception) -> bool | float:
    if not isinstance(error, NotNow):
        return False
    return True if error.retry_after is None else error.retry_after


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; the header holds them or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    if value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    level = logging.INFO if details.retry_num < RETRIES_IN_SILENCE else logging.WARNING
    text = "%s; again in %.1f s"
    logging.getLogger(__name__).log(level, text, details.caused_by, details.wait_for)
