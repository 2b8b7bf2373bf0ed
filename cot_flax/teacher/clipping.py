"""Cutting and joining completions, text and log-probabilities at the same place.

A token through which a cut goes keeps its log-probability, a lower bound for what is left of it,
and loses its alternatives. So the tokens always join to the text, and no text is lost.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cot_flax.chains.samples import Logprobs
from cot_flax.teacher.requests import Completion

_THOUGHT_BEGIN = re.compile(r"\s*(<think(ing)?>|\[THINK\])", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</think(ing)?>|\[/THINK\]", re.IGNORECASE)
_PIECE = re.compile(r"\s?\w+|\s|[^\w\s]")


def clip(completion: Completion, start: int, end: int) -> Completion:
    """Returns the characters [start, end) of a completion; where it ended stays as it was."""
    logprobs = completion.logprobs and completion.logprobs.cut(start, end)
    return replace(completion, text=completion.text[start : max(start, end)], logprobs=logprobs)


def trim(completion: Completion) -> Completion:
    """Removes the line breaks before the text and the white space after it.

    A space before the text stays: it is what makes the first token the start of a word.
    """
    text = completion.text
    return clip(completion, len(text) - len(text.lstrip("\n")), len(text.rstrip()))


def end_at(completion: Completion, marker: re.Pattern) -> Completion:
    """Cuts at the first match of `marker` (of its group, where it has one), and trims.

    What a cut leaves is complete, even where the teacher ran on to the token limit: its
    finish_reason is "stop".
    """
    found = marker.search(completion.text)
    if found is None:
        return trim(completion)
    kept = clip(completion, 0, found.start(found.lastindex or 0))
    return trim(replace(kept, finish_reason="stop"))


def split_thought(completion: Completion) -> Completion:
    """Takes what a teacher thought in the text itself, `<think>...</think>`, out of it.

    Many chat templates write the opening mark at the prompt's end, so that the text may begin in
    the thought. A thought without an end takes the whole text; if the teacher was not cut off in
    it, it is the answer.
    """
    text = completion.text
    begin, end = _THOUGHT_BEGIN.match(text), _THOUGHT_END.search(text)
    if not begin and not end:
        return _spoken(_with_thoughts(completion, [_thought(completion)]))
    thought = clip(completion, begin.end() if begin else 0, end.start() if end else len(text))
    answer = clip(completion, end.end() if end else len(text), len(text))
    return _spoken(_with_thoughts(answer, [_thought(completion), thought]))


def _spoken(completion: Completion) -> Completion:
    """What a teacher only thought though it was not cut off is what it had to say.

    So it comes where a server takes all that has no end of a thought in it for one (vLLM).
    """
    if completion.text.strip() or not completion.thought or completion.finish_reason != "stop":
        return completion
    return replace(
        completion,
        text=completion.thought,
        logprobs=completion.thought_logprobs,
        thought="",
        thought_logprobs=None,
    )


def _thought(completion: Completion) -> Completion:
    return Completion(completion.thought, completion.thought_logprobs, completion.finish_reason)


def _with_thoughts(completion: Completion, thoughts: Iterable[Completion]) -> Completion:
    """With these texts as what was thought before it, each on a line of its own."""
    lines: list[Completion] = []
    for thought in thoughts:
        text = thought.text
        start = len(text) - len(text.lstrip())
        if line := text.strip():
            lines += [certain("\n")] * bool(lines) + [clip(thought, start, start + len(line))]
    whole = _behind_each_other(lines)
    return replace(
        completion, thought=whole.text, thought_logprobs=whole.logprobs if lines else None
    )


def certain(text: str) -> Completion:
    """A text that nobody sampled: words of log-probability 0 without alternatives."""
    return Completion(text, Logprobs.certain(*_PIECE.findall(text)), "stop")


def join(parts: Iterable[Completion], finish_reason: str) -> Completion:
    """Puts completions one behind the other; without log-probabilities where one has none."""
    parts = list(parts)
    whole = replace(_behind_each_other(parts), finish_reason=finish_reason)
    return _with_thoughts(whole, map(_thought, parts))


def _behind_each_other(parts: Sequence[Completion]) -> Completion:
    values = [part.logprobs for part in parts]
    logprobs = None if None in values else Logprobs.joined(values)
    return Completion("".join(part.text for part in parts), logprobs, "stop")
