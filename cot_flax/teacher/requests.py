"""What is asked of a teacher, what comes back (plain values, hashed and stored), and what fails."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError

Messages = tuple[Mapping[str, str], ...]
REFUSALS = ("content_filter", "refusal")
"""Values of `Completion.finish_reason`: what was written, if anything, is no answer."""
TEACHERS_OWN = ("top_k", "min_p", "repetition_penalty")
"""Fields of `Request` of which None leaves the teacher its own."""

_NOT_NOW = (408, 409, 429)  # and all of 5xx
_NO_CREDIT = re.compile(
    r"insufficient[ _](quota|balance|credits?|funds)|exceeded your current quota"
    r"|credit balance is too low|out of credits|billing[ _]hard[ _]limit",
    re.IGNORECASE,
)
# Of a limit a minute Gemini says that the current quota was exceeded, too.
_SOON = re.compile(r"retry ?(in|after|delay)", re.IGNORECASE)
_FILTERED = re.compile(
    r"content[ _](filter|management|policy)|moderation|flagged|ResponsibleAIPolicyViolation"
    r"|data_inspection_failed|inappropriate content",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|(prompt|input) is too long|too many tokens"
    r"|max_model_len|maximum (input|model|prompt) length",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Request:
    """One call of a teacher.

    Attributes:
        prompt: the text to continue, or the messages of a chat: {"role", "content"} each.
        n: how many continuations.
        max_tokens: the most tokens of each.
        temperature: 0 is greedy.
        top_p: nucleus sampling; 1.0 is off.
        presence_penalty: as in OpenAI's API.
        frequency_penalty: as in OpenAI's API.
        stop: strings that end a continuation and are not part of it.
        top_logprobs: log-probabilities of the k likeliest tokens a position; None asks for none.
        seed: for a teacher that can be seeded.
        top_k: of the likeliest tokens one is drawn; 0 is off; None is the teacher's own.
        min_p: no token below this share of the likeliest one's probability; 0.0 is off; None is
            the teacher's own.
        repetition_penalty: 1.0 is off; None is the teacher's own.
        extra_body: fields of a server's own, put into the request as they are.
        done: how many continuations of equal content were asked for before, from which these are
            to differ.
    """

    prompt: str | Messages
    n: int = 1
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    extra_body: Mapping[str, Any] | None = None
    done: int = 0

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    def key(self, teacher: str) -> str:
        """32 hex digits that name the content of this call to the teacher of that name.

        Content is what a continuation depends on: prompt and settings, not how many are asked for.
        A setting at its default is no part of it, so that a later version's new ones change no key.
        """
        defaults = vars(Request(""))
        given = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        content = {"teacher": teacher, **given, "prompt": self.prompt, "n": 1, "done": 0}
        dumped = json.dumps(content, sort_keys=True)
        return hashlib.sha256(dumped.encode(errors="surrogatepass")).hexdigest()[:32]

    def is_answered_by(self, completion: "Completion") -> bool:
        """Whether a completion has what was asked for: a text or thought, log-probabilities.

        An empty text is an answer where the same call would only write it again.
        """
        if completion.finish_reason in REFUSALS:
            return True
        is_empty = not (completion.text or completion.thought)
        if is_empty and completion.finish_reason == "stop" and self.temperature > 0:
            return False
        return self.top_logprobs is None or completion.logprobs is not None


@dataclass(frozen=True)
class Completion:
    """One continuation.

    Attributes:
        text: what was written, without the prompt and without the stop string.
        logprobs: of its tokens, or None where the teacher gave none that fit the text.
        finish_reason: "stop", "length", or the API's own.
        logprob_problem: why it has no log-probabilities though they were asked for, by name.
        thought: what the teacher wrote before the text and returned apart from it.
        thought_logprobs: of its tokens, or None.
    """

    text: str
    logprobs: Logprobs | None
    finish_reason: str
    logprob_problem: str = ""
    thought: str = ""
    thought_logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to a Request: its completions, and what was paid for (tokens)."""

    completions: Sequence[Completion]
    prompt_tokens: int
    completion_tokens: int


class Teacher(Protocol):
    """Anything that answers requests: a server, a checkpoint of ours, a Hugging Face model.

    A UserError ends the whole run. A `Refused` leaves out one request and its chains, an
    `Unscorable` the log-probabilities of one text; any other `RequestFailed` leaves the run to be
    started again.
    """

    name: str

    async def complete(self, request: Request) -> Reply:
        """Answers one request, with one completion at least and `n` at most."""
        ...

    async def score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        """Gives the log-probabilities of `text` after `prompt`."""
        ...

    async def close(self) -> None:
        """Lets go of what it holds; it is not asked again."""
        ...


class RequestFailed(UserError):
    """This request has no answer; others may have one. A plain UserError concerns them all.

    Attributes:
        got: of the message.
        remedy: of the message.
    """

    def __init__(self, got: str, expected: str, remedy: str):
        super().__init__(got, expected, remedy)
        self.got, self.remedy = got, remedy


class NotNow(RequestFailed):
    """The same request may succeed later.

    Attributes:
        retry_after: seconds that the server asks to wait, or None.
    """

    def __init__(self, got: str, retry_after: float | None = None):
        super().__init__(got, "an answer from the server", "run the same command again later")
        self.retry_after = retry_after


class Busy(NotNow):
    """The server's limit of requests or tokens a minute is reached: no fault of this request."""


class Refused(RequestFailed):
    """The same request would be refused again, others may not be.

    Attributes:
        reason: a name to count by.
        is_paid: such an answer was paid for.
        said: the server's own words, if there are any.
    """

    def __init__(
        self,
        reason: str,
        got: str,
        expected: str = "a request that the server accepts",
        remedy: str = "change what it complains of",
        *,
        is_paid: bool = False,
        said: str = "",
    ):
        super().__init__(got, expected, remedy)
        self.reason, self.is_paid, self.said = reason, is_paid, said


class Unscorable(Refused):
    """The teacher cannot say how likely this text is."""

    def __init__(
        self,
        reason: str,
        got: str = "",
        remedy: str = "leave it out",
        *,
        is_paid: bool = False,
    ):
        got = got or f"no log-probabilities: {reason}"
        super().__init__(reason, got, "those of the text", remedy, is_paid=is_paid)


def no_server(address: str, cause: str) -> UserError:
    """The exception where nothing takes a connection."""
    return UserError(
        f"no server at {address} ({cause})",
        "one that speaks OpenAI's API",
        "start it, such as `vllm serve MODEL`, or correct the base URL",
    )


def of_status(
    status: int,
    message: str,
    *,
    place: str,
    key_variable: str,
    has_key: bool = True,
    retry_after: float | None = None,
    code: str = "",
) -> UserError:
    """The exception for an HTTP status that is no success.

    Args:
        message: of the server; it is shown, but not where it may quote the key (401, 403).
        place: the server's address.
        key_variable: the environment variable of the key.
        has_key: whether one was sent.
        retry_after: seconds that the server asks to wait, or None.
        code: the error's own name for itself, "" without one.
    """
    got = f"HTTP {status} from {place}"
    about = f"{code} {message}"
    if code == "insufficient_quota" or status == 402 or _has_no_credit(status, about):
        return UserError(f"no credit left at {place}", "some credit", "see the account's limits")
    if status == 403 and _FILTERED.search(about):
        return Refused("content_filter", got)
    if status in (401, 403):
        if not has_key:
            got = f"{got}, which was sent no key"
        remedy = f"put such a key in the environment variable {key_variable}"
        return UserError(got, "a key that may use this model", remedy)
    got = f"{got}: {message}"
    if status == 404:
        remedy = (
            "check the model's name and the base URL, which usually ends in /v1; use --chat where "
            "the server has the chat API alone"
        )
        return UserError(got, "a server that has this model and this path", remedy)
    if status not in _NOT_NOW and (status == 413 or _TOO_LONG.search(about)):
        remedy = "show fewer exemplars, or serve the model with a longer context"
        return Refused("prompt_too_long", got, "a prompt that the model can hold", remedy)
    if status == 429:
        return Busy(got, retry_after)
    if status in _NOT_NOW or status >= 500:
        return NotNow(got, retry_after)
    reason = "content_filter" if _FILTERED.search(about) else f"http_{status}"
    return Refused(reason, got, said=message)


def _has_no_credit(status: int, about: str) -> bool:
    return (
        status in (400, 403, 429)
        and _NO_CREDIT.search(about) is not None
        and not _SOON.search(about)
    )
