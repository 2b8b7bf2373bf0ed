"""The numbers of a preparation's report, from the counts in a store's manifest; histograms of them.

A histogram has whole numbers on its axis and bars as tall as their counts.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from cot_flax.chains.projection import KINDS
from cot_flax.chains.tally import LENGTH_BIN, MASS_BINS, Tally

NO_LOGPROBS = "no_logprobs"
"""Counted beside projection.KINDS: positions of chains without any log-probabilities."""
MOST_BARS, MOST_TICKS, MOST_WRITTEN = 60, 8, 8


class Bar(NamedTuple):
    """One bar; `height` is a share of the tallest, `written` whether its count stands above it."""

    label: str
    count: int
    height: float
    written: bool


class Histogram(NamedTuple):
    """Bars of equal width, and ticks as (place in bars from the left, text)."""

    bars: list[Bar]
    ticks: list[tuple[float, str]]


def summarize(manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The report's JSON; every share is of 1, and a mean over nothing is None.

    records: `read`, which is `kept` + `dropped` + `rejected`; `direct`, the kept ones without a
        chain, of which the answer alone is learnt; `dropped_by_reason` and `rejected_by_reason` map
        a reason, the most frequent first, to {`count`, `share` of read}.
    sources: by teacher, recipe and who scored (`samples.source_of`), the largest first, `read`,
        `kept`, `accepted` (their ratio), `dropped_by_reason`, `chains_with_logprobs`, `tokens` of
        the kept targets, `soft` and `soft_share` among these; none in stores of before.
    positions: `total` of all targets, EOS included, `soft`, `one_hot`, `soft_share`; `kinds` maps
        projection.KINDS and "no_logprobs" to {`count`, `share`}; `chains_without_logprobs`.
    kept_mass: over the soft positions, `mean`, `mean_tail` (1 - mean), and `bins`: positions by
        kept mass, in equal bins over [0, 1].
    questions: `count`, `without_chains`; `kept_chains` and `distinct_chains` (those with different
        equation sequences) each as {`mean` a question, `counts`: questions by number of chains}.
    targets: `tokens`, `mean_tokens` a chain, `bin_tokens`, and `counts`: chains by length, keyed by
        the first length of a bin of `bin_tokens`.
    characters: what the vocabulary lacks, as counts by character, the most frequent first:
        `unknown` in kept targets, `chains_with_unknown`, `unknown_dropped` in the chains that were
        dropped for it, `unknown_in_questions` of `questions_with_unknown`; `replaced` in kept
        targets by the name in `text.replacement`.
    inconsistent_chains: kept ones with an equation that does not hold.
    files: `bytes`, `bytes_per_token` of the targets, and `sizes` in bytes by name.

    Args:
        manifest: a store's.
        sizes: bytes of the store's files by name.
    """
    tally = Tally.from_json(manifest["tally"])
    total_bytes = sum(sizes.values())
    return {
        "records": _records(tally),
        "sources": _sources(tally),
        "positions": _positions(tally),
        "kept_mass": _kept_mass(tally),
        "questions": {
            "count": tally.questions,
            "without_chains": tally.kept_chains["0"],
            "kept_chains": _chains(tally.kept_chains),
            "distinct_chains": _chains(tally.distinct_chains),
        },
        "targets": {
            "tokens": tally.tokens,
            "mean_tokens": _ratio(tally.tokens, tally.kept),
            "bin_tokens": LENGTH_BIN,
            "counts": _in_order(tally.target_tokens),
        },
        "characters": {
            "unknown": dict(tally.unknown.most_common()),
            "chains_with_unknown": tally.unknown_chains,
            "unknown_dropped": dict(tally.unknown_dropped.most_common()),
            "unknown_in_questions": dict(tally.unknown_in_questions.most_common()),
            "questions_with_unknown": tally.unknown_questions,
            "replaced": dict(tally.replaced.most_common()),
        },
        "inconsistent_chains": tally.inconsistent_chains,
        "files": {
            "bytes": total_bytes,
            "bytes_per_token": _ratio(total_bytes, tally.tokens),
            "sizes": dict(sizes),
        },
    }


def of_numbers(counts: Mapping[str, int]) -> Histogram:
    """Counts by whole number from 0; beyond MOST_BARS a bar stands for several numbers."""
    width = 1
    while _last(counts) // width >= MOST_BARS:
        width *= 2
    if width > 1:
        return of_ranges(counts, width, str)
    grouped = _grouped(counts, 1)
    ticks = [(i + 0.5, str(i)) for i in range(0, len(grouped), _every(len(grouped)))]
    return Histogram(_bars(grouped, [str(i) for i in range(len(grouped))]), ticks)


def of_ranges(counts: Mapping[str, int], width: int, text: Callable[[int], str]) -> Histogram:
    """Counts by the first number of ranges `width` long; `text` writes the end of a range."""
    while _last(counts) // width >= MOST_BARS:
        width *= 2
    grouped = _grouped(counts, width)
    edges = [text(i * width) for i in range(len(grouped) + 1)]
    ticks = [(i, edges[i]) for i in range(0, len(edges), _every(len(grouped)))]
    labels = [f"{low} to below {high}" for low, high in pairwise(edges)]
    return Histogram(_bars(grouped, labels), ticks)


def _records(tally: Tally) -> dict[str, Any]:
    dropped = {reason: n for reason, n in tally.fates.most_common() if reason != "kept"}
    return {
        "read": tally.read,
        "kept": tally.kept,
        "direct": tally.direct,
        "dropped": tally.dropped,
        "rejected": tally.rejected.total(),
        "dropped_by_reason": _shares(dropped, tally.read),
        "rejected_by_reason": _shares(dict(tally.rejected.most_common()), tally.read),
    }


def _sources(tally: Tally) -> dict[str, Any]:
    found = sorted(tally.sources.items(), key=lambda item: (-item[1].total(), item[0]))
    return {
        source: {
            "read": fates.total(),
            "kept": fates["kept"],
            "accepted": _ratio(fates["kept"], fates.total()),
            "dropped_by_reason": {
                reason: n for reason, n in fates.most_common() if reason != "kept"
            },
            "chains_with_logprobs": tally.source_scored[source],
            "tokens": tally.source_tokens[source],
            "soft": tally.source_soft[source],
            "soft_share": _ratio(tally.source_soft[source], tally.source_tokens[source]),
        }
        for source, fates in found
    }


def _positions(tally: Tally) -> dict[str, Any]:
    counts = {kind: tally.kinds[kind] for kind in KINDS}
    counts[NO_LOGPROBS] = tally.tokens - tally.kinds.total()
    soft = counts["soft"]
    return {
        "total": tally.tokens,
        "soft": soft,
        "one_hot": tally.tokens - soft,
        "soft_share": _ratio(soft, tally.tokens),
        "kinds": _shares(counts, tally.tokens),
        "chains_without_logprobs": tally.one_hot_chains,
    }


def _kept_mass(tally: Tally) -> dict[str, Any]:
    mean = _ratio(tally.mass, tally.kinds["soft"])
    return {
        "mean": mean,
        "mean_tail": None if mean is None else 1 - mean,
        "bins": [tally.kept_mass[str(i)] for i in range(MASS_BINS)],
    }


def _chains(counts: Mapping[str, int]) -> dict[str, Any]:
    chains = sum(int(number) * n for number, n in counts.items())
    return {"mean": _ratio(chains, sum(counts.values())), "counts": _in_order(counts)}


def _shares(counts: Mapping[str, int], total: int) -> dict[str, dict[str, Any]]:
    return {name: {"count": n, "share": _ratio(n, total)} for name, n in counts.items()}


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {key: counts[key] for key in sorted(counts, key=int)}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _last(counts: Mapping[str, int]) -> int:
    return max(map(int, counts), default=0)


def _grouped(counts: Mapping[str, int], width: int) -> list[int]:
    found: Counter[int] = Counter()
    for number, count in counts.items():
        found[int(number) // width] += count
    return [found[i] for i in range(max(found, default=0) + 1)]


def _bars(counts: list[int], labels: list[str]) -> list[Bar]:
    highest = max(counts)
    tallest = counts.index(highest)
    return [
        Bar(label, n, n / (highest or 1), i == tallest or len(counts) <= MOST_WRITTEN)
        for i, (label, n) in enumerate(zip(labels, counts, strict=True))
    ]


def _every(bars: int) -> int:
    return next(step for step in (1, 2, 5, 10) if bars / step <= MOST_TICKS)
