"""Lines a teacher's tokens up with a student's pieces, and its top-k with the student's ids.

Source of both: Fu et al. 2023 (arXiv 2301.12726), and their notebook
`dev_align_codex_to_flan_t5_dtw`, cells 22, 32 and 42.
Letters beyond the legend: L teacher tokens, M student pieces; A, B the distinct ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cot_flax.errors import UserError
from cot_flax.teacher.edit_distance import edit_distances
from cot_flax.teacher.samples import Logprobs

_SPACE = "\u2581"  # SentencePiece's visible space
_BORDER = 1 << 40  # stands for infinity; exact under the additions here


@dataclass(frozen=True)
class Projection:
    """A teacher's top-k on the T target positions of a student.

    Attributes:
        ids_TK: int32, student ids by falling probability; 0, the pad id, marks an absent entry.
        logprobs_TK: float32 natural logs of the teacher's own probabilities, never renormalised;
            0.0 where the entry is absent.
        soft_T: bool, True where the row is the teacher's, False where it is one-hot.
        kept_mass_T: float32, the sum of the row's probabilities. The rest is the tail.
    """

    ids_TK: np.ndarray
    logprobs_TK: np.ndarray
    soft_T: np.ndarray
    kept_mass_T: np.ndarray


def align(teacher_tokens: Sequence[str], student_pieces: Sequence[str]) -> list[list[int]]:
    """Aligns two tokenizations of one text by dynamic time warping.

    With c(i, j) the edit distance between token i without spaces and piece j without word marks,
    the cheapest path is f(i, j) = c(i, j) + min(f(i-1, j), f(i, j-1), f(i-1, j-1)). Going back
    from the end, ties prefer the diagonal, then the teacher's earlier token, then the student's.

    Args:
        teacher_tokens: L strings with their spaces, as a completions API returns them.
        student_pieces: M SentencePiece pieces, without EOS.

    Returns:
        For each piece the ascending indices of its teacher tokens: one or more, and none only
        where there are no teacher tokens at all. A token may belong to several pieces.

    Source: Fu et al. 2023, as implemented in their notebook and `src/utils.py:dtw`.
    """
    if not teacher_tokens or not student_pieces:
        return [[] for _ in student_pieces]
    costs_LM = _costs(
        [token.replace(" ", "") for token in teacher_tokens],
        [piece.replace(_SPACE, "") for piece in student_pieces],
    )
    return _back_trace(_path_costs(costs_LM))


def project_top_k(
    alignment: Sequence[Sequence[int]],
    logprobs: Logprobs,
    student_pieces: Sequence[str],
    student_ids: Sequence[int],
    piece_to_id: Mapping[str, int],
    *,
    k: int,
    eos_id: int | None,
) -> Projection:
    """Projects the teacher's top-k onto the student's vocabulary.

    A position is soft where exactly one teacher token is aligned and is the same string as the
    piece, spaces counting as word marks, and the piece is in the vocabulary. Its row is the union
    of the sampled token and the top-k, as far as they are pieces; of two that name one id the
    first counts. Every other row is one-hot on the student's own id. Of more than k entries the k
    likeliest stay, so the sampled token can fall out: k = 6 holds all of a top-5.

    Args:
        alignment: as `align` returns it, for the M pieces.
        logprobs: the teacher's, for the text that was aligned.
        student_pieces: the M pieces of that text.
        student_ids: their ids.
        piece_to_id: the student's vocabulary: an unknown string must be absent from it.
        k: the entries a row.
        eos_id: appends a one-hot row on this id, where it is not None.

    Returns:
        The projection, of T = M positions, or M + 1 with EOS.

    Raises:
        UserError: k is below 1, or alignment, pieces and ids differ in length.

    Source: Fu et al. 2023, notebook cell 32. They skip this on an unknown piece likewise: their
    tokenizer spells it "<unk>", which no teacher token equals.
    """
    if k < 1:
        raise UserError(f"k = {k}", "k of at least 1", "give the number of entries a position")
    lengths = (len(alignment), len(student_pieces), len(student_ids))
    if len(set(lengths)) > 1:
        raise UserError(
            "{} alignments, {} pieces, {} ids".format(*lengths),
            "one of each a position",
            "tokenize and align the same text",
        )
    rows = [
        _soft_row(indices, logprobs, piece, own_id, piece_to_id)
        for indices, piece, own_id in zip(alignment, student_pieces, student_ids, strict=True)
    ]
    own_ids = list(student_ids)
    if eos_id is not None:
        rows.append({})
        own_ids.append(eos_id)
    return _packed(rows, own_ids, k)


def _soft_row(
    indices: Sequence[int],
    logprobs: Logprobs,
    piece: str,
    own_id: int,
    piece_to_id: Mapping[str, int],
) -> dict[int, float]:
    """Returns {student id: log-probability}, empty where the position has to be one-hot."""
    if len(indices) != 1 or piece_to_id.get(piece) != own_id:
        return {}
    (index,) = indices
    token = logprobs.tokens[index]
    if token.replace(" ", _SPACE) != piece:
        return {}
    row: dict[int, float] = {}
    entries = [(token, logprobs.token_logprobs[index]), *logprobs.top_logprobs[index].items()]
    for string, logprob in entries:
        # Id 0 is the pad id, which means "absent", so that no string may be projected onto it.
        if student_id := piece_to_id.get(string.replace(" ", _SPACE), 0):
            row.setdefault(student_id, logprob)
    return row


def _packed(rows: Sequence[Mapping[int, float]], own_ids: Sequence[int], k: int) -> Projection:
    ids_TK = np.zeros((len(rows), k), np.int32)
    logprobs_TK = np.zeros((len(rows), k), np.float32)
    for t, (row, own_id) in enumerate(zip(rows, own_ids, strict=True)):
        entries = sorted(row.items(), key=lambda entry: -entry[1])[:k] or [(own_id, 0.0)]
        ids_TK[t, : len(entries)], logprobs_TK[t, : len(entries)] = zip(*entries, strict=True)
    kept_mass_T = np.sum(np.exp(logprobs_TK), axis=1, where=ids_TK != 0)
    soft_T = np.array([bool(row) for row in rows], bool)
    return Projection(ids_TK, logprobs_TK, soft_T, kept_mass_T)


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
