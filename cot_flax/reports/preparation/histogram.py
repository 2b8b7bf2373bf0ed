"""The geometry of a histogram: whole numbers on the axis, bars as tall as their counts."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

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
