"""Levenshtein distances of many pairs of strings at once."""

from collections.abc import Sequence

import numpy as np


def edit_distances(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Returns the Levenshtein distances, int32 [A, B], of A left strings to B right ones.

    Both must hold at least one string, and strings may be empty. The memory is A * B times the
    length of the longest string on the right.
    """
    left_AC, left_lengths_A = _code_points(left)
    right_BC, right_lengths_B = _code_points(right)
    # For each pair, the distances of the left string's prefix so far to all N right prefixes.
    steps_N = np.arange(right_BC.shape[1] + 1, dtype=np.int32)
    table_ABN = np.tile(steps_N, (len(left), len(right), 1))
    for c, characters_A in enumerate(left_AC.T):
        alive = np.flatnonzero(left_lengths_A > c)
        before = table_ABN[alive]
        after = before + 1
        differs = characters_A[alive, None, None] != right_BC
        np.minimum(after[..., 1:], before[..., :-1] + differs, out=after[..., 1:])
        # Insertions chain along the row at a cost of 1 each, which is a running minimum.
        table_ABN[alive] = np.minimum.accumulate(after - steps_N, axis=-1) + steps_N
    return table_ABN[:, np.arange(len(right)), right_lengths_B]


def _code_points(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the strings' code points, padded with -1, and their lengths."""
    lengths = np.array([len(string) for string in strings])
    codes = np.full((len(strings), lengths.max()), -1, np.int32)
    for row, string in zip(codes, strings, strict=True):
        row[: len(string)] = [ord(character) for character in string]
    return codes, lengths
