from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.similarity import jaccard, ngrams

WORDS = st.lists(st.sampled_from(["she", "sold", "48", "24", "/"]), max_size=8).map(" ".join)


def test_ngrams_are_the_runs_of_three_words():
    assert ngrams("she sold 48 clips in may") == {
        ("she", "sold", "48"),
        ("sold", "48", "clips"),
        ("48", "clips", "in"),
        ("clips", "in", "may"),
    }
    assert ngrams("a b c") == {("a", "b", "c")}
    assert ngrams("a b") == {("a", "b")}
    assert ngrams("") == {()}


def test_jaccard_by_hand():
    # Of 5 words each, 3 runs: one changed word at the end leaves 2 of 4.
    assert jaccard(ngrams("she sold 48 red clips"), ngrams("she sold 48 red pens")) == 2 / 4
    # In the middle it spoils all three.
    assert jaccard(ngrams("she sold 48 red clips"), ngrams("she sold 24 red clips")) == 0


@given(WORDS, WORDS)
def test_jaccard_is_symmetric_and_1_for_the_same(one, other):
    similarity = jaccard(ngrams(one), ngrams(other))
    assert similarity == jaccard(ngrams(other), ngrams(one))
    assert 0 <= similarity <= 1
    assert jaccard(ngrams(one), ngrams(one)) == 1
