import pytest

from cot_flax.chains.student_pieces import Student
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH


@pytest.fixture(scope="module")
def t5(shared_data):
    return Student(shared_data / "t5_vocab" / "spiece.model")


@pytest.fixture(scope="module")
def world():
    return Student(VOCABULARY_PATH)


def test_the_model_comes_as_bytes_or_as_a_path(world):
    same = Student(VOCABULARY_PATH.read_bytes())
    assert same.encode("First, 3 + 4 = 7.") == world.encode("First, 3 + 4 = 7.")
    assert same.piece_to_id == world.piece_to_id


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/none \(No such file"):
        Student(tmp_path / "none")
    with pytest.raises(UserError, match="5 bytes that are no SentencePiece model"):
        Student(b"model")


def test_only_what_text_can_become_has_an_id(t5):
    assert not t5.piece_to_id.keys() & {"<pad>", "</s>", "<unk>"}
    assert len(t5.piece_to_id) == 32000 - 3
    ids = t5.encode("If Natalia sold 48 clips").ids
    strings = t5.encode("If Natalia sold 48 clips").strings
    assert [t5.piece_to_id[string] for string in strings] == list(ids)


# From the normalisation's own rules (NFKC, white space joined, one put in front) and the pieces.
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n", []),
        ("If", [("▁If", "If")]),
        ("  If", [("▁If", "If")]),
        ("x.\nIf", [("▁", ""), ("x", "x"), (".", "."), ("▁If", "\nIf")]),
        ("a \n\n If", [("▁", ""), ("a", "a"), ("▁If", " \n\n If")]),
        (" earns", [("▁earn", "earn"), ("s", "s")]),
        ("48/2", [("▁48", "48"), ("/2", "/2")]),
        ("If{~}If", [("▁If", "If"), ("{~}", "{~}"), ("If", "If")]),
        ("If 😀", [("▁If", "If"), ("▁", " "), ("😀", "😀")]),
        ("ﬁne", [("▁fine", "ﬁne")]),
        ("If ½", [("▁If", "If"), ("▁1", ""), ("⁄", ""), ("2", " ½")]),
        ("e\u0301", [("▁", ""), ("é", "e\u0301")]),
        ("…", [("▁", ""), ("...", "…")]),
    ],
)
def test_spans_are_the_bytes_that_a_piece_stands_for(t5, text, pieces):
    found = t5.encode(text)
    data = text.encode()
    assert found.strings == tuple(string for string, _ in pieces)
    if "½" not in text:
        spans = [data[begin:end].decode() for begin, end in found.spans]
        assert spans == [span for _, span in pieces]
    # Without gaps from the first to the last byte, white space around the text aside.
    ends = [end for _, end in found.spans]
    assert [begin for begin, _ in found.spans][1:] == ends[:-1]
    assert not ends or ends[-1] == len(data)


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        (" If", "▁If"),
        ("\nIf", "▁If"),
        (" \n If", "▁If"),
        ("If", "If"),  # inside a word: as it stands
        ("/2", "/2"),
        (" earns", "▁earn"),  # begins a word: tokenized
        (" earns more", "▁earn"),
        (" 48/2", "▁48"),
        ("earns", None),  # inside a word and no piece: the letters before it are missing
        ("", None),
        (" ", None),
        ("\n\n", None),
        ("{", None),
        ("</s>", None),
        ("<unk>", None),
        ("\ud83d", None),  # half of a character
        (" \ud83d", None),
        ("\u200b", None),  # normalisation leaves nothing of it
    ],
)
def test_the_first_piece_of_a_text(t5, text, piece):
    expected = 0 if piece is None else t5.piece_to_id[piece]
    for _ in range(2):  # also when it has been asked for before
        assert t5.first_piece(text) == expected


def test_the_first_piece_of_a_word_is_that_of_any_text_that_goes_on_with_a_word(world):
    """Pieces never reach over a word mark."""
    for word in ("First", "Then", "apples", "12", "Together", "+", "Anna"):
        for behind in ("", " 7", " has", "\nThe answer"):
            expected = world.encode(f"has {word}{behind}").ids[1]
            assert world.first_piece(f" {word}") == expected
