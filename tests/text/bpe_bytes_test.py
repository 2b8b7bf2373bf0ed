import pytest

from cot_flax.text.bpe_bytes import byte_ends, byte_level_bytes, fallback_bytes


@pytest.mark.parametrize(
    ("piece", "level", "fallback"),
    [
        ("Ġsold", b" sold", "Ġsold".encode()),
        ("▁sold", "▁sold".encode(), b" sold"),
        ("æĹ", b"\xe6\x97", "æĹ".encode()),
        ("<0x0A>", b"<0x0A>", b"\n"),
        ("Ċ", b"\n", "Ċ".encode()),
    ],
)
def test_bytes_of_a_piece(piece, level, fallback):
    assert (byte_level_bytes(piece), fallback_bytes(piece)) == (level, fallback)


def test_every_byte_has_its_letter():
    letters = [chr(c) for c in range(0x180) if len(byte_level_bytes(chr(c))) == 1]
    single = {byte_level_bytes(letter) for letter in letters}
    assert {bytes([byte]) for byte in range(256)} <= single


# In each: a text, the bytes of its pieces, the library's offsets, and the ends by hand.
@pytest.mark.parametrize(
    ("text", "parts", "offsets", "ends"),
    [
        ("", [], [], []),
        # The bytes are the text's: offsets are not asked.
        ("日a", [b"\xe6\x97", b"\xa5a"], [(7, 7), (7, 7)], [2, 4]),
        ("日a", [b" \xe6", b"\x97\xa5", b"a"], [(7, 7)] * 3, [1, 3, 4]),
        ("a", [b" ", b"a"], [(7, 7), (7, 7)], [0, 1]),
        # `e` and an accent became one character, of one piece or of two.
        ("xe\u0301y", [b"x", b"\xc3\xa9", b"y"], [(0, 1), (1, 2), (3, 4)], [1, 4, 5]),
        (
            "xe\u0301y",
            [b"x", b"\xc3", b"\xa9", b"y"],
            [(0, 1), (1, 2), (1, 2), (3, 4)],
            [1, 3, 4, 5],
        ),
        # A visible space of the text is a space in the piece.
        ("▁a", [b" ", b" ", b"a"], [(0, 1), (0, 1), (1, 2)], [2, 3, 4]),
        # White space that normalisation took away stays with what is before it.
        ("a b ", [b"a", b"b"], [(0, 1), (2, 3)], [2, 4]),
    ],
)
def test_ends(text, parts, offsets, ends):
    assert byte_ends(text, parts, offsets) == ends
