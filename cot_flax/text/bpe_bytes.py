"""Which bytes a piece of a BPE vocabulary stands for, and which bytes of a text are its own."""

import re
from collections.abc import Iterable, Sequence

BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
"""A byte that BPE with byte fallback has no other piece for."""

_SPACE = "\u2581"  # the visible space of SentencePiece, and of BPE with byte fallback


def _byte_alphabet() -> dict[str, int]:
    """The letter for each byte in byte-level BPE: itself where it prints, or else from U+0100 on.

    Source: Radford et al. 2019, `bytes_to_unicode` of GPT-2's encoder.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = [*map(chr, printing), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip(letters, printing + others, strict=True))


_BYTE_OF = _byte_alphabet()


def byte_level_bytes(piece: str) -> bytes:
    """Of a piece of byte-level BPE."""
    return b"".join(
        bytes([_BYTE_OF[letter]]) if letter in _BYTE_OF else letter.encode() for letter in piece
    )


def fallback_bytes(piece: str) -> bytes:
    """Of a piece of BPE with byte fallback."""
    if match := BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(match[1])
    return piece.replace(_SPACE, " ").encode()


def byte_ends(text: str, parts: Sequence[bytes], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each piece the byte of the text that follows it; the last one's is the text's length.

    Where the parts are the text, but for a prefix, they alone say so. Where normalisation changed
    the text, they are counted within stretches of it that share no character.

    Args:
        parts: bytes that each piece stands for.
        offsets: half-open ranges of characters, for each piece, as the library gives them: those
            of a divided character are the same for all of its pieces.
    """
    data = text.encode()
    if not parts:
        return []
    if b"".join(parts).endswith(data):
        return _ends_from_the_right(parts, 0, len(data))
    byte_at = [0]
    for character in text:
        byte_at.append(byte_at[-1] + len(character.encode()))
    ends: list[int] = []
    for start, stop in _overlapping(offsets):
        begin = ends[-1] if ends else 0
        # What normalisation left out, such as an accent of its own, stays with what it follows.
        end = len(data) if stop == len(parts) else byte_at[offsets[stop][0]]
        ends += _ends_from_the_right(parts[start:stop], begin, max(begin, end))
    return ends


def _ends_from_the_right(parts: Sequence[bytes], begin: int, end: int) -> list[int]:
    """Lays the parts side by side so that they end at `end`; none begins before `begin`."""
    ends = []
    for part in reversed(parts):
        ends.append(end)
        end = max(begin, end - len(part))
    return ends[::-1]


def _overlapping(offsets: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Yields ranges of pieces that share characters with their neighbours."""
    start, reached = 0, offsets[0][1]
    for i, (begin, end) in enumerate(offsets):
        if begin >= reached and i > start:
            yield start, i
            start = i
        reached = end
    yield start, len(offsets)
