"""Reads the log-probabilities of OpenAI-compatible servers; their tokens must join to the text.

Three shapes are known: that of the completions API (vLLM too), that of the chat API (llama.cpp's
completions too), and vLLM's `prompt_logprobs`. A character may be spread over several tokens; such
a run becomes one token, whose log-probability is the sum (the chain rule).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_flax.chains.samples import Logprobs

FLOAT_NOISE = 1e-4  # A log-probability above 0 by no more than this is 0.
NO_VALUE = -9999.0  # What servers write for a token below their top list, or for minus infinity.

_ESCAPED_BYTE = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class _Step:
    """One token of the server as it came; a value may be None, NaN or infinite."""

    token: bytes
    logprob: float | None
    top: Sequence[tuple[bytes, float | None]]


class _Unusable(Exception):
    """Its only argument is the reason."""


def read_logprobs(record: Mapping[str, Any] | None, text: str) -> tuple[Logprobs | None, str]:
    """Reads the `logprobs` of one choice.

    Args:
        record: in the shape of the completions or of the chat API.
        text: what the server wrote; tokens after its end (a stop string) are cut off.

    Returns:
        (log-probabilities in nats, "") or (None, reason). Reasons: "not_given", "unknown_shape",
        "token_ids" (numbers in place of tokens), "tokens_do_not_join", "no_probability" (of a
        sampled token), "nan", "probability_above_1".
    """
    return _read(lambda: _steps(record), "", text)


def read_echo(
    record: Mapping[str, Any] | None, prompt: str, text: str
) -> tuple[Logprobs | None, str]:
    """Reads the part of `text` from the log-probabilities of an echoed `prompt + text`.

    A begin-of-text token before the prompt is left out. Returns as `read_logprobs` does; one more
    reason is "boundary_inside_token": a token holds the prompt's end and the text's beginning.
    """
    return _read(lambda: _without_begin(_steps(record), prompt + text), prompt, text)


def read_prompt_logprobs(
    entries: Sequence[Mapping[str, Any] | None] | None, prompt: str, text: str
) -> tuple[Logprobs | None, str]:
    """Reads the part of `text` from vLLM's `prompt_logprobs` of `prompt + text`.

    An entry maps token ids to {"logprob", "decoded_token"}, the prompt's own token first; the
    first entry is None. Returns as `read_echo` does.
    """
    return _read(lambda: _prompt_steps(entries, _bytes(prompt + text)), prompt, text)


def _read(
    steps: Callable[[], Iterable[_Step]], before: str, text: str
) -> tuple[Logprobs | None, str]:
    try:
        kept = list(_whole(_between(steps(), _bytes(before), _bytes(text))))
    except _Unusable as reason:
        return None, str(reason)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, "unknown_shape"
    return Logprobs(*zip(*kept, strict=True)) if kept else Logprobs((), (), ()), ""


def _steps(record: Mapping[str, Any] | None) -> list[_Step]:
    if not record:
        raise _Unusable("not_given")
    if record.get("tokens"):
        return list(_completions_steps(record))
    if record.get("content"):
        return [_chat_step(entry) for entry in record["content"]]
    raise _Unusable("not_given")


def _completions_steps(record: Mapping[str, Any]) -> Iterator[_Step]:
    tokens = record["tokens"]
    tops = record.get("top_logprobs") or [None] * len(tokens)
    for token, logprob, top in zip(tokens, record["token_logprobs"], tops, strict=True):
        pairs = [(_token_bytes(other), value) for other, value in (top or {}).items()]
        yield _Step(_token_bytes(token), logprob, pairs)


def _chat_step(entry: Mapping[str, Any]) -> _Step:
    pairs = [(_chat_token(other), other["logprob"]) for other in entry.get("top_logprobs") or ()]
    return _Step(_chat_token(entry), entry["logprob"], pairs)


def _chat_token(entry: Mapping[str, Any]) -> bytes:
    if entry.get("bytes") is None:
        return _token_bytes(entry["token"])
    return _no_id(bytes(entry["bytes"]))


def _prompt_steps(
    entries: Sequence[Mapping[str, Any] | None] | None, whole: bytes
) -> Iterator[_Step]:
    if not entries:
        raise _Unusable("not_given")
    steps = []
    for entry in entries[1:]:
        pairs = [(_token_bytes(e["decoded_token"]), e["logprob"]) for e in entry.values()]
        steps.append(_Step(*pairs[0], pairs))
    rest = b"".join(step.token for step in steps)
    if not whole.endswith(rest):
        raise _Unusable("tokens_do_not_join")
    yield _Step(whole.removesuffix(rest), None, ())
    yield from steps


def _without_begin(steps: list[_Step], whole: str) -> list[_Step]:
    first = steps[0]
    special = first.logprob is None and not _bytes(whole).startswith(first.token)
    return steps[1:] if special else steps


def _between(steps: Iterable[_Step], before: bytes, text: bytes) -> Iterator[_Step]:
    """The steps that make up `text` after those that make up `before`."""
    whole, position = before + text, 0
    for step in steps:
        if position == len(whole):
            break
        end = position + len(step.token)
        if whole[position:end] != step.token:
            raise _Unusable("tokens_do_not_join")
        if position >= len(before):
            yield step
        elif end > len(before):
            raise _Unusable("boundary_inside_token")
        position = end
    if position < len(whole):
        raise _Unusable("tokens_do_not_join")


def _whole(steps: Iterable[_Step]) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Merges runs of steps that only together are text."""
    run: list[_Step] = []
    for step in steps:
        run.append(step)
        if text := _text(b"".join(part.token for part in run)):
            yield _merged(run, text)
            run = []


def _merged(run: Sequence[_Step], text: str) -> tuple[str, float, dict[str, float]]:
    logprobs = [_value(step.logprob) for step in run]
    if None in logprobs:
        raise _Unusable("no_probability")
    total, top = sum(logprobs), {}
    for raw, logprob in run[0].top:
        token, value = _text(raw), _value(logprob)
        if token and "\ufffd" not in token and value is not None:
            top[token] = max(value, top.get(token, value))
    return text, total, top if len(run) == 1 else top | {text: total}


def _value(logprob: float | None) -> float | None:
    """The value made safe; None where the server gave none."""
    if logprob is None or logprob <= NO_VALUE:
        return None
    if math.isnan(logprob):
        raise _Unusable("nan")
    if logprob > FLOAT_NOISE:
        raise _Unusable("probability_above_1")
    return min(float(logprob), 0.0)


def _token_bytes(token: str) -> bytes:
    raw = _bytes(token)
    if token.startswith("bytes:") and "\\x" in token:
        raw = _ESCAPED_BYTE.sub(lambda m: bytes([int(m[1], 16)]), raw.removeprefix(b"bytes:"))
    return _no_id(raw)


def _no_id(raw: bytes) -> bytes:
    if raw.startswith(b"token_id:"):
        raise _Unusable("token_ids")
    return raw


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON can hold a lone surrogate.


def _text(raw: bytes) -> str | None:
    """None where a character is incomplete."""
    try:
        return raw.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return None
