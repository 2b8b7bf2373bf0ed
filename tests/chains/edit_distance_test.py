from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.edit_distance import edit_distances

STRINGS = st.lists(st.text(alphabet="ab\0", max_size=5), min_size=1, max_size=4)


@cache
def by_definition(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        by_definition(a[1:], b) + 1,
        by_definition(a, b[1:]) + 1,
        by_definition(a[1:], b[1:]) + (a[0] != b[0]),
    )


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("abc", "", 3),
        ("", "", 0),
        ("a\0", "a", 1),
        ("naïve", "naive", 1),
    ],
)
def test_known_distances(a, b, distance):
    np.testing.assert_array_equal(edit_distances([a], [b]), [[distance]])


@given(STRINGS, STRINGS)
def test_every_pair_equals_the_definition(left, right):
    expected = [[by_definition(a, b) for b in right] for a in left]
    np.testing.assert_array_equal(edit_distances(left, right), expected)
