"""The student's tokenizer as the teacher's side needs it: pieces, ids, and where each one lies."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cot_flax.text.tokenizers import Tokenizer

_SPACE = "\u2581"  # SentencePiece's visible space
_MOST_REMEMBERED = 1 << 18  # strings, some 30 MB


@dataclass(frozen=True)
class Pieces:
    """A text as the student reads it, without EOS.

    Attributes:
        strings: M pieces.
        ids: M ids.
        spans: M half-open byte ranges of the UTF-8 text, from SentencePiece's own record of how it
            normalised it. They follow each other without gaps; a piece that normalisation made up
            (the second of `½`) has an empty one.
    """

    strings: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class Student:
    """A SentencePiece vocabulary.

    Args:
        model: the serialized model, as bytes or as the path of its file.

    Raises:
        UserError: there is no such file, or it holds no SentencePiece model.
    """

    def __init__(self, model: bytes | str | os.PathLike):
        self._processor = Tokenizer(model, extra_ids=0).processor
        self._first_pieces = _Memo(self._look_up)

    @cached_property
    def piece_to_id(self) -> dict[str, int]:
        """Every piece that text can become; unknown, control and unused ones are left out."""
        processor = self._processor
        return {
            processor.IdToPiece(i): i
            for i in range(processor.GetPieceSize())
            if not (processor.IsUnknown(i) or processor.IsControl(i) or processor.IsUnused(i))
        }

    def encode(self, text: str) -> Pieces:
        """Tokenizes `text` as the student will."""
        pieces = self._processor.encode(text, return_type="proto").pieces
        return Pieces(
            tuple(piece.piece for piece in pieces),
            tuple(piece.id for piece in pieces),
            tuple((piece.begin, piece.end) for piece in pieces),
        )

    @property
    def first_piece(self) -> Callable[[str], int]:
        """Gives the id of the piece that a text starts with, or 0 where that is not known.

        White space at the start of the text makes the first piece begin a word. A text that is a
        piece as it stands is that piece. Any other one is tokenized where it begins a word; inside
        a word the tokenizer would need the letters before it, so that the answer is 0, as it is
        for white space alone and for what the vocabulary does not know.
        """
        return self._first_pieces.__getitem__

    def _look_up(self, text: str) -> int:
        words = _SPACE.join(text.split())
        if not words or not _is_text(text):
            return 0
        begins_word = text[0].isspace()
        whole = self.piece_to_id.get(_SPACE * begins_word + words, 0)
        if whole or not begins_word:
            return whole
        # Normalisation may leave nothing, of a zero-width space for instance.
        first = next(iter(self._processor.encode(text)), None)
        return 0 if first is None or self._processor.IsUnknown(first) else first


def _is_text(text: str) -> bool:
    """Whether it has a UTF-8 form; a half of a character, which JSON can hold, has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Memo(dict):
    """Results of a function by its argument, forgotten when there are too many of them."""

    def __init__(self, function: Callable[[str], int]):
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> int:
        if len(self) >= _MOST_REMEMBERED:
            self.clear()
        self[text] = result = self._function(text)
        return result
