"""Which teacher samples a student may learn from: a list of named rules."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from cot_flax.teacher.samples import Sample
from cot_flax.text.answers import answers_match, extract_answer

KEPT = "kept"


def _malformed(sample: Sample, kind: str) -> bool:
    return sample.finish_reason == "malformed"


def _truncated(sample: Sample, kind: str) -> bool:
    return sample.finish_reason == "length"


def _no_answer(sample: Sample, kind: str) -> bool:
    return extract_answer(sample.text, kind=kind, mode="flexible") is None


def _wrong_answer(sample: Sample, kind: str) -> bool:
    answer = extract_answer(sample.text, kind=kind, mode="flexible")
    return not answers_match(answer, sample.gold_answer, kind=kind)


# (reason, does the sample break the rule?); the first broken rule gives the reason.
RULES: tuple[tuple[str, Callable[[Sample, str], bool]], ...] = (
    ("malformed", _malformed),
    ("truncated", _truncated),
    ("no_answer", _no_answer),
    ("wrong_answer", _wrong_answer),
)


def rejection(sample: Sample, *, kind: str) -> str | None:
    """Returns the name of the first rule that the sample breaks, or None where it is to be kept.

    Args:
        sample: a teacher sample.
        kind: the kind of its answers: "number", "choice", "yes_no" or "text".

    Raises:
        UserError: an unknown kind, or a gold answer that is none of that kind.
    """
    return next((reason for reason, breaks in RULES if breaks(sample, kind)), None)


def judge(samples: Iterable[Sample], *, kind: str) -> Iterator[tuple[Sample, str | None]]:
    """Yields each sample with its `rejection`, holding one at a time."""
    for sample in samples:
        yield sample, rejection(sample, kind=kind)


def keep(samples: Iterable[Sample], *, kind: str, counts: Counter[str]) -> Iterator[Sample]:
    """Yields the samples that break no rule, and counts all of them by their fate.

    Args:
        samples: teacher samples; one is held at a time.
        kind: as for `rejection`.
        counts: receives the number of samples a reason, and of the others under "kept".
    """
    for sample, reason in judge(samples, kind=kind):
        counts[reason or KEPT] += 1
        if reason is None:
            yield sample
