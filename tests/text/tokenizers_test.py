"""The tokenizer against SeqIO on any text, and against Hugging Face where that agrees with it."""

import pickle
import re
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.text.tokenizers import (
    T5_SPECIAL_IDS,
    ByteTokenizer,
    SentencePieceTokenizer,
    open_tokenizer,
)

SENTINEL, SPACE = "<extra_id_0>", "\u2581"
WORDS = ["the ", "Tom has ", "apples", "12", "3.5", "jel", "ly", "-", "{x}", "<~^\\", "😀", "漢字"]
WHITE = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\u2028"]
UNUSUAL = ["½", "ﬁ", "…", "e\u0301", "\u0301", "\u200d", "\u0085", "\u2581", "</s>", "<unk>", "각"]


@pytest.fixture(scope="module", params=["t5", "world"])
def path(request):
    """T5's vocabulary, and on any clone the embedded world's."""
    if request.param == "world":
        return VOCABULARY_PATH
    return request.getfixturevalue("shared_data") / "t5_vocab" / "spiece.model"


@pytest.fixture(scope="module")
def tokenizer(path):
    return SentencePieceTokenizer(path)


@pytest.fixture(scope="module")
def t5(shared_data):
    return SentencePieceTokenizer(shared_data / "t5_vocab" / "spiece.model")


# What it says of itself ---------------------------------------------------------------------------


def test_t5_has_32100_ids_of_which_the_first_sentinel_is_the_last(t5):
    assert t5.vocab_size == 32_100
    assert (t5.special_ids, t5.unk_id) == (T5_SPECIAL_IDS, 2)
    assert t5.piece_to_id(f"{SPACE}{SENTINEL}") == 32_099
    assert t5.id_to_piece(32_000) == f"{SPACE}<extra_id_99>"
    assert t5.piece_to_id("no such piece") == 2
    assert t5.encode("Hello world.") == [8774, 296, 5]  # as published for T5
    assert t5.encode(f"a {SENTINEL} <extra_id_1>")[-2:] == [32_099, 32_098]


def test_without_sentinels_they_are_text():
    plain = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    with_sentinels = SentencePieceTokenizer(VOCABULARY_PATH)
    assert with_sentinels.vocab_size == plain.vocab_size + 100
    assert with_sentinels.encode(SENTINEL) == [plain.vocab_size + 99]
    assert len(plain.encode(SENTINEL)) > 1


def test_the_model_is_that_of_the_file(path, tokenizer):
    assert tokenizer.model == path.read_bytes()
    assert SentencePieceTokenizer(tokenizer.model).fingerprint == tokenizer.fingerprint


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/none \(No such file"):
        SentencePieceTokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=r"tokenizers_test\.py: [\d,]+ bytes that are no Sentence"):
        SentencePieceTokenizer(__file__)
    for content in (b"", b"model"):
        with pytest.raises(UserError, match=f"got {len(content)} bytes that are no SentencePiece"):
            SentencePieceTokenizer(content, extra_ids=0)


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_a_checkpoint_names_its_sentinels(extra_ids):
    trained_with = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=extra_ids)
    found = open_tokenizer(VOCABULARY_PATH, trained_with.fingerprint)
    assert found.vocab_size == trained_with.vocab_size


def test_a_checkpoint_refuses_another_vocabulary():
    plain = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    assert open_tokenizer(VOCABULARY_PATH, "").vocab_size == plain.vocab_size
    with pytest.raises(UserError, match=f"{plain.fingerprint} at .*vocabulary 0123456789abcdef"):
        open_tokenizer(VOCABULARY_PATH, "0123456789abcdef")


# Pieces -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return open_tokenizer(VOCABULARY_PATH)


# From the normalisation's own rules (NFKC, white space merged, one put in front) and the pieces.
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
    found = t5.pieces(text)
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
    expected = None if piece is None else t5.piece_to_id(piece)
    for _ in range(2):  # also when it has been asked for before
        assert t5.first_piece(text) == expected


def test_the_first_piece_of_a_word_is_that_of_any_text_that_goes_on_with_a_word(world):
    """Pieces never reach over a word mark."""
    for word in ("First", "Then", "apples", "12", "Together", "+", "Anna"):
        for behind in ("", " 7", " has", "\nThe answer"):
            expected = world.encode(f"has {word}{behind}")[1]
            assert world.first_piece(f" {word}") == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from([*WORDS, *WHITE, *UNUSUAL])).map("".join))
def test_parts_of_a_text_and_of_its_ids(text, world):
    """Spans leave out no more than white space around the text."""
    pieces = world.pieces(text)
    assert list(pieces.ids) == world.encode(text)
    if pieces.ids:
        before, _, after = text.partition("".join(pieces.cut(text)))
        assert world.encode(before) == world.encode(after) == []
    assert "".join(world.surfaces(pieces.ids)) == world.decode(pieces.ids)


def test_what_is_a_text_by_itself(world):
    mute = [i for i, writable in enumerate(world.writable) if not writable]
    assert mute == sorted({*world.special_ids, world.unk_id})
    first = world.piece_to_id("▁First")
    assert world.id_to_text(first) == " First"
    assert (world.whole_piece(" First"), world.whole_piece("</s>")) == (first, None)


# Files --------------------------------------------------------------------------------------------


def test_special_ids_are_those_of_the_file(world):
    proto = ModelProto.FromString(world.model)
    proto.pieces[0].piece = "no pad"
    with pytest.raises(UserError, match="with pad_id -1 and eos_id 1; expected both, from 0"):
        SentencePieceTokenizer(proto.SerializeToString())


def test_it_goes_to_other_processes(tokenizer):
    other = pickle.loads(pickle.dumps(tokenizer))
    assert (other.fingerprint, other.vocab_size) == (tokenizer.fingerprint, tokenizer.vocab_size)


def test_a_folder_may_be_opened(tmp_path, world):
    shutil.copy(VOCABULARY_PATH, tmp_path / "spiece.model")
    (tmp_path / "tokenizer.json").write_text("{}")  # of another kind: the model comes first
    assert open_tokenizer(tmp_path).fingerprint == world.fingerprint


# SeqIO --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seqios(path):
    seqio = pytest.importorskip("seqio", reason="the reference needs SeqIO and TensorFlow")
    return seqio.SentencePieceVocabulary(str(path), extra_ids=100)


FRAGMENTS = [
    *WORDS,
    *WHITE,
    *UNUSUAL,
    SENTINEL,
    " <extra_id_7>",
    "<extra_id_99> ",
    "<extra_id_100>",
]
TEXTS = st.text() | st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3)).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_ids_and_texts_are_those_of_seqio(text, tokenizer, seqios):
    ids = tokenizer.encode(text)
    assert ids == list(seqios.encode(text))
    assert tokenizer.decode(ids) == seqios.decode(ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 40) | st.integers(0, 32_127)))
@example(ids=[])
@example(ids=[32_100, 32_127])  # rows of T5's embedding that no piece has
def test_any_ids_decode_as_with_seqio(ids, tokenizer, seqios):
    assert tokenizer.decode(ids) == seqios.decode(ids)


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_the_fingerprint_is_that_of_the_data(extra_ids, path, seqios):
    import seqio

    from cot_flax.data import features

    vocabulary = seqio.SentencePieceVocabulary(str(path), extra_ids=extra_ids)
    ours = SentencePieceTokenizer(path, extra_ids=extra_ids).fingerprint
    assert ours == features.fingerprint(vocabulary) and re.fullmatch("[0-9a-f]{16}", ours)


# Hugging Face -------------------------------------------------------------------------------------


def hugging_faces(path, folder):
    """Ids of a text as `AutoTokenizer` gives them for a folder with the file."""
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    shutil.copy(path, folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda text: theirs.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def hugging_face(path, tmp_path_factory):
    return hugging_faces(path, tmp_path_factory.mktemp("tokenizer"))


def _normalised_otherwise(text):
    """Whether a letter of several characters, such as `e` and an accent, or U+0085 is in it.

    The tokenizers in Rust normalise letter by letter where SentencePiece goes by characters, and
    those of transformers 5 take U+0085 for a space.
    """
    regex = pytest.importorskip("regex")  # transformers brings it
    letters = regex.findall(r"\X", text)
    return "\u0085" in text or any(len(letter) > 1 for letter in letters if letter != "\r\n")


def _tied(tokenizer, ids, others):
    """Whether both are segmentations of one string with one score; Rust picks another then."""
    processor = SentencePieceProcessor(model_proto=tokenizer.model)
    strings, scores = [], []
    for some in (ids, others):
        strings.append("".join(tokenizer.id_to_piece(i) for i in some))
        scores.append(sum(processor.GetScore(i) for i in some))
    return strings[0] == strings[1] and scores[0] == pytest.approx(scores[1], abs=1e-4)


SPELLED = [fragment for fragment in WORDS + WHITE + UNUSUAL if fragment not in ("</s>", "<unk>")]
SENTINEL_WORDS = st.integers(0, 99).map(" <extra_id_{}> ".format)
AGREED = st.lists(st.sampled_from(SPELLED) | SENTINEL_WORDS | st.text(max_size=3)).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=AGREED.filter(lambda text: not _normalised_otherwise(text)))
@example(text="")
@example(text=" \n ")
@example(text=SENTINEL)
@example(text=f" {SENTINEL}  <extra_id_1>\n 😀 {{~}} ")
def test_ids_are_those_of_hugging_face(text, tokenizer, hugging_face):
    ids, theirs = tokenizer.encode(text), hugging_face(text)
    assert ids == theirs or _tied(tokenizer, ids, theirs)


# Ours are SeqIO's (see above), with which the models were trained; "?" is an unknown piece.
@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        ("A<extra_id_0>", "▁A ? extra _ i d _ 0 >", "▁A ▁<extra_id_0>"),  # glued to what precedes
        ("<extra_id_0>ly", "▁<extra_id_0> ly", "▁<extra_id_0> ▁ ly"),  # what follows begins a word
        ("A </s>", "▁A ▁ ? / s >", "▁A </s>"),
        ("A <unk>", "▁A ▁ ? unk >", "▁A ?"),
        ("…\u0301", "▁ ... ?", "▁ ..."),  # the accent is lost
    ],
)
def test_where_hugging_face_reads_otherwise(text, ours, theirs, t5, shared_data, tmp_path):
    hugging_face = hugging_faces(shared_data / "t5_vocab" / "spiece.model", tmp_path)
    found = [t5.encode(text), hugging_face(text)]
    pieces = [[t5.id_to_piece(i).replace("<unk>", "?") for i in ids] for ids in found]
    assert [" ".join(row) for row in pieces] == [ours, theirs]


# Bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra_ids", [0, 7])
@given(st.text(), st.lists(st.integers(0, 270)))
def test_bytes_are_those_of_seqio(extra_ids, text, ids):
    seqio = pytest.importorskip("seqio")
    ours, theirs = ByteTokenizer(extra_ids), seqio.ByteVocabulary(extra_ids)
    assert (ours.vocab_size, ours.unk_id) == (theirs.vocab_size, theirs.unk_id)
    assert (ours.special_ids.pad, ours.special_ids.end) == (theirs.pad_id, theirs.eos_id)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode([*ours.encode(text), 1, 70]) == text
    assert ours.decode(ids) == theirs.decode(ids)


def test_parts_of_bytes():
    ours = ByteTokenizer()
    a, e = ours.encode("a")[0], ours.encode("é")
    assert (a, e) == (100, [198, 172])
    assert ours.surfaces([a, *e, a]) == ["a", "", "é", "a"]
    pieces = ours.pieces("a é")
    assert pieces.ids == (a, 35, *e)
    assert pieces.spans == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert pieces.cut("a é") == ["a", " ", "", "é"]
    assert [ours.id_to_piece(i) for i in (0, 1, 2, a)] == ["<pad>", "</s>", "<unk>", "<0x61>"]
    assert all(ours.piece_to_id(ours.id_to_piece(i)) == i for i in range(ours.vocab_size))
    assert [ours.writable[i] for i in (0, a, e[0])] == [False, True, False]
    assert (ours.whole_piece("a"), ours.whole_piece("é"), ours.whole_piece("ab")) == (a, None, None)
    assert (ours.first_piece("é"), ours.first_piece("")) == (e[0], None)
    assert pickle.loads(pickle.dumps(ours)).fingerprint == ours.fingerprint
