import itertools
from functools import cache
from math import inf

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tokenizers import byte_fallback, byte_level
from tokenizers import normalizers

from cot_flax.chains.alignment import align, align_by_bytes, edit_distances, warp
from cot_flax.chains.codex import read_codex_dump
from cot_flax.text.pieces import Pieces
from cot_flax.text.tokenizers import open_tokenizer

# Golden vectors: FranxYao/FlanT5-CoT-Specialization @ a8ffd51 (MIT), notebook
# dev_align_codex_to_flan_t5_dtw.ipynb, cells 21 (tokens), 19 (pieces) and 29 (printed alignment).
# A `|` separates entries; in ALIGNED a `&` joins the tokens of one piece.
TOKENS = (
    "W|eng| earns| $|12| for| every| hour| of| babys|itting|.|\n|"
    "She| babys|at| for| 50| minutes|.|\n|"
    "50| minutes| is| less| than| an| hour|,| so| she| earned| less| than| $|12|.|\n|"
    "She| earned| $|12|/|60| *| 50| =| $|10|.|\n|The| answer| is| 10"
)
PIECES = (
    "▁We|ng|▁earn|s|▁$12|▁for|▁every|▁hour|▁of|▁baby|s|i|tting|.|"
    "▁She|▁baby|s|at|▁for|▁50|▁minutes|.|"
    "▁50|▁minutes|▁is|▁less|▁than|▁an|▁hour|,|▁so|▁she|▁earned|▁less|▁than|▁$12|.|"
    "▁She|▁earned|▁$12|/|60|▁*|▁50|▁=|▁$10|.|▁The|▁answer|▁is|▁10"
)
ALIGNED = (
    "W|eng| earns| $|12| for| every| hour| of| babys| babys| babys|itting|.&\n|"
    "She| babys|at|at| for| 50| minutes|.&\n|"
    "50| minutes| is| less| than| an| hour|,| so| she| earned| less| than| $&12|.&\n|"
    "She| earned| $&12|/|60| *| 50| =& $|10|.&\n|The| answer| is| 10"
)

SMALL = st.lists(st.text(alphabet="ab", max_size=2), min_size=1, max_size=4)


def test_reproduces_the_alignment_printed_by_the_authors():
    tokens = TOKENS.split("|")
    alignment = align(tokens, PIECES.split("|"))
    printed = [row.split("&") for row in ALIGNED.split("|")]
    assert [[tokens[i] for i in row] for row in alignment] == printed
    # Repeated tokens look alike in print: the path must also be monotone and leave nothing out.
    path = [i for row in alignment for i in row]
    assert path == sorted(path)
    assert set(path) == set(range(len(tokens)))


def paths_back(i, j):
    """All paths from cell (i, j) to (0, 0): (steps, cells); step 0 diagonal, 1 token, 2 piece."""
    if (i, j) == (0, 0):
        yield (), ((0, 0),)
    for step, (di, dj) in enumerate([(1, 1), (1, 0), (0, 1)]):
        if i >= di and j >= dj:
            for steps, cells in paths_back(i - di, j - dj):
                yield (step, *steps), ((i, j), *cells)


@given(SMALL, SMALL)
def test_is_the_cheapest_of_all_paths_and_the_first_of_equals(tokens, pieces):
    cost = edit_distances(tokens, pieces)
    _, _, cells = min(
        (sum(cost[cell] for cell in cells), steps, cells)
        for steps, cells in paths_back(len(tokens) - 1, len(pieces) - 1)
    )
    expected = [sorted(i for i, column in cells if column == j) for j in range(len(pieces))]
    assert align(tokens, pieces) == expected


def by_definition(tokens, pieces):
    """The recursion of the paper, cell by cell, and its way back."""
    cost = edit_distances(
        [t.replace(" ", "") for t in tokens], [p.replace("▁", "") for p in pieces]
    )
    f = {(-1, -1): 0}
    for i in range(len(tokens)):
        for j in range(len(pieces)):
            before = [f.get(cell, inf) for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1))]
            f[i, j] = cost[i, j] + min(before)
    i, j = len(tokens) - 1, len(pieces) - 1
    rows = [[] for _ in pieces]
    while i >= 0 and j >= 0:
        rows[j].insert(0, i)
        before = [f.get(cell, inf) for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1))]
        step = before.index(min(before))
        i, j = i - (step != 2), j - (step != 1)
    return rows


@given(
    st.lists(st.text(alphabet="ab \n", max_size=3), min_size=1, max_size=12),
    st.lists(st.text(alphabet="ab▁", max_size=3), min_size=1, max_size=12),
)
def test_equals_the_recursion_of_the_paper(tokens, pieces):
    assert align(tokens, pieces) == by_definition(tokens, pieces)


def test_spaces_and_word_marks_cost_nothing():
    assert align([" a", " b", "c"], ["▁a", "▁b", "c"]) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("tokens", "pieces", "expected"),
    [([], [], []), (["a"], [], []), ([], ["▁a", "b"], [[], []]), (["ab"], ["▁a", "b"], [[0], [0]])],
)
def test_the_smallest_inputs(tokens, pieces, expected):
    assert align(tokens, pieces) == expected


@pytest.fixture(scope="module")
def t5(shared_data):
    return open_tokenizer(shared_data / "t5_vocab" / "spiece.model")


@pytest.fixture(scope="module", params=["t5", "gpt2", "nfc", "llama"])
def vocabulary(request, tmp_path_factory):
    if request.param == "t5":
        return request.getfixturevalue("t5")
    folder = tmp_path_factory.mktemp("bpe")
    if request.param == "llama":
        return open_tokenizer(byte_fallback(folder))
    normalizer = normalizers.NFC() if request.param == "nfc" else None
    return open_tokenizer(byte_level(folder, normalizer=normalizer))


# What normalisation changes: unknown characters, accents, ligatures, fractions, emoji, white space.
PARTS = st.sampled_from([
    *("If", " sold", " 48", "/2", " $12", ".", ",", "\n", "  ", "\n\n", " ", "\t", "\u200b", "㍿"),
    *("{", "}", "~", " {~}", "é", "e\u0301", "ü", "ﬁ", "½", " ½", "…", "①", "😀", " 👩\u200d🚀"),
])  # fmt: skip


@st.composite
def cut_texts(draw):
    """A text and the tokens of a teacher that cuts it anywhere between two characters."""
    text = "".join(draw(st.lists(PARTS | st.characters(codec="utf-8"), min_size=1, max_size=14)))
    places = sorted(draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=12)))
    tokens = [text[i:j] for i, j in itertools.pairwise([0, *places, len(text)])]
    return text, [token for token in tokens if token or draw(st.booleans())]


def owners(sizes):
    """For each byte of a text the number of the part that it belongs to."""
    return [i for i, size in enumerate(sizes) for _ in range(size)]


def byte_by_byte(tokens, pieces, margin):
    """For each piece the tokens that own one of its bytes, from two arrays of owners."""
    owner = owners(len(token.encode()) for token in tokens)[margin:]
    return [sorted(set(owner[begin:end])) for begin, end in pieces.spans]


def without_bytes(pieces):
    """The pieces that normalisation made up, and those that may be aligned together with them."""
    return {j for j, (begin, end) in enumerate(pieces.spans) if begin == end}


def shares(rows, j, k):
    return 0 <= j < len(rows) and 0 <= k < len(rows) and bool(set(rows[j]) & set(rows[k]))


def around(made_up, rows):
    """Their neighbours on both sides, as far as one token reaches into the next piece."""
    found = set()
    for j in made_up:
        low, high = max(j - 1, 0), min(j + 1, len(rows) - 1)
        while shares(rows, low - 1, low):
            low -= 1
        while shares(rows, high, high + 1):
            high += 1
        found |= set(range(low, high + 1))
    return found


@settings(max_examples=300)
@given(cut_texts(), st.integers(0, 3))
@example(
    ("a  b\n\nIf {~} ½ cup ﬁne 😀", ["a ", " b", "\n", "\nIf", " {", "~} ½ ", "cup ﬁne 😀"]), 2
)
def test_pieces_have_the_tokens_that_share_their_bytes(vocabulary, cut, cropped):
    """Byte by byte; the dynamic program decides only around pieces that have no bytes."""
    text, tokens = cut
    cropped = min(cropped, len(text) - len(text.lstrip()))
    pieces = vocabulary.pieces(text[cropped:])
    margin = len(text[:cropped].encode())
    expected = byte_by_byte(tokens, pieces, margin)
    found = align_by_bytes(tokens, pieces, skipped=margin)
    made_up = without_bytes(pieces)
    for j in set(range(len(expected))) - around(made_up, expected):
        assert found[j] == expected[j]
    assert all(row == sorted(set(row)) for row in found)
    if pieces.ids:
        # Whatever decides, a piece gets no token that reaches none of its neighbourhood.
        known = set().union(*expected)
        assert set().union(*found) == known or not known


def test_the_dynamic_program_is_asked_where_a_piece_has_no_bytes(t5):
    """Of "½" SentencePiece says only that its last piece stands for its bytes."""
    tokens = ["A", " half", " is", " ", "½", " of", " it"]
    pieces = t5.pieces("".join(tokens))
    assert [pieces.strings[j] for j in sorted(without_bytes(pieces))] == ["⁄"]
    rows = dict(zip(pieces.strings, align_by_bytes(tokens, pieces), strict=True))
    between = dict(zip(("▁1", "⁄", "2"), align([" ", "½"], ["▁1", "⁄", "2"]), strict=True))
    by_bytes = {"▁A": [0], "▁half": [1], "▁is": [2], "▁of": [5], "▁it": [6]}
    assert rows == by_bytes | {piece: [i + 3 for i in row] for piece, row in between.items()}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["If", " /", "2"], [("▁If", [0]), ("▁", [1]), ("/2", [1, 2])]),
        (["If", "/", "2"], [("▁If", [0]), ("/2", [1, 2])]),
        (["If", ".", "\n", "If"], [("▁If", [0]), (".", [1]), ("▁If", [2, 3])]),
        (["If", ".\n", "If"], [("▁If", [0]), (".", [1]), ("▁If", [1, 2])]),
        (["If", " earns"], [("▁If", [0]), ("▁earn", [1]), ("s", [1])]),
        (["If", " $", "12"], [("▁If", [0]), ("▁$12", [1, 2])]),
        (["If", "", " it"], [("▁If", [0]), ("▁it", [2])]),
    ],
)
def test_what_the_papers_rule_cannot_say(t5, tokens, expected):
    pieces = t5.pieces("".join(tokens))
    rows = align_by_bytes(tokens, pieces)
    assert list(zip(pieces.strings, rows, strict=True)) == expected


def test_a_text_that_goes_on_behind_the_teachers_has_no_tokens_there(t5):
    pieces = t5.pieces("If it is\nThe answer is 2")
    rows = align_by_bytes(["\n ", "If", " it", " is"], pieces, skipped=2)
    assert rows == [[1], [2], [3], [], [], [], []]


@pytest.mark.parametrize("tokens", [[], ["If"]])
def test_the_smallest_texts(tokens):
    assert align_by_bytes(tokens, Pieces((), (), ())) == []
    assert align_by_bytes([], Pieces(("▁If",), (156,), ((0, 2),))) == [[]]


def test_on_real_chains_both_ways_agree_where_token_and_piece_are_the_same_string(t5, shared_data):
    """What the dynamic program adds has no string of its own: a newline, the "$" of "▁$12"."""
    same = total = agreed = 0
    for chain in read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl"):
        if chain.finish_reason == "stop":
            tokens, pieces = chain.logprobs.tokens, t5.pieces(chain.text)
            rows = align_by_bytes(tokens, pieces), align(tokens, pieces.strings)
            for piece, by_bytes, by_strings in zip(pieces.strings, *rows, strict=True):
                total += 1
                if len(by_bytes) == 1 and tokens[by_bytes[0]].replace(" ", "▁") == piece:
                    same, agreed = same + 1, agreed + (by_bytes == by_strings)
                    added = {tokens[i] for i in by_strings if i not in by_bytes}
                    assert set(by_bytes) <= set(by_strings) and added <= {"\n", " $"}
    assert same > 0.8 * total and agreed > 0.9 * same


# The path -----------------------------------------------------------------------------------------


# Of two paths of one cost, the diagonal first, then the earlier left, then right string.
@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (["a", "b"], ["a", "b"], [[0], [1]]),
        (["a", "a"], ["a", "a"], [[0], [1]]),  # not [[0, 1], [1]], nor [[0], [0, 1]]
        (["", ""], [""], [[0, 1]]),
        ([""], ["", ""], [[0], [0]]),
        (["", "", ""], ["", ""], [[0, 1], [2]]),  # the diagonal first, from the end
        (["", ""], ["", "", ""], [[0], [0], [1]]),
        (["ab"], ["a", "b"], [[0], [0]]),
        (["a", "b"], ["ab"], [[0, 1]]),
    ],
)
def test_ties(left, right, expected):
    assert warp(left, right) == expected


def test_a_long_line_needs_no_recursion():
    words = [str(i % 7) for i in range(1100)]
    assert warp(words, words) == [[i] for i in range(1100)]


# Edit distances -----------------------------------------------------------------------------------

STRINGS = st.lists(st.text(alphabet="ab\0", max_size=5), min_size=1, max_size=4)


@cache
def levenshtein(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        levenshtein(a[1:], b) + 1,
        levenshtein(a, b[1:]) + 1,
        levenshtein(a[1:], b[1:]) + (a[0] != b[0]),
    )


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("abc", "", 3),
        ("", "", 0),
        ("a\0", "a", 1),
        ("naïve", "naive", 1),
    ],
)
def test_known_distances(a, b, distance):
    np.testing.assert_array_equal(edit_distances([a], [b]), [[distance]])


@given(STRINGS, STRINGS)
def test_every_pair_equals_the_definition(left, right):
    expected = [[levenshtein(a, b) for b in right] for a in left]
    np.testing.assert_array_equal(edit_distances(left, right), expected)
