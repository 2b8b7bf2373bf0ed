"""Calls of a server that speaks OpenAI's API: retries, errors, and a key that nothing else sees."""

import email.utils
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import openai
import stamina
import stamina.instrumentation

from cot_flax.errors import UserError
from cot_flax.teacher.failures import NotNow, of_status

RETRIES_IN_SILENCE = 3  # From this one on, a retry of the same request is a warning.

_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


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
