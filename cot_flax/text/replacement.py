"""What a student's vocabulary lacks: what is written instead, and what stays unknown.

T5's has no `<`, `{`, `}`, `\\`, `^`, `~`, `×`, `÷` or `√`: each would be learnt as the unknown
piece. `²` it writes as `2`, `½` as `1`, the unknown piece and `2`. What a vocabulary can write is
never replaced.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from cot_flax.text import plain
from cot_flax.text.pieces import Pieces
from cot_flax.text.plain import CHARACTERS, Edit
from cot_flax.text.tokenizers import Tokenizer


def find_edits(text: str, tokenizer: Tokenizer) -> list[Edit]:
    """What to replace in a text so that the tokenizer has ids for it: see `plain.find_edits`.

    A character is replaced if `plain` has it and it does not come back from the tokenizer, and
    only by what does not hold an unknown piece.
    """
    return plain.find_edits(text, _lacking(tokenizer))


def before_edits(pieces: Pieces, text: str, edits: Sequence[Edit]) -> tuple[Pieces, list[bool]]:
    """Pieces of an edited text with their spans in the text before, and which of them are new.

    Args:
        pieces: M, of the text after the edits.
        text: the one before them.
        edits: as `find_edits` gives them.

    Returns:
        The same pieces with spans that still follow each other, and for each whether anything in
        it was written by an edit: it then has the span of all that the edit replaced.
    """
    if not edits:
        return pieces, [False] * len(pieces.spans)
    parts = list(plain.stretches(text, edits, lambda part: len(part.encode())))
    spans, is_new, at = [], [], 0
    for begin, end in pieces.spans:
        while at + 1 < len(parts) and parts[at].new_end <= begin:
            at += 1
        last = at
        while last + 1 < len(parts) and parts[last].new_end < end:
            last += 1
        covered = parts[at : last + 1]
        spans.append((covered[0].old_begin(begin), covered[-1].old_end(end)))
        is_new.append(any(part.edited for part in covered))
    return Pieces(pieces.strings, pieces.ids, tuple(spans)), is_new


def unknown_characters(text: str, pieces: Pieces, unk_id: int | None) -> Counter[str]:
    """Counts the characters of a text that its pieces hold as the unknown one.

    Where normalisation made several pieces of a character (T5's `½`), and one of them is unknown,
    the character is.
    """
    found: Counter[str] = Counter()
    if unk_id is None or unk_id not in pieces.ids:
        return found
    made_up = False
    for id, cut in zip(pieces.ids, pieces.cut(text), strict=True):
        if id == unk_id or made_up:
            found.update(cut.strip())
        made_up = id == unk_id and not cut
    return found


@lru_cache(maxsize=8)
def _lacking(tokenizer: Tokenizer) -> frozenset[str]:
    """Characters of the tables that a tokenizer cannot write, though it can what replaces them."""
    return frozenset(
        character
        for character, new in CHARACTERS.items()
        # Normalisation may write the very same: three dots for T5's `…`.
        if tokenizer.decode(tokenizer.encode(character)) not in (character, new)
        and tokenizer.unk_id not in tokenizer.encode(new)
    )
