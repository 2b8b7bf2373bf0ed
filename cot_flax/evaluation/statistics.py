"""What scores say: votes over samples, intervals of clustered answers, tests of paired ones.

Arrays have shape letters: C clusters (questions, or templates that many questions were drawn of),
R resamples.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from cot_flax.errors import UserError
from cot_flax.text.scoring import wilson_interval

ALPHA, POWER = 0.05, 0.8
"""Of two-sided tests, and the chance with which `smallest_difference` would be found."""
RESAMPLES = 10_000
_NORMAL = NormalDist()
_BLOCK = 2**22  # numbers drawn at once


class Answered(NamedTuple):
    """One scored sample: the answer that was found in it (None: none), and whether it is right."""

    extracted: str | None
    right: bool


class Paired(NamedTuple):
    """The second of two runs against the first, on the same questions.

    Attributes:
        questions: that both answered.
        difference: of the accuracies, second minus first.
        low: of its 95% interval, a percentile bootstrap over clusters.
        high: likewise.
        gained: pairs of samples of which the second alone is right.
        lost: of which the first alone is right.
        p_value: two-sided: McNemar's exact test where every cluster is one pair, else the share of
            clusters' sign flips with a difference as large.
        smallest: difference that so many questions, as often answered differently, would show with
            80% power at 5%; None where no answer differs.
    """

    questions: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float
    smallest: float | None


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that of k of the samples, drawn without replacement, one at least is right.

    Unbiased over all samples (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        UserError: not 1 <= k <= samples, or not 0 <= right <= samples.
    """
    _check_k(samples, k)
    if not 0 <= right <= samples:
        got, wanted = f"{right} right of {samples} samples", "at most as many as there are"
        raise UserError(got, wanted, "count again")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[Answered], k: int) -> float:
    """The chance that the most frequent answer of k of the samples is right: maj@k.

    The mean over all choices of k samples without replacement, not over a few draws (Wang et al.
    2022, arXiv 2203.11171, vote by the most frequent answer). A sample without an answer is no
    vote; of several most frequent answers one is drawn; where no sample votes, nothing is right.

    Raises:
        UserError: not 1 <= k <= the number of answers.
    """
    _check_k(len(answers), k)
    votes = Counter(answer.extracted for answer in answers if answer.extracted is not None)
    right = {answer.extracted for answer in answers if answer.right}
    for_right = tuple(sorted(count for answer, count in votes.items() if answer in right))
    for_wrong = tuple(sorted(count for answer, count in votes.items() if answer not in right))
    return _majority(for_right, for_wrong, len(answers), k)


@lru_cache(maxsize=65536)
def _majority(right: tuple[int, ...], wrong: tuple[int, ...], samples: int, k: int) -> float:
    """`majority_at_k` from the votes of each right and of each wrong answer.

    For every number of votes that may win it counts the choices of k samples by how many right and
    how many wrong answers have as many; the others have fewer.
    """
    silent = samples - sum(right) - sum(wrong)
    chance = 0.0
    for most in range(1, min(k, max(right, default=0)) + 1):
        # ways[size, right winners, wrong winners], as floats: binomials go beyond 64 bits.
        ways = np.zeros((k + 1, len(right) + 1, min(len(wrong), k // most) + 1))
        for drawn in range(min(silent, k) + 1):
            ways[drawn, 0, 0] = math.comb(silent, drawn)
        for counts, axis in ((right, 1), (wrong, 2)):
            for count in counts:
                ways = _with_answer(ways, count, most, axis)
        r, w = np.meshgrid(np.arange(ways.shape[1]), np.arange(ways.shape[2]), indexing="ij")
        share = np.divide(r, r + w, out=np.zeros(r.shape), where=r > 0)
        chance += float((ways[k] * share).sum())
    return chance / math.comb(samples, k)


def _with_answer(ways: np.ndarray, count: int, most: int, axis: int) -> np.ndarray:
    """The ways after one more answer, of which `count` samples may be drawn, at most `most`."""
    found = np.zeros_like(ways)
    for drawn in range(min(count, most, len(ways) - 1) + 1):
        moved = ways[: len(ways) - drawn] * float(math.comb(count, drawn))
        if drawn == most:  # it is one of the most frequent
            moved = np.roll(moved, 1, axis=axis)
            moved[(slice(None),) * axis + (0,)] = 0.0
        found[drawn:] += moved
    return found


def clustered_interval(right: Sequence[float], total: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of an accuracy whose answers are alike within clusters.

    Wilson's interval of as many independent answers as would vary as much as the clusters do
    (the variance of a ratio of means over clusters, with C / (C - 1)), and of no more than there
    are. Where all answers are right, or all are wrong, so many as there are clusters. One answer a
    cluster gives Wilson's own interval, but for C / (C - 1).

    Args:
        right: right answers of each cluster.
        total: answers of each cluster, 1 or more.

    Raises:
        UserError: no clusters, or lists of unequal lengths.
    """
    right_C, total_C = np.asarray(right, float), np.asarray(total, float)
    clusters = len(total_C)
    if not clusters or len(right_C) != clusters or (total_C < 1).any():
        got = f"right answers of {len(right_C)} clusters, answers of {clusters}"
        raise UserError(got, "one answer a cluster at least", "group the answers by question")
    answers = float(total_C.sum())
    share = float(right_C.sum()) / answers
    spread = clusters / max(clusters - 1, 1) * float(((right_C - share * total_C) ** 2).sum())
    effective = float(clusters)
    if clusters > 1 and 0 < share < 1:
        effective = min(answers, share * (1 - share) * answers**2 / spread) if spread else answers
    return wilson_interval(share * effective, effective)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test: that of a binomial over the pairs that differ.

    1 where none differs (Q. McNemar, Psychometrika 12, 1947; exact form).
    """
    differing = gained + lost
    tail = sum(math.comb(differing, few) for few in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**differing)


def unpaired(right: tuple[int, int], total: tuple[int, int]) -> float:
    """Two-sided p-value of two proportions taken for independent: the pooled z-test.

    For questions that are not the same; on the same ones it is blind to what both find hard.
    """
    pooled = sum(right) / sum(total)
    error = math.sqrt(pooled * (1 - pooled) * sum(1 / n for n in total))
    gap = right[1] / total[1] - right[0] / total[0]
    return 2 * _NORMAL.cdf(-abs(gap) / error) if error else 1.0


def compare(
    first: Mapping[Hashable, bool],
    second: Mapping[Hashable, bool],
    cluster: Mapping[Hashable, Hashable] | None = None,
    *,
    seed: int = 0,
) -> Paired:
    """Tests whether the second run is better or worse than the first.

    Args:
        first: whether each answer is right, by what both runs share, such as (id, sample).
        second: likewise.
        cluster: what answers are alike with, by the same keys; None: each stands alone.
        seed: of the resamples.

    Raises:
        UserError: not the same keys, or none.
    """
    if not first or first.keys() != second.keys():
        only = len(first.keys() - second.keys()), len(second.keys() - first.keys())
        raise UserError(
            f"{len(first):,} and {len(second):,} answers, {only[0]:,} and {only[1]:,} of them to "
            "questions of one run alone",
            "the same questions and samples in both",
            "evaluate both runs on the same split with the same settings",
        )
    keys = list(first)
    names = [cluster[key] if cluster else key for key in keys]
    groups = {name: place for place, name in enumerate(dict.fromkeys(names))}
    of_key = [groups[name] for name in names]
    changes = np.array([int(second[key]) - int(first[key]) for key in keys])
    gap_C = np.bincount(of_key, changes, len(groups))
    size_C = np.bincount(of_key, minlength=len(groups)).astype(float)
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    single = len(groups) == len(keys)
    low, high = _bootstrap(gap_C, size_C, np.random.default_rng(seed))
    return Paired(
        questions=len(groups),
        difference=float(changes.mean()),
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost) if single else _flips(gap_C, np.random.default_rng(seed)),
        smallest=smallest_difference(
            float((changes != 0).mean()), _effective(changes, gap_C, size_C)
        ),
    )


def smallest_difference(differing: float, pairs: float) -> float | None:
    """The difference of accuracies that so many pairs would show with 80% power at 5%, two-sided.

    By the normal approximation of McNemar's test (R. J. Connor, Biometrics 43, 1987, equation 2).

    Args:
        differing: the share of pairs of which one alone is right, between 0 and 1.
        pairs: how many.

    Returns:
        None where none differ, or so few pairs that no difference would do.
    """
    if not differing or not pairs:
        return None
    alpha, beta = _NORMAL.inv_cdf(1 - ALPHA / 2), _NORMAL.inv_cdf(POWER)
    # gap sqrt(pairs) = alpha sqrt(differing) + beta sqrt(differing - gap^2), solved for the gap.
    middle = alpha * math.sqrt(pairs * differing)
    inner = middle**2 - (pairs + beta**2) * differing * (alpha**2 - beta**2)
    if inner < 0:
        return None
    gap = (middle + math.sqrt(inner)) / (pairs + beta**2)
    # All that differ, to one side, is the largest difference there can be.
    return gap if gap < differing else None


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, so that one of all of them is below 5% by chance 5% of the time.

    Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979), in the given order.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _bootstrap(gap_C: np.ndarray, size_C: np.ndarray, rng: np.random.Generator):
    """The middle 95% of the difference over resamples of whole clusters."""
    means = [
        gap_C[chosen_RC].sum(axis=1) / size_C[chosen_RC].sum(axis=1)
        for chosen_RC in _blocks(len(gap_C), lambda shape: rng.integers(len(gap_C), size=shape))
    ]
    low, high = np.quantile(np.concatenate(means), [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _flips(gap_C: np.ndarray, rng: np.random.Generator) -> float:
    """The share of random signs of the clusters' differences whose sum is as far from 0."""
    gap_C = gap_C[gap_C != 0]
    if not len(gap_C):
        return 1.0
    as_far = sum(
        int((np.abs(sign_RC @ gap_C) >= abs(gap_C.sum()) - 1e-9).sum())
        for sign_RC in _blocks(len(gap_C), lambda shape: rng.choice([-1.0, 1.0], size=shape))
    )
    return (as_far + 1) / (RESAMPLES + 1)  # the observed signs are one of the draws


def _blocks(width: int, draw) -> Iterable[np.ndarray]:
    rows = max(1, _BLOCK // width)
    for begin in range(0, RESAMPLES, rows):
        yield draw((min(rows, RESAMPLES - begin), width))


def _effective(changes: np.ndarray, gap_C: np.ndarray, size_C: np.ndarray) -> float:
    """So many independent pairs would vary as much as these clusters; at most all pairs."""
    pairs, mean = len(changes), changes.mean()
    spread = float(((gap_C - mean * size_C) ** 2).sum())
    single = float(((changes - mean) ** 2).sum())
    return pairs * min(1.0, single / spread) if spread else float(len(gap_C))


def _check_k(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise UserError(f"k = {k} of {samples} samples", "1 to as many as there are", "draw more")
