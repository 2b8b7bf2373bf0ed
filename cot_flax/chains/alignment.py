"""Lines a teacher's tokens up with a student's pieces of the same text.

Two ways: by the bytes that both cover, which is exact, and by paper [1]'s dynamic program, which
sees strings only.
"""

from collections.abc import Sequence

from cot_flax.chains.projection import Projection, project_top_k
from cot_flax.chains.student_pieces import Pieces
from cot_flax.chains.time_warping import warp

__all__ = ["METHODS", "Projection", "align", "align_by_bytes", "project_top_k"]

METHODS = ("bytes", "fu2023")
_SPACE = "\u2581"  # SentencePiece's visible space


def align(teacher_tokens: Sequence[str], student_pieces: Sequence[str]) -> list[list[int]]:
    """Aligns two tokenizations of one text by paper [1]'s dynamic program, exactly.

    The cost of a pair is the edit distance between the token without spaces and the piece without
    word marks; see `time_warping.warp` for the path and its ties.

    Args:
        teacher_tokens: L strings with their spaces, as a completions API returns them.
        student_pieces: M SentencePiece pieces, without EOS.

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
        [piece.replace(_SPACE, "") for piece in student_pieces],
    )


def align_by_bytes(
    teacher_tokens: Sequence[str], pieces: Pieces, *, skipped: int = 0
) -> list[list[int]]:
    """Aligns two tokenizations of one text by the bytes that they share.

    SentencePiece says which bytes of the text each piece stands for, whatever its normalisation did
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
