"""Right chains as the training file of an API that fine-tunes: a prompt and a completion a line."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from cot_flax.chains.filtering import Filters, rejection
from cot_flax.chains.readers import Raw, find_format
from cot_flax.chains.records import BadRecord
from cot_flax.chains.samples import Sample
from cot_flax.chains.selection import select
from cot_flax.errors import UserError
from cot_flax.files import new_file
from cot_flax.text.answers import extract_answer
from cot_flax.text.prompts import build_input, build_target
from cot_flax.text.templates import Template

_FORMAT = "zero_shot_cot"
Row = Callable[[str, str, str], dict[str, Any]]
"""From a question, its chain and its answer to a line."""


def completion_row(template: Template) -> Row:
    """Lines of OpenAI's first fine-tuning, of paper [3]: `{"prompt": ..., "completion": ...}`."""

    def row(question: str, chain: str, answer: str) -> dict[str, Any]:
        target = build_target(chain, answer, _FORMAT, template)
        return {
            "prompt": build_input(question, _FORMAT, template=template),
            "completion": template.cot_gap + target,
        }

    return row


def chat_row(template: Template) -> Row:
    """Lines of chats, whose turns end by themselves: `{"messages": [...]}`."""

    def row(question: str, chain: str, answer: str) -> dict[str, Any]:
        turns = {
            "user": build_input(question, _FORMAT, template=template),
            "assistant": build_target(chain, answer, _FORMAT, template),
        }
        return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}

    return row


def write(files: Sequence[str], out: str | os.PathLike, *, row: Row, filters: Filters) -> Counter:
    """Writes a line of JSON for each chain that the filters keep; returns what became of all.

    Args:
        files: of samples or of other chains that `chains.readers` knows; those of one question
            stand together.
        out: the file.
        row: makes a line.
        filters: what is kept; a chain that cannot be read is counted by its reason.

    Raises:
        UserError: a file that cannot be used, or nothing was kept.
    """
    fates: Counter = Counter()
    with new_file(out) as path, path.open("w", encoding="utf-8") as file:
        for sample in _kept(files, filters, fates):
            kind = filters.kind_of(sample)
            answer = sample.gold_answer or extract_answer(sample.text, kind=kind, mode="flexible")
            line = row(sample.question, sample.text, answer or "")
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not fates["kept"]:
            counts = ", ".join(f"{name} {count:,}" for name, count in fates.most_common())
            raise UserError(
                f"no chain to train on ({counts or 'no record'})",
                "right chains",
                "check the samples, --answer-kind and --rules",
            )
    return fates


def _kept(files: Sequence[str], filters: Filters, fates: Counter) -> Iterator[Sample]:
    for path in files:
        format = find_format(path)
        own = filters.of(format.rules)
        for _, raws in groupby(format.read(path), key=lambda raw: raw.question):
            samples = [sample for raw in raws if (sample := _parsed(format.parse, raw, fates))]
            reasons = [_reason(sample, own) for sample in samples]
            standing = [s for s, reason in zip(samples, reasons, strict=True) if reason is None]
            fates.update(reason for reason in reasons if reason)
            for sample, reason in zip(standing, select(standing, own), strict=True):
                fates[reason or "kept"] += 1
                if reason is None:
                    yield sample


def _parsed(parse: Callable[[Raw], Sample], raw: Raw, fates: Counter) -> Sample | None:
    try:
        return parse(raw)
    except BadRecord as error:
        fates[error.reason] += 1
        return None


def _reason(sample: Sample, filters: Filters) -> str | None:
    if sample.is_direct:
        return "empty"  # the lines have chains alone
    try:
        return rejection(sample, filters)
    except UserError:
        return "unreadable_gold_answer"
