"""What is written for characters that a vocabulary lacks, and where it comes from."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import byte_level, world_without

from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.text import plain
from cot_flax.text.plain import apply
from cot_flax.text.replacement import before_edits, find_edits, unknown_characters
from cot_flax.text.tokenizers import SentencePieceTokenizer, open_tokenizer

T5_LACKS = "<{}\\^~`"


@pytest.fixture(scope="module")
def tokenizer():
    """Lacks what T5's vocabulary lacks; like that one's, its normaliser writes `²` as `2`."""
    return SentencePieceTokenizer(world_without(T5_LACKS), extra_ids=0)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return open_tokenizer(byte_level(tmp_path_factory.mktemp("bpe")))


def replaced(text, tokenizer):
    return apply(text, find_edits(text, tokenizer))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{12}.", "so 12."),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"2\frac{1}{2} \dfrac{x+1}{2} \frac12", "2 1/2 (x+1)/2 1/2"),
        ("x<5, x < 5, a≤b", "x less than 5, x less than 5, a less than or equal to b"),
        ("10^{2} + 10^2 + x^{a+b}", "10**2 + 10**2 + x**(a+b)"),
        ("1{,}250 {1, 2}", "1,250 (1, 2)"),
        (r"\{1, 2\}", "(1, 2)"),
        ("48/2 = <<48/2=24>>24", "48/2 = 24"),
        (r"√16 \sqrt{16} 2\sqrt{3}", "sqrt 16 sqrt(16) 2 sqrt(3)"),
        ("5² m² (3)²", "5**2 m² (3)**2"),
        ("½ or 2½", "1/2 or 2 1/2"),
        (r"\(3 \times 4 \div 2\) \leq \$5", "3 * 4 / 2 less than or equal to $5"),
        (r"90^\circ, 90^{\circ}", "90 degrees, 90 degrees"),
        (r"\begin{align*}a &= 3\end{align*}", "a &= 3"),
        (r"\text{cost} 50\%", "cost 50%"),
        ("{ open \\frac{3", "( open frac (3"),
        ("3 × 4 ÷ 2 − 1 ≈ 5¢", "3 * 4 / 2 - 1 about 5 cents"),
        ("“It’s”", '"It\'s"'),
    ],
)
def test_what_is_written(tokenizer, text, expected):
    assert replaced(text, tokenizer) == expected
    assert not unknown_characters(expected, tokenizer.pieces(expected), tokenizer.unk_id)


@pytest.mark.parametrize("text", [">", "a > b", "…", "，", "你好", "\\", "naïve", "x" * 50, ""])
def test_what_is_known_or_in_no_table_is_left(tokenizer, text):
    """The normaliser writes `…` as three dots by itself."""
    assert find_edits(text, tokenizer) == []


def test_a_vocabulary_that_has_everything_keeps_everything(bpe):
    text = r"\boxed{12} < 5² × ½ <<1+1=2>> 你好 ^ ~"
    assert find_edits(text, bpe) == []
    assert not unknown_characters(text, bpe.pieces(text), bpe.unk_id)


def test_a_character_is_replaced_only_where_the_vocabulary_lacks_it():
    world = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    assert replaced(r"\boxed{2} < 10^2 × 3", world) == r"\boxed{2} < 10^2 * 3"
    no_star = SentencePieceTokenizer(world_without("*"), extra_ids=0)
    assert replaced("2 × 3", no_star) == "2 × 3"  # what would replace it is unknown, too


def test_edits_have_names(tokenizer):
    edits = find_edits(r"\boxed{\frac12} < {3}² <<1=1>> 90^\circ", tokenizer)
    names = [edit.name for edit in edits if edit.name]
    assert names == [r"\boxed", r"\frac", "<", "{", "<<>>", r"^\circ"]


def test_unknown_characters_are_counted_one_by_one(tokenizer):
    text = "你好 12 é, ½ ~5 你"
    found = unknown_characters(text, tokenizer.pieces(text), tokenizer.unk_id)
    assert found == {"你": 2, "好": 1, "é": 1, "½": 1, "~": 1}


def test_pieces_know_what_they_were(tokenizer):
    text = "so 5<6 é"
    edits = find_edits(text, tokenizer)
    pieces = tokenizer.pieces(apply(text, edits))
    before, is_new = before_edits(pieces, text, edits)
    data = text.encode()
    rows = {}
    for piece, (begin, end), new in zip(before.strings, before.spans, is_new, strict=True):
        rows.setdefault(data[begin:end].decode(), []).append((piece, new))
    assert [new for _, new in rows["<"]] == [True] * len(rows["<"])
    assert "".join(piece for piece, _ in rows["<"]) == "▁less▁than"
    assert all(not new for old, found in rows.items() if "<" not in old for _, new in found)
    # The space before 6 was written, the digit was not.
    assert ("▁6", True) in rows["<6"] or ("6", False) in rows["6"]


@given(text=st.text(st.sampled_from("ab 12<{}\\^×²½é.")) | st.text())
def test_spans_follow_each_other_in_the_text_before(tokenizer, text):
    edits = find_edits(text, tokenizer)
    assert [edit.start for edit in edits] == sorted({edit.start for edit in edits})
    assert all(a.end <= b.start for a, b in pairwise(edits))
    pieces = tokenizer.pieces(apply(text, edits))
    before, is_new = before_edits(pieces, text, edits)
    assert len(before.spans) == len(is_new) == len(pieces.ids)
    for ends in zip(*before.spans, strict=True):
        assert list(ends) == sorted(ends)
    assert all(0 <= begin <= end <= len(text.encode()) for begin, end in before.spans)


def test_the_table_is_short_and_single():
    tables = (plain.WORDS, plain.SIGNS, plain.FRACTIONS, plain.POWERS)
    names = [character for table in tables for character in table]
    assert len(names) == len(set(names)) < 100
    assert all(len(name) == 1 for name in names)
