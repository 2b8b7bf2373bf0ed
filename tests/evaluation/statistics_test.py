"""Statistics against enumeration, arithmetic by hand and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cot_flax.errors import UserError
from cot_flax.evaluation import statistics
from cot_flax.evaluation.statistics import Answered
from cot_flax.text.scoring import wilson_interval


@pytest.mark.parametrize(
    ("samples", "right", "k", "expected"),
    [
        (5, 2, 1, 2 / 5),
        (5, 2, 2, 1 - 3 / 10),  # 3 of the 10 pairs have no right one
        (5, 2, 4, 1.0),  # four of five cannot all be wrong
        (5, 0, 3, 0.0),
        (200, 1, 100, 1 / 2),
    ],
)
def test_pass_at_k(samples, right, k, expected):
    assert statistics.pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-12)


def by_enumeration(answers, k):
    """The mean over all choices of k samples, ties shared."""
    chances = []
    for chosen in itertools.combinations(answers, k):
        votes = [answer.extracted for answer in chosen if answer.extracted is not None]
        most = max(map(votes.count, votes), default=0)
        winners = {answer for answer in votes if votes.count(answer) == most}
        right = {answer.extracted for answer in answers if answer.right}
        chances.append(len(winners & right) / len(winners) if winners else 0.0)
    return float(np.mean(chances))


@pytest.mark.parametrize("seed", range(12))
def test_majority_is_the_mean_over_all_choices(seed):
    rng = np.random.default_rng(seed)
    drawn = rng.choice(["18", "18.", "7", "9", "11", ""], size=rng.integers(3, 10))
    answers = [Answered(a or None, a in ("18", "18.")) for a in drawn]
    for k in range(1, len(answers) + 1):
        expected = by_enumeration(answers, k)
        assert statistics.majority_at_k(answers, k) == pytest.approx(expected, abs=1e-12)


def test_an_unread_sample_is_no_vote():
    answers = [Answered("5", True), *[Answered(None, False)] * 3]
    assert statistics.majority_at_k(answers, 4) == 1.0
    assert statistics.majority_at_k(answers, 1) == pytest.approx(1 / 4)
    assert statistics.majority_at_k(answers[1:], 3) == 0.0


def test_a_tie_is_drawn():
    answers = [Answered("5", True), Answered("6", False), Answered("7", False)]
    assert statistics.majority_at_k(answers, 3) == pytest.approx(1 / 3)


def test_a_majority_of_many_samples_is_exact():
    """C(64, 32) is far beyond what floats hold exactly; right and wrong are mirror images here."""
    answers = [Answered("5", True)] * 32 + [Answered("6", False)] * 32
    for k in (2, 31, 40, 64):
        assert statistics.majority_at_k(answers, k) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_k_within_the_samples(k):
    with pytest.raises(UserError, match=f"k = {k} of 3 samples"):
        statistics.majority_at_k([Answered("5", True)] * 3, k)
    with pytest.raises(UserError, match=f"k = {k} of 3 samples"):
        statistics.pass_at_k(3, 1, k)


def test_clusters_that_agree_count_once():
    """Four samples of each of 50 questions, all alike: the interval of 50 answers, nearly."""
    right = [4] * 20 + [0] * 30
    low, high = statistics.clustered_interval(right, [4] * 50)
    assert (low, high) == pytest.approx(wilson_interval(20 * 49 / 50, 49), abs=1e-12)


def test_no_answer_right_is_as_sure_as_there_are_clusters():
    assert statistics.clustered_interval([0] * 9, [7] * 9) == wilson_interval(0, 9)


def test_clustered_intervals_cover():
    """Of 400 data sets of 60 clusters, whose answers are alike, 95% of intervals hold 0.3."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        chances = rng.beta(0.6, 1.4, size=60)  # of mean 0.3
        low, high = statistics.clustered_interval(rng.binomial(5, chances), [5] * 60)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_clusters_of_equal_answers_need_totals():
    with pytest.raises(UserError, match="one answer a cluster"):
        statistics.clustered_interval([], [])
    with pytest.raises(UserError, match="one answer a cluster"):
        statistics.clustered_interval([0], [0])


def test_mcnemar_by_hand():
    """Of ten pairs that differ 9 to 1: 2 (1 + 10) / 2^10."""
    assert statistics.mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert statistics.mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert statistics.mcnemar(4, 4) == 1.0
    assert statistics.mcnemar(0, 0) == 1.0


def test_pairs_show_what_proportions_hide():
    """p 0.036 paired and 0.149 unpaired of the same scores: 118 and 130 of 172, 20 to 8 differ."""
    assert statistics.mcnemar(20, 8) == pytest.approx(0.036, abs=5e-4)
    assert statistics.unpaired((118, 130), (172, 172)) == pytest.approx(0.149, abs=5e-4)


def outcomes(both, gained, lost, neither):
    pairs = [(1, 1)] * both + [(0, 1)] * gained + [(1, 0)] * lost + [(0, 0)] * neither
    return dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs))


def test_compare_pairs_of_questions():
    found = statistics.compare(*outcomes(both=60, gained=20, lost=8, neither=112))
    assert (found.questions, found.gained, found.lost) == (200, 20, 8)
    assert found.difference == pytest.approx(12 / 200)
    assert found.p_value == statistics.mcnemar(20, 8)
    # The normal interval: the variance of a mean of 20 times 1, 8 times -1 and 172 times 0.
    half = 1.96 * math.sqrt((28 / 200 - 0.06**2) / 200)
    assert (found.low, found.high) == pytest.approx((0.06 - half, 0.06 + half), abs=0.006)


def test_compare_is_antisymmetric():
    first, second = outcomes(both=10, gained=7, lost=3, neither=20)
    there, back = statistics.compare(first, second), statistics.compare(second, first)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value


def test_samples_of_a_question_are_no_evidence_of_their_own():
    """Ten samples of each of eight questions, of which all change: as sure as eight pairs."""
    changes = [1] * 7 + [-1]
    first = {(q, s): int(c < 0) for q, c in enumerate(changes) for s in range(10)}
    second = {(q, s): int(c > 0) for q, c in enumerate(changes) for s in range(10)}
    clusters = {key: key[0] for key in first}
    found = statistics.compare(first, second, clusters)
    assert (found.questions, found.gained, found.lost) == (8, 70, 10)
    assert found.p_value == pytest.approx(statistics.mcnemar(7, 1), abs=0.02)
    assert statistics.compare(first, second).p_value < 1e-9
    alone = statistics.compare(*outcomes(both=0, gained=7, lost=1, neither=0))
    assert found.smallest == alone.smallest


def test_no_change_is_no_evidence():
    found = statistics.compare({0: 1, 1: 0}, {0: 1, 1: 0})
    assert (found.p_value, found.difference, found.low, found.high) == (1.0, 0.0, 0.0, 0.0)
    assert found.smallest is None
    same = {(0, 0): 1, (0, 1): 0}
    assert statistics.compare(same, same, dict.fromkeys(same, 0)).p_value == 1.0


def test_runs_of_other_questions_are_not_compared():
    with pytest.raises(UserError, match="2 and 2 answers, 1 and 1 of them"):
        statistics.compare({"a": 1, "b": 0}, {"b": 0, "c": 1})


def test_the_smallest_difference_by_hand():
    """A fifth of the pairs differ, a gap of 0.1: (1.96 sqrt(0.2) + 0.8416 sqrt(0.19))^2 / 0.1^2."""
    pairs = (1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.19)) ** 2 / 0.01
    assert statistics.smallest_difference(0.2, pairs) == pytest.approx(0.1, abs=1e-5)
    assert statistics.smallest_difference(0.2, 4) is None
    assert statistics.smallest_difference(0.0, 100) is None


def test_the_smallest_difference_is_found_four_times_of_five():
    gap = statistics.smallest_difference(0.3, 300)
    gains = (0.3 + gap) / 2
    rng = np.random.default_rng(0)
    counts = rng.multinomial(300, [gains, 0.3 - gains, 0.7], size=2000)
    found = [stats.binomtest(int(a), int(a + b)).pvalue < 0.05 for a, b, _ in counts]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)  # the exact test is a bit less sure


def test_several_tests_by_hand():
    """Three times 0.01, twice 0.03 and once 0.04, of which none may be below the one before."""
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []
