"""Dynamic time warping of two sequences of strings under the edit distance.

Letters beyond the legend: L strings on the left, M on the right; A, B the distinct ones.
"""

from collections.abc import Sequence

import numpy as np

from cot_flax.chains.edit_distance import edit_distances

_BORDER = 1 << 40  # stands for infinity; exact under the additions here


def warp(left: Sequence[str], right: Sequence[str]) -> list[list[int]]:
    """Returns for each string on the right the ascending indices of those it meets on the left.

    With c(i, j) the edit distance of left i and right j, the cheapest path is f(i, j) = c(i, j) +
    min(f(i-1, j), f(i, j-1), f(i-1, j-1)). Going back from the end, ties prefer the diagonal, then
    the earlier left string, then the earlier right one. Neither side may be empty.
    """
    return _back_trace(_path_costs(_costs(left, right)))


def _costs(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Edit distances [L, M], computed once a distinct pair of strings."""
    row_of = {string: a for a, string in enumerate(dict.fromkeys(left))}
    column_of = {string: b for b, string in enumerate(dict.fromkeys(right))}
    distances_AB = edit_distances(list(row_of), list(column_of))
    return distances_AB[np.ix_([row_of[s] for s in left], [column_of[s] for s in right])]


def _path_costs(costs_LM: np.ndarray) -> np.ndarray:
    """Costs [L + 1, M + 1] of the cheapest path to each cell, behind a border of infinity."""
    totals = np.full((costs_LM.shape[0] + 1, costs_LM.shape[1] + 1), _BORDER, np.int64)
    totals[0, 0] = 0
    for i, costs_M in enumerate(costs_LM, 1):
        # Enter the row from above or along the diagonal, then walk right: a running minimum of
        # what an entry costs beyond the walk that it saves.
        walked_M = np.cumsum(costs_M)
        entered_M = np.minimum(totals[i - 1, 1:], totals[i - 1, :-1]) + costs_M
        totals[i, 1:] = np.minimum.accumulate(entered_M - walked_M) + walked_M
    return totals


def _back_trace(totals: np.ndarray) -> list[list[int]]:
    """Walks the cheapest path back; returns for each column its rows, ascending, from 0."""
    f = totals.tolist()
    i, j = len(f) - 1, len(f[0]) - 1
    rows_M: list[list[int]] = [[] for _ in range(j)]
    while i and j:
        rows_M[j - 1].append(i - 1)
        # The first of equals wins, in this order.
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda cell: f[cell[0]][cell[1]])
    return [rows[::-1] for rows in rows_M]
