"""BPE files of Hugging Face, against transformers on any text and against the bytes themselves."""

import json
import pickle
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tokenizers import END, START, byte_fallback, byte_level, write
from tokenizers import normalizers

from cot_flax.errors import UserError
from cot_flax.text.bpe import HuggingFaceTokenizer, byte_ends, byte_level_bytes, fallback_bytes
from cot_flax.text.pieces import SpecialIds
from cot_flax.text.tokenizers import open_tokenizer

MODERN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
KINDS = {
    "GPT-2": byte_level,
    "prefix": lambda folder: byte_level(folder, prefix=True),
    "Qwen": lambda folder: byte_level(folder, regex=MODERN, normalizer=normalizers.NFC()),
    "Llama 2": byte_fallback,
    "metaspace": lambda folder: byte_fallback(folder, metaspace=True),
}
EXACT = ["GPT-2", "prefix"]  # no normalisation: spans are the bytes of the pieces

FRAGMENTS = [
    *("sold", " 48", "/2", " apples", " ", "  ", "\n", "\n\n", "\t", "\u2028", "é", "e\u0301"),
    *("日本", "漢", "😀", " 👩\u200d🚀", "½", "\u2581", "<0x41>", END, "</s>", "<unk>", "\u0120"),
]
TEXTS = st.text() | st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3)).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp("bpe") / "t") for kind, make in KINDS.items()}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def tokenizer(folder):
    return open_tokenizer(folder)


@pytest.fixture(scope="module")
def gpt2(folders):
    return open_tokenizer(folders["GPT-2"])


@pytest.fixture(scope="module")
def llama(folders):
    return open_tokenizer(folders["Llama 2"])


# transformers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(folder):
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text=f"a {END} b")
def test_ids_are_those_of_transformers(text, tokenizer, theirs):
    assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_with_transformers(data, tokenizer, theirs):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 20)))
    end = tokenizer.special_ids.end
    before = ids[: ids.index(end)] if end in ids else ids
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    assert tokenizer.decode(ids) == theirs.decode(before, **options)


# Bytes --------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="e\u0301 日本 e\u0301")
@example(text="\u2581a 😀")
def test_spans_divide_the_text(text, tokenizer):
    pieces = tokenizer.pieces(text)
    assert pieces.ids == tuple(tokenizer.encode(text))
    bounds = [0, *(end for _, end in pieces.spans)]
    assert [begin for begin, _ in pieces.spans] == bounds[:-1]
    assert bounds == sorted(bounds) and bounds[-1] == len(text.encode())
    assert "".join(pieces.cut(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_span_has_the_bytes_of_its_piece(text, folders):
    """Spelled by transformers' own table of letters."""
    slow = pytest.importorskip("transformers.convert_slow_tokenizer", reason="needs transformers")
    letters = slow.bytes_to_unicode()
    for kind in EXACT:
        if kind == "prefix" and END in text:  # what follows it gets a prefix, too
            continue
        tokenizer = open_tokenizer(folders[kind])
        pieces, data = tokenizer.pieces(text), text.encode()
        for at, (id, (begin, end)) in enumerate(zip(pieces.ids, pieces.spans, strict=True)):
            spelled = "".join(letters[byte] for byte in data[begin:end])
            expected = tokenizer.id_to_piece(id)
            if id == tokenizer.special_ids.end:
                spelled = data[begin:end].decode()
            if kind == "prefix" and at == 0:
                expected = expected[len(expected) - len(spelled) :]
            assert spelled == expected


def spans(tokenizer, text):
    pieces, data = tokenizer.pieces(text), text.encode()
    found = [data[begin:end] for begin, end in pieces.spans]
    return [(s, b) for s, b in zip(pieces.strings, found, strict=True)]


def test_pieces_of_a_divided_character(gpt2, llama):
    assert spans(gpt2, "日") == [("�", b"\xe6\x97"), ("�", b"\xa5")]
    assert spans(llama, " 😀") == [
        ("▁", b""),
        ("▁", b" "),
        ("�", b"\xf0"),
        ("�", b"\x9f"),
        ("�", b"\x98"),
        ("�", b"\x80"),
    ]
    assert llama.pieces("a😀b").cut("a😀b") == ["a", "", "", "", "😀", "b"]


def test_normalised_characters_keep_their_bytes(folders):
    """NFC makes one piece or two of `e` and an accent; what follows stays in its place."""
    found = spans(open_tokenizer(folders["Qwen"]), "sold e\u0301 日")
    assert b"".join(part for _, part in found) == "sold e\u0301 日".encode()
    accent = next(i for i, (string, _) in enumerate(found) if "é" in string)
    assert found[accent][1].endswith("e\u0301".encode())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_surfaces_join_to_the_decoded_text(data, tokenizer):
    ids = data.draw(
        st.lists(st.integers(0, tokenizer.vocab_size - 1)) | TEXTS.map(tokenizer.encode)
    )
    ids = [i for i in ids if i != tokenizer.special_ids.end]
    surfaces = tokenizer.surfaces(ids)
    assert (len(surfaces), "".join(surfaces)) == (len(ids), tokenizer.decode(ids))


def test_the_last_piece_of_a_character_writes_it(gpt2):
    ids = gpt2.encode("a 漢")
    assert len(ids) > 3
    assert [s for s in gpt2.surfaces(ids) if s] == ["a", " ", "漢"]
    assert gpt2.surfaces(ids)[-1] == "漢"


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


# Vocabulary ---------------------------------------------------------------------------------------


def test_writable_pieces_are_texts(tokenizer):
    for id, writable in enumerate(tokenizer.writable):
        text, piece = tokenizer.id_to_text(id), tokenizer.id_to_piece(id)
        assert writable == ("\ufffd" not in text and piece not in (END, "<s>", "</s>", "<unk>"))
        if writable:
            same = tokenizer.whole_piece(text)
            assert tokenizer.id_to_text(same) == text
            assert same == id or re.fullmatch("<0x..>", piece)


def test_pieces_by_their_spelling(gpt2, llama):
    assert gpt2.id_to_piece(gpt2.piece_to_id("Ġsold")) == "Ġsold"
    assert gpt2.piece_to_id("no such piece") is None
    assert gpt2.whole_piece(" sold") == gpt2.piece_to_id("Ġsold")
    assert llama.whole_piece("\n") == llama.piece_to_id("<0x0A>")
    assert llama.whole_piece("</s>") is gpt2.whole_piece(END) is None


@pytest.mark.parametrize(
    ("text", "gpt2s", "llamas"),
    [
        (" sold", "Ġsold", "▁sold"),
        (" sold 48", "Ġsold", "▁sold"),
        ("sold", "sold", "sold"),  # inside a word: as it stands
        ("solder", None, None),  # the letters before it are missing
        ("o", "o", "o"),
        ("\n", "Ċ", "<0x0A>"),
        ("\nsold", "Ċ", "<0x0A>"),
        (" ", None, None),
        ("", None, None),
        (END, None, None),
        (" \ud83d", None, None),
        ("zz", None, None),
    ],
)
def test_the_first_piece_of_a_text(gpt2, llama, text, gpt2s, llamas):
    for tokenizer, piece in ((gpt2, gpt2s), (llama, llamas)):
        expected = None if piece is None else tokenizer.piece_to_id(piece)
        assert tokenizer.first_piece(text) == expected, tokenizer


def test_the_first_piece_of_a_word_is_that_of_any_text_that_goes_on_with_it(tokenizer):
    for word in ("sold", "apples", "48", "zebra", "日本", "The"):
        for behind in ("", " 7", " has", "\nThe answer"):
            before = tokenizer.encode("Tom has")
            found = tokenizer.encode(f"Tom has {word}{behind}")
            assert found[: len(before)] == before
            assert tokenizer.first_piece(f" {word}") == found[len(before)]


@pytest.mark.parametrize("before", ["", "\n"])
def test_the_first_piece_of_a_text_and_of_a_line(tokenizer, before):
    """Nothing before it is missing, so that any text is settled."""
    for text in ("sold", "solder", " sold", "The answer", "48/2", "日本"):
        behind = tokenizer.encode(f"{before}{text} 7 has")[len(tokenizer.encode(before)) :]
        assert tokenizer.first_piece(text, before) == behind[0]
    assert tokenizer.first_piece(" ", before) is None


# Special ids and files ----------------------------------------------------------------------------


def test_special_ids_come_from_the_files_beside(tmp_path):
    tokens = (END, START, "<|pad|>")
    folder = byte_level(tmp_path, special=tokens)
    settings = json.loads((folder / "tokenizer.json").read_text())
    end, start, pad = (settings["model"]["vocab"][token] for token in tokens)
    assert open_tokenizer(folder).special_ids == SpecialIds(end, end, end)
    write(folder, settings, eos_token=END, bos_token=START, pad_token={"content": "<|pad|>"})
    assert open_tokenizer(folder / "tokenizer.json").special_ids == SpecialIds(pad, end, start)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no end of a text beside"):
        open_tokenizer(folder)
    generation = {"eos_token_id": [end, pad], "bos_token_id": start}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert open_tokenizer(folder).special_ids == SpecialIds(end, end, start)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9999}))
    with pytest.raises(UserError, match=r"tokenizer.json with SpecialIds\(pad=9999, end=9999"):
        open_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|pad|>"}))
    assert open_tokenizer(folder).special_ids == SpecialIds(pad, pad, start)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<other>"}))
    with pytest.raises(UserError, match=r"eos_token '<other>' in .*special_tokens_map"):
        open_tokenizer(folder)


def test_the_fingerprint_is_of_vocabulary_and_special_ids(folder, tokenizer):
    assert re.fullmatch("[0-9a-f]{16}", tokenizer.fingerprint)
    settings = json.loads((folder / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    lengths = json.dumps(settings | {"truncation": cut}).encode()
    same = HuggingFaceTokenizer(lengths, tokenizer.special_ids)
    assert same.fingerprint == tokenizer.fingerprint
    assert same.encode("Tom has 12 apples") == tokenizer.encode("Tom has 12 apples")
    other = HuggingFaceTokenizer(tokenizer.model, tokenizer.special_ids._replace(pad=5))
    assert other.fingerprint != tokenizer.fingerprint


def test_another_vocabulary_is_refused(folder, tokenizer):
    assert open_tokenizer(folder, tokenizer.fingerprint).vocab_size == tokenizer.vocab_size
    with pytest.raises(UserError, match=f"{tokenizer.fingerprint} at .*lary 0123456789abcdef"):
        open_tokenizer(folder, "0123456789abcdef")


def test_it_goes_to_other_processes(tokenizer):
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other.fingerprint == tokenizer.fingerprint
    assert other.encode("Tom has 日本") == tokenizer.encode("Tom has 日本")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"tokenizer.json \(JSONDecodeError"),
        ("[]", r"tokenizer.json \(TypeError"),
        ('{"tokens": []}', r"tokenizer.json \(KeyError"),
        ('{"model": {"type": "Unigram", "vocab": []}}', "of the kind Unigram; expected byte-level"),
        ('{"model": {"type": "BPE", "vocab": {}}}', "of the kind BPE without bytes"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no tokenizer in {tmp_path}"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_its_files_open_as_the_same_tokenizer(make, tmp_path):
    tokenizer = open_tokenizer(make(tmp_path / "one"))
    (tmp_path / "other").mkdir()
    for name, content in tokenizer.files.items():
        (tmp_path / "other" / name).write_bytes(content)
    other = open_tokenizer(tmp_path / "other")
    assert (other.fingerprint, other.special_ids) == (tokenizer.fingerprint, tokenizer.special_ids)
