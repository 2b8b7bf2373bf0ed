"""Aligns a teacher's tokens with a student's pieces of the same text.

There are two methods: by the bytes that both cover, which is exact, and by paper [1]'s dynamic
program, a dynamic time warping under the edit distance, which sees strings only.

Shape letters: L teacher tokens, M student pieces; A, B different strings among them; C characters
of the longest string, N of the longest one on the right and one more.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from cot_flax.text.pieces import SPACE, Pieces

Method = Literal["bytes", "fu2023"]
METHODS = get_args(Method)
_BORDER = 1 << 40  # stands for infinity; exact under the additions here


def align(teacher_tokens: Sequence[str], student_pieces: Sequence[str]) -> list[list[int]]:
    """Aligns two tokenizations of one text by paper [1]'s dynamic program, exactly.

    The cost of a pair is the edit distance between the token without spaces and the piece without
    word marks; see `warp` for the path and its ties.

    Args:
        teacher_tokens: L strings with their spaces, as a completions API returns them.
        student_pieces: M pieces as `Tokenizer.pieces` gives them, without the end.

    Returns:
        For each piece the ascending indices of its teacher tokens: one or more, and none only
        where there are no teacher tokens at all. A token may belong to several pieces.

    Source: Fu et al. 2023 (arXiv 2301.12726), their notebook `dev_align_codex_to_flan_t5_dtw`,
    cells 22 and 42, and `src/utils.py:dtw`.
    """
    if not teacher_tokens or not student_pieces:
        return [[] for _ in student_pieces]
    return warp(
        [token.replace(" ", "") for token in teacher_tokens],
        [piece.replace(SPACE, "") for piece in student_pieces],
    )


def align_by_bytes(
    teacher_tokens: Sequence[str], pieces: Pieces, *, skipped: int = 0
) -> list[list[int]]:
    """Aligns two tokenizations of one text by the bytes that they share.

    The tokenizer says which bytes of the text each piece stands for, whatever its normalisation did
    to newlines, double spaces and unknown characters, so that nothing has to be guessed. Only a
    piece that normalisation made up has no bytes; it and its neighbours up to the next ones whose
    tokens are their own are aligned by `align`.

    Args:
        teacher_tokens: L strings that join to the text, behind `skipped` bytes before it.
        pieces: the text as the student reads it.
        skipped: bytes of the teacher's text that the student's lacks at its start.

    Returns:
        For each piece the ascending indices of the tokens that share bytes with it; none where
        the student's text is longer than the teacher's.
    """
    alignment = _overlaps(_spans(teacher_tokens, skipped), pieces.spans)
    for start, stop in _runs([begin == end for begin, end in pieces.spans], alignment):
        tokens = sorted({i for row in alignment[start:stop] for i in row})
        rows = align([teacher_tokens[i] for i in tokens], pieces.strings[start:stop])
        alignment[start:stop] = [[tokens[i] for i in row] for row in rows]
    return alignment


def warp(left: Sequence[str], right: Sequence[str]) -> list[list[int]]:
    """Returns for each string on the right the ascending indices of those it meets on the left.

    With c(i, j) the edit distance of left i and right j, the cheapest path is f(i, j) = c(i, j) +
    min(f(i-1, j), f(i, j-1), f(i-1, j-1)). Going back from the end, ties prefer the diagonal, then
    the earlier left string, then the earlier right one. Neither side may be empty.
    """
    return _back_trace(_path_costs(_costs(left, right)))


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


def _spans(tokens: Sequence[str], skipped: int) -> list[tuple[int, int]]:
    spans, end = [], -skipped
    for token in tokens:
        # A lone surrogate has no UTF-8, but a length it must have.
        begin, end = end, end + len(token.encode(errors="surrogatepass"))
        spans.append((begin, end))
    return spans


def _overlaps(token_spans, piece_spans) -> list[list[int]]:
    """Merges two rising lists of spans; an empty span shares bytes with nothing."""
    rows, first, count = [], 0, len(token_spans)
    for begin, end in piece_spans:
        while first < count and token_spans[first][1] <= begin:
            first += 1
        row, i = [], first
        while i < count and token_spans[i][0] < end:
            if token_spans[i][1] > begin and end > begin:
                row.append(i)
            i += 1
        rows.append(row)
    return rows


def _runs(without_bytes: Sequence[bool], alignment) -> list[tuple[int, int]]:
    """Ranges of pieces around those without bytes, as far as tokens are shared."""
    runs: list[tuple[int, int]] = []
    for j in (j for j, lacks in enumerate(without_bytes) if lacks):
        start, stop = max(j - 1, 0), min(j + 2, len(alignment))
        while start > 0 and set(alignment[start - 1]) & set(alignment[start]):
            start -= 1
        while stop < len(alignment) and set(alignment[stop - 1]) & set(alignment[stop]):
            stop += 1
        if runs and start <= runs[-1][1]:
            start = min(runs.pop()[0], start)
        runs.append((start, stop))
    return runs


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


def _code_points(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the strings' code points, padded with -1, and their lengths."""
    lengths = np.array([len(string) for string in strings])
    codes = np.full((len(strings), lengths.max()), -1, np.int32)
    for row, string in zip(codes, strings, strict=True):
        row[: len(string)] = [ord(character) for character in string]
    return codes, lengths
