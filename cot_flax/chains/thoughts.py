"""Which part of a sample is the chain: the text, the thought that stands apart from it, or both.

A teacher that thinks apart may reason in the thought and leave a bare answer in the text. A thought
that is longer than a student can write is cut after a whole sentence. It is its beginning that
stays: there the teacher's log-probabilities are those of the text that the student sees before,
while behind a gap they would depend on what was left out.
"""

import re
from dataclasses import replace
from typing import Literal, get_args

from cot_flax.chains.samples import Logprobs, Sample
from cot_flax.text.answers import extract_answer
from cot_flax.text.prompts import DEFAULT, build_target
from cot_flax.text.templates import Template
from cot_flax.text.tokenizers import Tokenizer

Part = Literal["text", "thought", "both"]
PARTS = get_args(Part)

_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？]|(?=\n)")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")
_WORD = re.compile(r"\s*\S+")


def chain_of(
    sample: Sample,
    part: Part,
    *,
    answer_kind: str,
    most: int | None,
    tokenizer: Tokenizer,
    template: Template = DEFAULT,
) -> Sample:
    """The sample with this part of it as the text, and without a thought.

    A sample without a thought stays as it is. A thought alone is closed with the answer that the
    text gives, by which it is judged; what is put between and behind has log-probability 0 and no
    alternatives.

    Args:
        sample: the sample.
        part: of it.
        answer_kind: as in `Filters`.
        most: the student's tokens of a thought, at most; None keeps all of it.
        tokenizer: the student's.
        template: of the target.
    """
    if part == "text" or not sample.thought:
        return sample
    end = len(sample.thought) if most is None else _bounded(sample.thought, most, tokenizer)
    thought = sample.thought[:end].rstrip()
    parts = [sample.thought_logprobs and sample.thought_logprobs.cut(0, len(thought))]
    if part == "thought":
        answer = extract_answer(sample.text, kind=answer_kind, mode="flexible")
        text = thought
        if answer is not None:
            text = build_target(thought, answer, "zero_shot_cot", template)
        parts.append(Logprobs.certain(*_WORD.findall(text[len(thought) :])))
    else:
        behind = sample.text.lstrip()
        text = f"{thought}\n{behind}"
        start = len(sample.text) - len(behind)
        parts.append(Logprobs.certain("\n"))
        parts.append(sample.logprobs and sample.logprobs.cut(start, len(sample.text)))
    logprobs = None if None in parts else Logprobs.joined(parts)
    return replace(sample, text=text, logprobs=logprobs, thought="", thought_logprobs=None)


def _bounded(text: str, most: int, tokenizer: Tokenizer) -> int:
    """Where the last sentence ends that is whole within so many tokens; without one, the word."""
    pieces = tokenizer.pieces(text)
    if len(pieces.ids) <= most:
        return len(text)
    limit = len(text.encode()[: pieces.spans[most - 1][1]].decode(errors="ignore"))
    for end in (_SENTENCE_END, _WORD_END):
        # With the character behind, for an end at the limit to be seen.
        found = [match.end() for match in end.finditer(text[: limit + 1])]
        if within := [place for place in found if place <= limit]:
            return within[-1]
    return limit
