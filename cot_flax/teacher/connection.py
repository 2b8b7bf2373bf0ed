"""One server that speaks OpenAI's API: retries, pace, errors, and a key that nothing else sees."""

import email.utils
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import openai
import stamina
import stamina.instrumentation

from cot_flax.errors import UserError
from cot_flax.teacher.costs import most_tokens, tokens_counted
from cot_flax.teacher.pace import MINUTE, Pace, Turn
from cot_flax.teacher.requests import (
    REFUSALS,
    Busy,
    NotNow,
    Refused,
    RequestFailed,
    no_server,
    of_status,
)

RETRIES_IN_SILENCE = 3  # From this one on, a retry of the same request is a warning.
CONNECT_SECONDS = 10.0  # A server takes a connection at once, however long it then writes.
OPENAI = "api.openai.com"
# By name, for it is the library's choice which HTTP library raises them.
_NO_CONNECTION = ("ConnectError", "ConnectTimeout")
# What a choice, or the message in it, may have; where there is a content it may be null.
_CONTENTS = {"text", "content", "reasoning_content", "reasoning", "refusal", "tool_calls"}


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
        if not self._key and self.host == OPENAI:
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
