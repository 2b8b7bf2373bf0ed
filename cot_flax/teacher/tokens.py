"""Reads the log-probabilities of OpenAI-compatible servers: finds the text in the joined tokens.

Three shapes are known: that of the completions API (vLLM too), that of the chat API (llama.cpp's
completions too), and vLLM's `prompt_logprobs`. The text may begin behind other tokens (reasoning, a
begin-of-text token, white space) and end inside one (a stop string began there): a token through
which it is cut keeps its log-probability and loses its alternatives, as in `clipping`. A character
may be spread over several tokens; such a run becomes one token, whose log-probability is the sum
(the chain rule).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any

from cot_flax.chains.samples import MASS_NOISE, Logprobs, mass

FLOAT_NOISE = 1e-4  # A log-probability above 0 by no more than this is 0.
NO_VALUE = -9999.0  # What servers write for a token below their top list, or for minus infinity.
LEAST_FORESEEN = 6  # With fewer next tokens among the alternatives nothing is called shifted.

# What need not be among the tokens: white space at the ends, which every recipe cuts off, and the
# U+FFFD that a token limit leaves of a character.
_MARGINS = re.compile("(\\s*)(.*?)([\\s\ufffd]*)", re.DOTALL)
_ESCAPED_BYTE = re.compile(rb"\\x([0-9a-f]{2})")
_PIECE_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")
_LOST = "\ufffd".encode()  # what a server writes for a part of a character
_SPACE_MARK = "\u2581".encode()
# Tokens that servers leave out of the text: <|im_end|>, <｜end｜>, <s>, </think>, [INST].
_SPECIAL = re.compile("<[|\uff5c].+[|\uff5c]>|</?[a-z_0-9]+>|\\[/?[A-Z_]+\\]")


def _byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level BPE (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


@dataclass(frozen=True)
class _Step:
    """One token of the server as it came; a value may be None, NaN or infinite.

    A special one writes nothing: it belongs to what follows it, unless it stands before the text.
    """

    token: bytes
    logprob: float | None
    top: Sequence[tuple[bytes, float | None]]
    is_special: bool = False


class _Unusable(Exception):
    """Its only argument is the reason."""


class _NotJoined(_Unusable):
    """The tokens do not join to anything that holds the text."""

    def __init__(self):
        super().__init__("tokens_do_not_join")


def read_logprobs(
    record: Mapping[str, Any] | None, text: str, thought: str = ""
) -> tuple[Logprobs | None, str]:
    """Reads the `logprobs` of one choice.

    Args:
        record: in the shape of the completions or of the chat API.
        text: what the server wrote; tokens before and after it (a stop string) are cut off.
        thought: what the server wrote before it and returned apart from it.

    Returns:
        (log-probabilities in nats, "") or (None, reason). Reasons: "not_given", "unknown_shape",
        "token_ids" (numbers in place of tokens), "tokens_do_not_join" (to anything that holds the
        text), "no_probability" (of a sampled token), "nan", "probability_above_1", "mass_above_1"
        (of the alternatives together).
    """
    start_in = partial(_start, thought=_bytes(thought))
    return _read(lambda: _steps(record), "", text, start_in=start_in)


def read_thought(record: Mapping[str, Any] | None, thought: str) -> Logprobs | None:
    """Reads the part of what the server wrote before the text and returned apart from it.

    Returns None where there is no such part, or it has none that can be used.
    """
    if not thought:
        return None
    return _read(lambda: _steps(record), "", thought, start_in=bytes.find)[0]


def read_echo(
    record: Mapping[str, Any] | None, prompt: str, text: str
) -> tuple[Logprobs | None, str]:
    """Reads the part of `text` from the log-probabilities of an echoed `prompt + text`.

    Returns as `read_logprobs` does; two more reasons are "boundary_inside_token" (a token holds the
    prompt's end and the text's beginning) and "shifted" (the values are those of the place behind,
    as llama-cpp-python 0.3 gives them).
    """

    def steps() -> list[_Step]:
        echoed = _steps(record)
        if _is_shifted(echoed):
            raise _Unusable("shifted")
        return echoed

    return _read(steps, prompt, text)


def read_prompt_logprobs(
    entries: Sequence[Mapping[str, Any] | None] | None, prompt: str, text: str
) -> tuple[Logprobs | None, str]:
    """Reads the part of `text` from vLLM's `prompt_logprobs` of `prompt + text`.

    An entry maps token ids to {"logprob", "decoded_token"}, the prompt's own token first; the
    first entry is None. Returns as `read_echo` does.
    """
    return _read(lambda: _prompt_steps(entries), prompt, text, first_is_unknown=True)


def _read(
    steps: Callable[[], list[_Step]],
    before: str,
    text: str,
    *,
    start_in: Callable[[bytes, bytes], int] | None = None,
    first_is_unknown: bool = False,
) -> tuple[Logprobs | None, str]:
    find = partial(_found, start_in=start_in or _start, first_is_unknown=first_is_unknown)
    try:
        given = steps()
        front, inner, back = "", text, ""
        try:
            found = find(given, before, text)
        except _NotJoined:
            front, inner, back = _MARGINS.fullmatch(text).groups()
            if before:
                front, inner = "", front + inner
            if not inner or inner == text:
                raise
            found = find(given, before, inner)
    except _Unusable as reason:
        return None, str(reason)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, "unknown_shape"
    ends = [Logprobs.certain(*filter(None, [end])) for end in (front, back)]
    return Logprobs.joined([ends[0], found, ends[1]]), ""


def _found(
    steps: list[_Step],
    before: str,
    text: str,
    *,
    start_in: Callable[[bytes, bytes], int],
    first_is_unknown: bool,
) -> Logprobs:
    whole = _bytes(before + text)
    found, start = _located(steps, whole, start_in, first_is_unknown)
    end = start + len(whole)
    start += len(_bytes(before))
    if before and _is_inside_token(found, start):
        raise _Unusable("boundary_inside_token")
    space = 0 if before else _space_in_token(found, start)
    kept = list(_whole(_clipped(found, start - space, end)))
    logprobs = Logprobs(*zip(*kept, strict=True)) if kept else Logprobs((), (), ())
    return logprobs.cut(space, space + len(text)) if space else logprobs


def _space_in_token(steps: Iterable[_Step], place: int) -> int:
    """How many bytes of white space (ASCII's) stand before `place` in the token that it cuts."""
    begin = 0
    for step in steps:
        end = begin + len(step.token)
        if begin < place < end and not step.token[: place - begin].strip():
            return place - begin
        begin = end
    return 0


def _steps(record: Mapping[str, Any] | None) -> list[_Step]:
    if not record:
        raise _Unusable("not_given")
    if record.get("tokens"):
        return list(_completions_steps(record))
    if record.get("content"):
        return _chat_steps(record["content"])
    raise _Unusable("not_given")


def _is_shifted(steps: Sequence[_Step]) -> bool:
    """Whether alternatives foresee the next token, and their own seldom.

    A server puts a token's own entry among them; it is foreseen where it is not the last of them.
    """
    own = following = 0
    for step, after in pairwise(steps):
        if len(step.top) < 2:
            continue
        last = min(step.top, key=lambda pair: math.inf if pair[1] is None else pair[1])[0]
        others = {token for token, _ in step.top} - {step.token}
        own += step.token != last
        following += after.token in others
    return following >= LEAST_FORESEEN and following > 2 * own


def _completions_steps(record: Mapping[str, Any]) -> Iterator[_Step]:
    tokens = record["tokens"]
    tops = record.get("top_logprobs") or [None] * len(tokens)
    for token, logprob, top in zip(tokens, record["token_logprobs"], tops, strict=True):
        pairs = [(_token_bytes(other), value) for other, value in (top or {}).items()]
        yield _Step(_token_bytes(token), logprob, pairs)


def _chat_steps(entries: Sequence[Mapping[str, Any]]) -> list[_Step]:
    """llama.cpp withholds what may begin a stop string, and writes it with the next token.

    What such an entry lacks, all or the end of it, is in an alternative that has its id, its own
    or one of another entry.
    """
    text_of = {
        other.get("id"): _chat_token(other)
        for entry in entries
        for other in entry.get("top_logprobs") or ()
    }
    steps, withheld = [], b""
    for entry in entries:
        others = entry.get("top_logprobs") or ()
        pairs = [(_chat_token(other), other["logprob"]) for other in others]
        token = _chat_token(entry)
        if token:
            token, withheld = token.removeprefix(withheld), b""
        whole = b"" if entry.get("id") is None else text_of.get(entry["id"], b"")
        if whole.startswith(token):
            withheld += whole.removeprefix(token)
            token = whole
        steps.append(_Step(token, entry["logprob"], pairs))
    return steps


def _chat_token(entry: Mapping[str, Any]) -> bytes:
    if entry.get("bytes") is None:
        return _token_bytes(entry["token"])
    return _no_id(bytes(entry["bytes"]))


def _prompt_steps(entries: Sequence[Mapping[str, Any] | None] | None) -> list[_Step]:
    if not entries:
        raise _Unusable("not_given")
    steps = []
    for entry in entries[1:]:
        pairs = [(_token_bytes(e["decoded_token"]), e["logprob"]) for e in entry.values()]
        steps.append(_Step(*pairs[0], pairs))
    return steps


def _located(
    steps: list[_Step],
    whole: bytes,
    start_in: Callable[[bytes, bytes], int],
    first_is_unknown: bool,
) -> tuple[list[_Step], int]:
    """The steps in the reading in which they join to something that holds `whole`, and where."""
    for reading in _readings(steps, whole):
        joined = b"".join(step.token for step in reading)
        if first_is_unknown and whole.endswith(joined):
            first = whole.removesuffix(joined)
            return [_Step(first, None, ())] * bool(first) + reading, 0
        if (start := start_in(joined, whole)) >= 0:
            return reading, start
    raise _NotJoined


def _start(joined: bytes, whole: bytes, thought: bytes = b"") -> int:
    """Behind the thought; else at the beginning; else the last place, for others stand before it.

    Returns -1 where it is nowhere.
    """
    if thought and thought in joined:
        behind = joined.find(whole, joined.index(thought) + len(thought))
        if behind >= 0:
            return behind
    space = len(joined) - len(joined.lstrip())
    for start in (0, space):
        if joined.startswith(whole, start):
            return start
    return joined.rfind(whole)


def _readings(steps: list[_Step], whole: bytes) -> Iterator[list[_Step]]:
    """What the strings of a server may mean, the usual first."""
    for decode in (lambda token: token, _from_byte_level, _from_pieces):
        try:
            decoded = [_decoded(step, decode) for step in steps]
        except ValueError:
            continue
        yield decoded
        yield _without_special(decoded)
    if any(_LOST in step.token for step in steps):
        yield _restored(steps, whole)


def _decoded(step: _Step, decode: Callable[[bytes], bytes]) -> _Step:
    top = []
    for token, value in step.top:
        try:
            top.append((decode(token), value))
        except ValueError:
            top.append((token, value))
    return replace(step, token=decode(step.token), top=top)


def _from_byte_level(token: bytes) -> bytes:
    """Raises ValueError for what byte-level BPE does not write; special tokens stay."""
    if _is_special(token):
        return token
    text = token.decode()
    if not all(character in _BYTE_OF for character in text):
        raise ValueError(text)
    return bytes(_BYTE_OF[character] for character in text)


def _from_pieces(token: bytes) -> bytes:
    """SentencePiece's pieces: a mark for the space, <0x0A> for a byte."""
    if byte := _PIECE_BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE_MARK, b" ")


def _without_special(steps: list[_Step]) -> list[_Step]:
    return [_emptied(step) if _is_special(step.token) else step for step in steps]


def _emptied(step: _Step) -> _Step:
    """Its own alternative is all that may follow it, of which what does follow is one."""
    others = [pair for pair in step.top if pair[0] != step.token]
    return _Step(b"", step.logprob, others, is_special=True)


def _is_special(token: bytes) -> bool:
    return _SPECIAL.fullmatch(_text(token) or "") is not None


def _restored(steps: list[_Step], whole: bytes) -> list[_Step]:
    """Gives runs of tokens that hold parts of characters what stands between their neighbours.

    Each U+FFFD stands for at least one byte, so a run writes at most as many characters as it has.
    """
    text, place, restored = _text(whole) or "", 0, []
    groups = [(lost, list(run)) for lost, run in groupby(steps, lambda step: _LOST in step.token)]
    written = [_text(b"".join(step.token for step in run)) or "" for _, run in groups]
    for i, (lost, run) in enumerate(groups):
        token = written[i] if i else written[i].lstrip()
        end = place + len(token)
        if lost:
            following = written[i + 1] if i + 1 < len(groups) else ""
            ends = range(place + 1, min(end, len(text)) + 1)
            end = next((end for end in ends if _goes_on(text[end:], following)), end)
            run = [replace(step, token=b"") for step in run]
            run[-1] = replace(run[-1], token=_bytes(text[place:end]))
        restored += run
        place = end
    return restored


def _goes_on(rest: str, following: str) -> bool:
    return rest.startswith(following) if following and rest else not rest


def _is_inside_token(steps: Iterable[_Step], place: int) -> bool:
    begin = 0
    for step in steps:
        end = begin + len(step.token)
        if begin < place < end:
            return True
        begin = end
    return False


def _clipped(steps: Iterable[_Step], start: int, end: int) -> Iterator[_Step]:
    """The steps that make up the bytes [start, end) of the joined tokens.

    An empty step belongs to what follows it.
    """
    place = 0
    for step in steps:
        piece = step.token[max(start - place, 0) : max(end - place, 0)]
        is_begin = place == start and not step.is_special
        if piece or (not step.token and (is_begin or start < place) and place < end):
            yield step if piece == step.token else _Step(piece, step.logprob, ())
        place += len(step.token)


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
    if len(run) > 1:
        top[text] = total
    if mass(text, total, top) > 1 + MASS_NOISE:
        raise _Unusable("mass_above_1")
    return text, total, top


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
