"""OpenAI's completions and chat completions: requests read and checked, answers written.

Pure: from objects of JSON to objects of JSON.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cot_flax.generation.generator import Scores
from cot_flax.text.tokenizers import Tokenizer

DEFAULT_MAX_TOKENS = 16  # of a completion, as OpenAI's; a chat has all that the server allows
MOST_N, MOST_STOPS = 128, 4
TOP_K = 20
"""The most alternatives a position; so many are always scored, so that one program is compiled."""
_MOST_LOGPROBS = {False: 5, True: TOP_K}  # by whether it is a chat
_SHARED = ("model", "max_tokens", "temperature", "top_p", "n", "stream", "stop", "seed", "logprobs")
_OWN = {False: ("prompt",), True: ("messages", "max_completion_tokens", "top_logprobs")}
_WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("parallel_tool_calls", "stream_options"),
)
# What changes an answer and is not done here may only be what it is without it.
_NEUTRAL: dict[str, tuple] = {
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "response_format": ({"type": "text"}, None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "modalities": (["text"], None),
}
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


class BadRequestError(Exception):
    """A request that cannot be answered, with the status and the body of the answer."""

    def __init__(self, message: str, param: str | None = None, code=None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    @property
    def body(self) -> dict:
        return error_body(str(self), "invalid_request_error", self.param, self.code)


def error_body(message: str, kind: str, param: str | None = None, code=None) -> dict:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        prompts: texts, or ids that are closed by the end id; of a chat one, the turns.
        n: texts a prompt.
        max_tokens: of each.
        temperature: as in `Sampling`.
        top_p: likewise.
        seed: of the draws.
        stop: where one of them begins, a text ends.
        logprobs: alternatives a position; None where no log-probabilities are wanted.
        stream: tokens are sent as they come.
        usage: a stream ends with the counts.
        chat: it is one.
    """

    prompts: Sequence
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    logprobs: int | None
    stream: bool
    usage: bool
    chat: bool


def read_request(body: Any, *, chat: bool, max_tokens: int, model: str) -> Asked:
    """Reads a request.

    Args:
        max_tokens: the most that the server gives.
        model: the name of the one that it has.

    Raises:
        BadRequestError: what is wrong, and with which parameter.
    """
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    for name in body:
        if name not in (*_SHARED, *_OWN[chat], *_WITHOUT_EFFECT, *_NEUTRAL):
            raise BadRequestError(f"Unrecognized request argument supplied: {name}", name)
    for name, neutral in _NEUTRAL.items():
        if body.get(name) not in neutral:
            raise BadRequestError(f"{name} is not supported here; leave it out", name)
    if body.get("model") not in (None, model):
        message = f"The model {body['model']!r} does not exist; this server has {model!r}"
        raise BadRequestError(message, "model", "model_not_found", 404)
    limit_name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    default = max_tokens if chat else min(DEFAULT_MAX_TOKENS, max_tokens)
    seed = _number(body, "seed", None, int, -(2**63), 2**63 - 1)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    return Asked(
        prompts=[_turns(body)] if chat else _prompts(body),
        n=_number(body, "n", 1, int, 1, MOST_N),
        max_tokens=_number(body, limit_name, default, int, 1, max_tokens),
        temperature=_number(body, "temperature", 1.0, float, 0, 2),
        top_p=_number(body, "top_p", 1.0, float, 0, 1) or 1e-9,  # 0 keeps the likeliest alone
        seed=secrets.randbits(62) if seed is None else seed,
        stop=_stops(body),
        logprobs=_logprobs(body, chat),
        stream=_flag(body, "stream"),
        usage=_flag(options, "include_usage"),
        chat=chat,
    )


def _number(body: Mapping, name: str, default, kind: type, low, high) -> Any:
    value = body.get(name)
    if value is None:
        return default
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        noun = "an integer" if kind is int else "a number"
        shown = repr(value)[:80]
        raise BadRequestError(f"{name} must be {noun} from {low} to {high}, got {shown}", name)
    return kind(value)


def _flag(body: Mapping, name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise BadRequestError(f"{name} must be true or false, got {value!r}", name)
    return bool(value)


def _stops(body: Mapping) -> tuple[str, ...]:
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise BadRequestError("stop must be a text or a list of texts", "stop")
    if len(stops) > MOST_STOPS:
        raise BadRequestError(f"stop has {len(stops)} texts, at most {MOST_STOPS}", "stop")
    return tuple(stops)


def _logprobs(body: Mapping, chat: bool) -> int | None:
    most = _MOST_LOGPROBS[chat]
    if not chat:
        return _number(body, "logprobs", None, int, 0, most)
    wanted = _flag(body, "logprobs")
    top = _number(body, "top_logprobs", None, int, 0, most)
    if top is not None and not wanted:
        raise BadRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    return (top or 0) if wanted else None


def _prompts(body: Mapping) -> list:
    prompt = body.get("prompt")
    several = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
    if not several or not all(isinstance(p, str) or _is_ids(p) for p in several):
        message = "prompt must be a text, a list of ids, or a list of these"
        raise BadRequestError(message, "prompt")
    return several


def _is_ids(value) -> bool:
    ids = isinstance(value, list) and value
    return bool(ids) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


def _turns(body: Mapping) -> list[tuple[str, str]]:
    """(role, text): what the system says first, then user and assistant by turns."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list with at least one message", "messages")
    turns = []
    for i, message in enumerate(messages):
        role = _ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
        if role is None:
            known = ", ".join(_ROLES)
            raise BadRequestError(f"messages[{i}] must have a role of {known}", "messages")
        turns.append((role, _content(message.get("content"), i)))
    talk = [role for role, _ in turns if role != "system"]
    if talk != ["user", "assistant"] * (len(talk) // 2) + ["user"]:
        message = "messages must be of user and assistant by turns, the last one of the user"
        raise BadRequestError(message, "messages")
    return turns


def _content(content: Any, place: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    known = [p for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    texts = [p["text"] for p in known if isinstance(p.get("text"), str)]
    if len(texts) < len(parts):
        raise BadRequestError(f"messages[{place}].content must be text", "messages")
    return "".join(texts)


@dataclass
class Choice:
    """A text as it grows.

    What may yet become a stop text, or is half a character, is held back.

    Attributes:
        index: its place in the answer.
        prompt: ids, with the end.
        ids: of the tokens so far, none behind the one in which the text ends.
        text: what was given out.
        reason: why it ended, once it has.
        reported: tokens whose log-probabilities were given out.
    """

    index: int
    prompt: list[int]
    tokenizer: Tokenizer
    stop: tuple[str, ...]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str | None = None
    reported: int = 0

    def grow(self, ids: list[int], reason: str | None) -> str:
        """Takes all ids so far; returns the text that is new and safe to give out."""
        self.ids = ids
        whole = self.tokenizer.decode(ids)
        ends = [at for at in map(whole.find, self.stop) if at >= 0]
        if ends:
            whole, reason = whole[: min(ends)], "stop"
            starts = _starts(self.tokenizer.surfaces(ids))
            self.ids = ids[: sum(start < len(whole) for start in starts)]
        safe = whole if reason else _safe(whole, self.stop)
        new = safe[len(self.text) :] if reason or safe.startswith(self.text) else ""
        self.text += new
        self.reason = reason
        return new

    def logprobs(self, scores: Scores, top: int, chat: bool) -> dict | None:
        """Of the tokens that were given out since the last call; None where there are none.

        Args:
            scores: of all ids so far.
        """
        tokens = self.tokenizer.surfaces(self.ids)
        starts = _starts(tokens)
        given = [
            i
            for i, token in enumerate(tokens)
            if i >= self.reported and (self.reason or starts[i] + len(token) <= len(self.text))
        ]
        self.reported += len(given)
        rows = [
            (tokens[i], starts[i], float(scores.logprobs_T[i]), self._top(scores, i, top))
            for i in given
        ]
        if not rows:
            return None
        return _content_shape(rows) if chat else _token_shape(rows)

    def _top(self, scores: Scores, i: int, top: int) -> dict[str, float]:
        """By text, the likeliest first; of two ids of one text the likelier stays."""
        found: dict[str, float] = {}
        ids, logprobs = scores.top_ids_TK[i].tolist(), scores.top_logprobs_TK[i].tolist()
        for id, logprob in zip(ids, logprobs, strict=True):
            text = self.tokenizer.id_to_text(id)
            text = text if i else text.lstrip(" ")  # a text does not begin with a space
            if math.isfinite(logprob) and len(found) < top:
                found.setdefault(text, logprob)
        return found


def _starts(tokens: Sequence[str]) -> list[int]:
    starts, at = [], 0
    for token in tokens:
        starts.append(at)
        at += len(token)
    return starts


def _safe(text: str, stops: Sequence[str]) -> str:
    """Without an end that may be half a character, or the beginning of a stop text."""
    text = text.rstrip("\ufffd")
    held = [k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])]
    return text[: len(text) - max(held, default=0)]


def _token_shape(rows) -> dict:
    return {
        "tokens": [token for token, *_ in rows],
        "token_logprobs": [logprob for _, _, logprob, _ in rows],
        "top_logprobs": [top for *_, top in rows],
        "text_offset": [start for _, start, *_ in rows],
    }


def _content_shape(rows) -> dict:
    def entry(token, logprob):
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [
        entry(token, logprob) | {"top_logprobs": [entry(*pair) for pair in top.items()]}
        for token, _, logprob, top in rows
    ]
    return {"content": content, "refusal": None}


def usage_of(choices: Sequence[Choice], n: int) -> dict[str, int]:
    """Tokens of the prompts, each once, and of all texts."""
    read = sum(len(choice.prompt) for choice in choices[::n])
    written = sum(len(choice.ids) for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


@dataclass(frozen=True)
class Envelope:
    """What all parts of one answer have in common."""

    id: str
    created: int
    model: str
    chat: bool

    def answer(self, choices: Sequence[tuple[Choice, dict | None]], usage: dict) -> dict:
        """The whole answer, of choices with their log-probabilities."""
        rows = [
            self._choice(choice.index, choice.text, logprobs, choice.reason)
            for choice, logprobs in choices
        ]
        return self._wrap(rows, "chat.completion" if self.chat else "text_completion", usage)

    def _choice(self, index, text, logprobs, reason) -> dict:
        row = {"index": index, "logprobs": logprobs, "finish_reason": reason}
        if self.chat:
            return row | {"message": {"role": "assistant", "content": text, "refusal": None}}
        return row | {"text": text}

    def first(self, index: int) -> dict:
        """The chunk that opens a choice of a chat."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def part(self, choice: Choice, new: str, logprobs: dict | None) -> dict:
        """A chunk with new text, and with the reason where the text has ended."""
        if self.chat:
            return self._chunk(choice.index, {"content": new}, logprobs, choice.reason)
        row = self._choice(choice.index, new, logprobs, choice.reason)
        return self._wrap([row], "text_completion", None)

    def counts(self, usage: dict) -> dict:
        """The last chunk of a stream that asked for usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._wrap([], kind, usage)

    def _chunk(self, index, delta, logprobs, reason) -> dict:
        row = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._wrap([row], "chat.completion.chunk", None)

    def _wrap(self, rows, kind, usage) -> dict:
        body = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return body | {"choices": rows} | ({"usage": usage} if usage else {})
