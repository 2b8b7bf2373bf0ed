"""The path itself; the paper's alignment over it is tested in alignment_test."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.time_warping import warp

STRINGS = st.lists(st.text(alphabet="ab", max_size=3), min_size=1, max_size=4)


def distance(a, b):
    """Levenshtein's recursion, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance(a[1:], b) + 1,
        distance(a, b[1:]) + 1,
        distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


def steps_back(i, j):
    """All ways from (i, j) to (0, 0), as cells."""
    if i == j == 0:
        yield ((0, 0),)
    for di, dj in ((1, 1), (1, 0), (0, 1)):
        if i >= di and j >= dj:
            for rest in steps_back(i - di, j - dj):
                yield ((i, j), *rest)


@given(STRINGS, STRINGS)
def test_no_path_is_cheaper(left, right):
    rows = warp(left, right)
    cost = {
        (i, j): distance(left[i], right[j])
        for i, j in itertools.product(range(len(left)), range(len(right)))
    }
    cells = [(i, j) for j, row in enumerate(rows) for i in row]
    paths = list(steps_back(len(left) - 1, len(right) - 1))
    assert tuple(reversed(cells)) in paths
    assert sum(map(cost.get, cells)) == min(sum(map(cost.get, path)) for path in paths)


# Two ways of one cost: the way back prefers the diagonal, then the earlier left, then right string.
@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (["a", "b"], ["a", "b"], [[0], [1]]),
        (["a", "a"], ["a", "a"], [[0], [1]]),  # not [[0, 1], [1]], nor [[0], [0, 1]]
        (["", ""], [""], [[0, 1]]),
        ([""], ["", ""], [[0], [0]]),
        (["", "", ""], ["", ""], [[0, 1], [2]]),  # the diagonal first, from the end
        (["", ""], ["", "", ""], [[0], [0], [1]]),
        (["ab"], ["a", "b"], [[0], [0]]),
        (["a", "b"], ["ab"], [[0, 1]]),
    ],
)
def test_ties(left, right, expected):
    assert warp(left, right) == expected


def test_a_long_line_needs_no_recursion():
    words = [str(i % 7) for i in range(1100)]
    assert warp(words, words) == [[i] for i in range(1100)]
