"""A teacher behind any server that speaks OpenAI's API: vLLM, llama.cpp, OpenAI itself.

Under it a connection: retries, errors, and a key that nothing else sees.
"""

import email.utils
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import openai
import stamina
import stamina.instrumentation

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.costs import most_tokens, tokens_counted, tokens_paid
from cot_flax.teacher.findings import Habits
from cot_flax.teacher.pace import MINUTE, Pace, Turn
from cot_flax.teacher.requests import (
    REFUSALS,
    TEACHERS_OWN,
    Busy,
    Completion,
    NotNow,
    Refused,
    Reply,
    Request,
    RequestFailed,
    Unscorable,
    no_server,
    of_status,
)
from cot_flax.teacher.tokens import read_echo, read_logprobs, read_prompt_logprobs, read_thought

RETRIES_IN_SILENCE = 3  # From this one on, a retry of the same request is a warning.
CONNECT_SECONDS = 10.0  # A server takes a connection at once, however long it then writes.
_OPENAI = "api.openai.com"
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_DEFAULTS = vars(Request(""))
# By name, for it is the library's choice which HTTP library raises them.
_NO_CONNECTION = ("ConnectError", "ConnectTimeout")
# What a choice, or the message in it, may have; where there is a content it may be null.
_CONTENTS = {"text", "content", "reasoning_content", "reasoning", "refusal", "tool_calls"}
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
            new = self.connection.host == _OPENAI
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
                elif n > 1:
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


def _smaller(n: int, message: str) -> int:
    """The largest number below `n` that a refusal of it names, else 1."""
    named = [int(number) for number in re.findall(r"(?<![\d.])\d{1,6}(?![\d.])", message)]
    return max([number for number in named if 1 <= number < n], default=1)


class Connection:
    """One server and one key. It belongs to the event loop of its first call.

    Attributes:
        host: the server's name, without the port.
        place: the server's address for messages, without any password.
        attempts: of each request, at least 1.
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
        rpm: float | None,
        tpm: float | None,
        headers: Mapping[str, str],
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
        self._secrets = [text for text in (self._key, *headers.values()) if len(text) > 3]
        has_own = self._key or "authorization" in map(str.lower, headers)
        self._headers = {} if has_own else {"Authorization": openai.Omit()}
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._key or "none",
            timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            max_retries=0,
            default_headers=headers,
        )
        self._has_answered = self._has_paused = False
        url = self._client.base_url
        self.host, self.place = url.host, f"{url.netloc.decode()}{url.path}"
        if not self._key and self.host == _OPENAI:
            remedy = f"put the key into the environment variable {key_variable}"
            raise UserError(f"no key for {self.host}", "a key", remedy)
        self.attempts = attempts
        self._retries = {
            "timeout": None,
            "wait_initial": wait_initial,
            "wait_max": wait_max,
            "wait_jitter": wait_initial,
        }
        self._pace = Pace(rpm, tpm, wait_initial=wait_initial, wait_max=wait_max, attempts=attempts)
        stamina.instrumentation.set_on_retry_hooks([_log_retry])

    async def close(self) -> None:
        """Closes what is still open to the server, in the loop that opened it."""
        await self._client.close()

    async def models(self) -> list[str]:
        """The names of the models that the server lists; none where it does not say.

        Raises:
            UserError: no server is there, or it refuses the key.
        """
        found = await self._sent(
            lambda: self._client.models.with_raw_response.list(extra_headers=self._headers)
        )
        if isinstance(found, RequestFailed):
            return []
        if isinstance(found, UserError):
            raise found
        try:
            return [model["id"] for model in json.loads(found.http_response.text)["data"]]
        except (KeyError, TypeError, ValueError):
            return []

    async def post(self, is_chat: bool, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the decoded answer, every choice of which `read_choice` can read.

        Raises:
            NotNow: all attempts are used up.
            Refused: the server refuses this request, or its answer has an unknown shape.
            UserError: no server is there, or it refuses every request (key, model, path, credit).
        """
        retries = {"attempts": self.attempts, **self._retries}
        async for attempt in stamina.retry_context(on=_when_to_retry, **retries):
            with attempt:
                answer = await self._paced(is_chat, body)
                if isinstance(answer, UserError):
                    # Raised here and not where the library's error was caught: that one may quote
                    # the key, and would hang on this one as its context.
                    raise answer
                return answer

    async def _paced(self, is_chat: bool, body: Mapping[str, Any]) -> dict[str, Any] | UserError:
        """One attempt, with as many pauses as the limits of server and user take."""
        while True:
            async with self._pace.turn(most_tokens(body)) as turn:
                answer = await self._attempt(is_chat, body, turn)
            if not isinstance(answer, Busy):
                return answer
            pause = self._pace.refused(turn, answer.retry_after)
            if pause is None:
                return answer
            is_known = self._has_paused and pause <= MINUTE
            level = logging.INFO if is_known else logging.WARNING
            text = "%s: the server's limit; all requests go again in %.1f s"
            logging.getLogger(__name__).log(level, text, answer.got, pause)
            self._has_paused = True

    async def _attempt(
        self, is_chat: bool, body: Mapping[str, Any], turn: Turn
    ) -> dict[str, Any] | UserError:
        api = self._client.chat.completions if is_chat else self._client.completions
        create = api.with_raw_response.create
        response = await self._sent(lambda: create(**body, extra_headers=self._headers), turn)
        if isinstance(response, UserError):
            return response
        answer = self.read(response.http_response.text)
        if isinstance(answer, dict):
            turn.tokens = tokens_counted(answer.get("usage")) or turn.tokens
        self._pace.answered(turn, response.headers)
        return answer

    async def _sent(
        self, call: Callable[[], Awaitable[Any]], turn: Turn | None = None
    ) -> Any | UserError:
        """The library's raw response."""
        try:
            response = await call()
            self._has_answered = True
            return response
        except openai.APIStatusError as error:
            self._has_answered = True
            if turn:
                turn.tokens = 0
            return self._status_failure(error)
        except openai.OpenAIError as error:
            cause = type(error.__cause__).__name__
            if not self._has_answered and cause in _NO_CONNECTION:
                return no_server(f"{self._client.base_url.scheme}://{self.place}", cause)
            return NotNow(f"{type(error).__name__} from {self.place}")

    def read(self, raw: str) -> dict[str, Any] | UserError:
        """The decoded answer, or what is to be raised in its place."""
        if raw.lstrip().startswith("<"):
            got = f"a page of HTML from {self.place}"
            return UserError(got, "JSON", "correct the base URL, which usually ends in /v1")
        try:
            answer = json.loads(raw)
        except ValueError:
            return NotNow(f"an answer that is cut off from {self.place}: {self._shown(raw)}")
        try:
            if "choices" not in answer and (error := answer["error"]):
                code = error.get("code")
                return self._failure(code if isinstance(code, int) else 400, raw, error)
            choices = [choice for choice in answer["choices"] if _is_readable(choice)]
            if answer["choices"] and not choices:
                read_choice(answer["choices"][0])
        except (AttributeError, KeyError, TypeError, ValueError):
            return Refused(
                "unknown_shape",
                f"an answer of an unknown shape from {self.place}: {self._shown(raw)}",
                "choices, each with a text or a message with a content",
                "ask a server that speaks OpenAI's API",
                is_paid=True,
            )
        if not choices:
            return NotNow(f"an answer without choices from {self.place}: {self._shown(raw)}")
        return answer | {"choices": choices}

    def _status_failure(self, error: openai.APIStatusError) -> UserError:
        body = error.body if isinstance(error.body, Mapping) else {}
        retry_after = _retry_after(error.response.headers)
        return self._failure(error.status_code, error.response.text, body, retry_after)

    def _failure(
        self, status: int, raw: str, error: Mapping[str, Any], retry_after: float | None = None
    ) -> UserError:
        """`error` is the object that the answer has under this name."""
        names = [error.get("type"), error.get("code") or ""]
        return of_status(
            status,
            self._shown(raw),
            place=self.place,
            key_variable=self._key_variable,
            has_key=bool(self._key),
            retry_after=retry_after,
            code="insufficient_quota" if "insufficient_quota" in names else str(names[-1]),
        )

    def _shown(self, text: str) -> str:
        """At most 300 characters on one line, without the key and the values of headers."""
        for secret in self._secrets:
            text = text.replace(secret, "(the key)")
        return " ".join(text.split())[:300]


class Choice(NamedTuple):
    """What a choice of either API says; `finish_reason` as in `Completion`."""

    text: str
    thought: str
    finish_reason: str


def read_choice(choice: Mapping[str, Any]) -> Choice:
    """Reads one choice of the completions or of the chat API.

    A content may be null (the model only thought, refused or called a tool), a text, or a list of
    chunks, of which those of type "thinking" are thought. Servers that keep reasoning apart have
    it in `reasoning_content` or `reasoning`.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it has another shape.
    """
    message = choice if choice.get("message") is None else choice["message"]
    finish_reason = (choice.get("finish_reason") or "unknown").partition(":")[0]
    # Gemini leaves the content out where it wrote none.
    if not _CONTENTS & message.keys() and finish_reason not in ("length", *REFUSALS):
        raise KeyError("content")
    text, inner = _parts(message.get("text") if message is choice else message.get("content"))
    apart = "".join(_parts(message.get("reasoning_content") or message.get("reasoning")))
    if message.get("refusal") and not text:
        finish_reason = "refusal"
    return Choice(text, "\n".join(filter(None, [apart, inner])), finish_reason)


def _is_readable(choice: Any) -> bool:
    try:
        read_choice(choice)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


def _parts(content: str | Sequence[Any] | None) -> tuple[str, str]:
    """The text and the thought of a content."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError(content)
    texts, thoughts = [], []
    for chunk in content:
        kind = "text" if isinstance(chunk, str) else chunk["type"]
        if kind == "text":
            texts.append(chunk if isinstance(chunk, str) else chunk["text"])
        elif kind == "thinking":
            thoughts.append("".join(_parts(chunk["thinking"])))
        elif kind != "reference":  # Mistral's: where in its sources a text comes from
            raise ValueError(kind)
    return "".join(texts), "".join(thoughts)


def _when_to_retry(error: Exception) -> bool | float:
    if not isinstance(error, NotNow) or isinstance(error, Busy):
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
