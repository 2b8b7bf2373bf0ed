from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.teacher.alignment import align
from cot_flax.teacher.edit_distance import edit_distances

# Golden vectors: FranxYao/FlanT5-CoT-Specialization @ a8ffd51 (MIT), notebook
# dev_align_codex_to_flan_t5_dtw.ipynb, cells 21 (tokens), 19 (pieces) and 29 (printed alignment).
# A `|` separates entries; in ALIGNED a `&` joins the tokens of one piece.
TOKENS = (
    "W|eng| earns| $|12| for| every| hour| of| babys|itting|.|\n|"
    "She| babys|at| for| 50| minutes|.|\n|"
    "50| minutes| is| less| than| an| hour|,| so| she| earned| less| than| $|12|.|\n|"
    "She| earned| $|12|/|60| *| 50| =| $|10|.|\n|The| answer| is| 10"
)
PIECES = (
    "▁We|ng|▁earn|s|▁$12|▁for|▁every|▁hour|▁of|▁baby|s|i|tting|.|"
    "▁She|▁baby|s|at|▁for|▁50|▁minutes|.|"
    "▁50|▁minutes|▁is|▁less|▁than|▁an|▁hour|,|▁so|▁she|▁earned|▁less|▁than|▁$12|.|"
    "▁She|▁earned|▁$12|/|60|▁*|▁50|▁=|▁$10|.|▁The|▁answer|▁is|▁10"
)
ALIGNED = (
    "W|eng| earns| $|12| for| every| hour| of| babys| babys| babys|itting|.&\n|"
    "She| babys|at|at| for| 50| minutes|.&\n|"
    "50| minutes| is| less| than| an| hour|,| so| she| earned| less| than| $&12|.&\n|"
    "She| earned| $&12|/|60| *| 50| =& $|10|.&\n|The| answer| is| 10"
)

SMALL = st.lists(st.text(alphabet="ab", max_size=2), min_size=1, max_size=4)


def test_reproduces_the_alignment_printed_by_the_authors():
    tokens = TOKENS.split("|")
    alignment = align(tokens, PIECES.split("|"))
    printed = [row.split("&") for row in ALIGNED.split("|")]
    assert [[tokens[i] for i in row] for row in alignment] == printed
    # Repeated tokens look alike in print: the path must also be monotone and leave nothing out.
    path = [i for row in alignment for i in row]
    assert path == sorted(path)
    assert set(path) == set(range(len(tokens)))


def paths_back(i, j):
    """All ways from cell (i, j) to (0, 0): (steps, cells); step 0 diagonal, 1 token, 2 piece."""
    if (i, j) == (0, 0):
        yield (), ((0, 0),)
    for step, (di, dj) in enumerate([(1, 1), (1, 0), (0, 1)]):
        if i >= di and j >= dj:
            for steps, cells in paths_back(i - di, j - dj):
                yield (step, *steps), ((i, j), *cells)


@given(SMALL, SMALL)
def test_is_the_cheapest_of_all_paths_and_the_first_of_equals(tokens, pieces):
    cost = edit_distances(tokens, pieces)
    _, _, cells = min(
        (sum(cost[cell] for cell in cells), steps, cells)
        for steps, cells in paths_back(len(tokens) - 1, len(pieces) - 1)
    )
    expected = [sorted(i for i, column in cells if column == j) for j in range(len(pieces))]
    assert align(tokens, pieces) == expected


def by_definition(tokens, pieces):
    """The recursion of the paper, cell by cell, and its way back."""
    cost = edit_distances(
        [t.replace(" ", "") for t in tokens], [p.replace("▁", "") for p in pieces]
    )
    f = {(-1, -1): 0}
    for i in range(len(tokens)):
        for j in range(len(pieces)):
            before = [f.get(cell, inf) for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1))]
            f[i, j] = cost[i, j] + min(before)
    i, j = len(tokens) - 1, len(pieces) - 1
    rows = [[] for _ in pieces]
    while i >= 0 and j >= 0:
        rows[j].insert(0, i)
        before = [f.get(cell, inf) for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1))]
        step = before.index(min(before))
        i, j = i - (step != 2), j - (step != 1)
    return rows


@given(
    st.lists(st.text(alphabet="ab \n", max_size=3), min_size=1, max_size=12),
    st.lists(st.text(alphabet="ab▁", max_size=3), min_size=1, max_size=12),
)
def test_equals_the_recursion_of_the_paper(tokens, pieces):
    assert align(tokens, pieces) == by_definition(tokens, pieces)


def test_spaces_and_word_marks_cost_nothing():
    assert align([" a", " b", "c"], ["▁a", "▁b", "c"]) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("tokens", "pieces", "expected"),
    [([], [], []), (["a"], [], []), ([], ["▁a", "b"], [[], []]), (["ab"], ["▁a", "b"], [[0], [0]])],
)
def test_the_smallest_inputs(tokens, pieces, expected):
    assert align(tokens, pieces) == expected
