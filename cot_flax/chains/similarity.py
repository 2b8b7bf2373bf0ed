"""How alike the words of two chains of thought are."""

NGRAM = 3

Ngrams = frozenset[tuple[str, ...]]


def ngrams(normalized: str) -> Ngrams:
    """Returns the different runs of three words of a normalized text, or all of a shorter text.

    A number and an operator are each a word. Words rather than characters, for `24` and `26` share
    half of their characters and mean different things; three of them, so that order counts while
    one changed word spoils no more than three runs of a chain's few dozen. Broder 1997 ("On the
    resemblance and containment of documents") calls them shingles.
    """
    words = normalized.split()
    return frozenset(tuple(words[at : at + NGRAM]) for at in range(max(1, len(words) - NGRAM + 1)))


def jaccard(one: Ngrams, other: Ngrams) -> float:
    """Returns which share of the n-grams in either set is in both, from 0 to 1."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
