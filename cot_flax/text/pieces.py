"""What all tokenizers share: special ids, and a text in pieces."""

import codecs
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cot_flax.errors import UserError
from cot_flax.files import path_at

SPACE = "\u2581"
"""The visible space of SentencePiece, and of BPE with byte fallback."""

ABSENT_ID = -1
"""In a teacher's row: no entry. No id of any vocabulary is negative."""

MOST_REMEMBERED = 1 << 18
"""First pieces that a tokenizer remembers: some 50 MB."""


class SpecialIds(NamedTuple):
    """Ids of a vocabulary that are no text.

    Attributes:
        pad: fills what is left of a row.
        end: closes a text.
        start: what a decoder reads before its first token.
    """

    pad: int
    end: int
    start: int


@dataclass(frozen=True)
class Pieces:
    """A text as a tokenizer cuts it, without the end.

    Attributes:
        strings: the text of each of M pieces, with U+2581 for a space.
        ids: M ids.
        spans: M half-open byte ranges of the UTF-8 text. They follow each other without gaps; a
            character may be divided. White space around a text, which SentencePiece drops, is in
            none. A piece that normalisation made up (the second of `½` with T5's vocabulary) has
            an empty one.
    """

    strings: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def cut(self, text: str) -> list[str]:
        """The parts of the text in the spans; the last piece of a divided character has it all."""
        data, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
        return [decoder.decode(data[begin:end]) for begin, end in self.spans]


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a file here or in a bucket; raises UserError where it cannot be read."""
    try:
        return path_at(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} ({error.strerror or error})", "a tokenizer's file", "check the path"
        ) from error


def before_end(ids: Iterable[int], end: int) -> list[int]:
    """The ids before the first end; all where there is none."""
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


def is_text(text: str) -> bool:
    """Whether it has a UTF-8 form; a half of a character, which JSON can hold, has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
