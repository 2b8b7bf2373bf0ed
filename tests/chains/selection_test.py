import dataclasses
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.codex import read_codex_dump
from cot_flax.chains.filtering import Filters, rejection
from cot_flax.chains.samples import Sample
from cot_flax.chains.selection import distinct_chains, equation_sequence, jaccard, ngrams, select


def chains(texts):
    return [
        Sample("q", "d", "train", "?", "5", "few_shot_cot", "", {}, place, text, None, "stop")
        for place, text in enumerate(texts)
    ]


def reasons(*texts, **filters):
    return select(chains(texts), Filters(**filters))


def test_no_chains():
    assert reasons() == []


def test_the_first_of_equal_words_is_kept():
    texts = ("She has 2 + 3 = 5 pens.", "she has 2+3 = 5 pens", "She has 2 + 3 = 6 pens.")
    assert reasons(*texts) == [None, "repeated", None]
    assert reasons(*texts, similarity=None) == [None, None, None]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("5 6 5.0", [None, "minority_answer", None]),
        ("5 6 5 6", ["no_majority"] * 4),
        ("5 6 7 7", ["minority_answer", "minority_answer", None, None]),
        ("5", [None]),
    ],
)
def test_samples_of_an_unlabelled_question_vote_where_asked(answers, expected):
    texts = [f"Way {i}.\nThe answer is {answer}" for i, answer in enumerate(answers.split())]
    unlabelled = [dataclasses.replace(sample, gold_answer="") for sample in chains(texts)]
    assert select(unlabelled, Filters(majority=True)) == expected
    assert select(unlabelled, Filters()) == [None] * len(texts)
    assert select(chains(texts), Filters(majority=True)) == [None] * len(texts)  # they have golds


def test_near_identical_chains_by_hand():
    # Runs of three: abc bcd cde def | abc bcd cde dex: 3 of 5 | axc xcd cde def: 2 of 6 with the
    # first | cde def efg, of which 2 of 5 are in the first.
    texts = ("a b c d e f", "a b c d e x", "a x c d e f", "c d e f g")
    assert reasons(*texts, similarity=0.6) == [None, "near_identical", None, None]
    assert reasons(*texts, similarity=0.61) == [None, None, None, None]
    assert reasons(*texts, similarity=0.4) == [None, "near_identical", None, "near_identical"]
    assert reasons(*texts, similarity=0.3) == [None, *["near_identical"] * 3]


def test_a_chain_is_compared_with_kept_ones_only():
    # The third is near the second (3 of 5), which is dropped, and not the first (2 of 6).
    texts = ("a b c d e f", "b c d e f g", "c d e f g h")
    assert reasons(*texts, similarity=0.6) == [None, "near_identical", None]
    assert reasons(*texts[1:], similarity=0.6) == [None, "near_identical"]


def test_other_runs_of_the_same_words_are_no_repetition():
    # The same set of runs, so a similarity of 1, but not the same words.
    texts = ("a b a b a", "a b a b")
    assert reasons(*texts) == [None, None]
    assert reasons(*texts, similarity=0.99) == [None, "near_identical"]


ADD, SWAPPED, DOUBLE = "{} 2 + 3 = 5", "{} 3 + 2 = 5", "{} 10 / 2 = 5"


def worded(*templates):
    return [template.format("abcdefgh"[place]) for place, template in enumerate(templates)]


@pytest.mark.parametrize(
    ("most", "kept"),
    [(1, [0]), (2, [0, 2]), (3, [0, 2, 5]), (4, [0, 1, 2, 5]), (5, [0, 1, 2, 4, 5]), (9, range(6))],
)
def test_the_limit_prefers_different_reasoning(most, kept):
    texts = worded(ADD, ADD, SWAPPED, ADD, SWAPPED, DOUBLE)
    expected = [None if place in kept else "over_limit" for place in range(6)]
    assert reasons(*texts, per_question=most) == expected


def test_chains_without_equations_differ_for_the_limit():
    assert reasons("Five.", "It is 5.", per_question=1) == [None, "over_limit"]
    texts = ("a 2 + 3 = 5", "b 2 + 3 = 5", "Five.")
    assert reasons(*texts, per_question=2) == [None, "over_limit", None]


def test_balance_weighs_a_question_by_its_different_reasonings():
    texts = worded(ADD, ADD, SWAPPED, ADD, SWAPPED, DOUBLE)
    dropped = "unbalanced"
    assert reasons(*texts, balance=1) == [None, dropped, None, dropped, dropped, None]
    assert reasons(*texts, balance=2) == [None, None, None, dropped, None, None]
    assert reasons(*texts, balance=1, per_question=2) == [
        *(None, dropped, None, dropped, dropped),
        "over_limit",
    ]


def test_kim2023_keeps_no_copy_of_a_repeated_rationale():
    texts = ("So 5.", "It is 5.", "So 5.", "so 5")
    # The fourth is no copy to the paper, and after it there is nothing left that it repeats.
    copy = "kim2023_f5_repeated"
    assert reasons(*texts, rules="kim2023") == [copy, None, copy, None]
    assert reasons(*texts) == [None, None, "repeated", "repeated"]


@pytest.mark.parametrize(
    "text",
    [
        "He has 1000/4 = 250 nails, and 250 * 2 = 500.",
        "Take 1,000 nails ÷ 4 boxes = 250 nails.\nThen $250 x $2 = $500.00!",
        "1000.0 / 4 = <<1000/4=250>>250, so <<250*2=500>>500",
    ],
)
def test_wording_spacing_units_and_marks_do_not_count(text):
    assert equation_sequence(text) == ("1000/4=250", "250*2=500")


@pytest.mark.parametrize(
    ("text", "equations"),
    [
        ("", ()),
        ("He has 500 nails.", ()),
        ("250 * 2 = 500, 1000/4 = 250", ("250*2=500", "1000/4=250")),  # order
        ("2 * 250 = 500", ("2*250=500",)),
        ("2 * (3 - 1) = 4", ("2*(3-1)=4",)),
        ("2 * 3 - 1 = 5", ("2*3-1=5",)),
        ("3 - -5 = 8", ("3--5=8",)),
        # A right result counts as the exact value however it is rounded, a wrong one as stated.
        ("10/3 = 3.3", ("10/3=10/3",)),
        ("10/3 = 3.33", ("10/3=10/3",)),
        ("10/3 = 3", ("10/3=3",)),
        ("48/2 = 25", ("48/2=25",)),
    ],
)
def test_equation_sequences(text, equations):
    assert equation_sequence(text) == equations


def test_distinct_chains_differ_in_their_equations():
    assert distinct_chains([]) == 0
    assert distinct_chains(["2 + 3 = 5", "She has 2+3 = 5 pens.", "3 + 2 = 5"]) == 2
    assert distinct_chains(["2 + 3 = 6", "2 + 3 = 5"]) == 2


def test_chains_without_an_equation_differ_in_their_words():
    assert distinct_chains(["It is 5.", "it is  5", "It is 6.", "2 + 3 = 5"]) == 3


SETTINGS = st.builds(
    Filters,
    rules=st.sampled_from(["default", "kim2023"]),
    similarity=st.sampled_from([None, 1.0, 0.7, 0.3]),
    per_question=st.sampled_from([None, 1, 2, 3]),
    balance=st.sampled_from([None, 1, 2]),
)
SENTENCES = st.sampled_from(["2 + 3 = 5", "2+3 = 5.", "3 + 2 = 5", "so 10 / 2 = 5", "it is 5"])
TEXTS = st.lists(st.lists(SENTENCES, min_size=1, max_size=3).map(" ".join), max_size=12)


@given(TEXTS, SETTINGS)
def test_what_is_kept_is_kept_again(texts, filters):
    samples = chains(texts)
    fates = select(samples, filters)
    kept = [sample for sample, fate in zip(samples, fates, strict=True) if fate is None]
    assert select(kept, filters) == [None] * len(kept)
    assert bool(kept) == bool(texts) or filters.rules == "kim2023"


@given(TEXTS, st.integers(1, 6))
def test_a_limit_costs_no_reasoning_that_it_has_room_for(texts, most):
    fates = reasons(*texts, similarity=None, per_question=most)
    kept = [text for text, fate in zip(texts, fates, strict=True) if fate is None]
    assert len(kept) == min(most, len(texts))
    assert distinct_chains(kept) == min(most, distinct_chains(texts))


@pytest.fixture(scope="module")
def natalia(shared_data):
    """The 50 real chains of the first question; rejection drops none of them."""
    samples = list(read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl"))[:50]
    assert all(rejection(sample, Filters()) is None for sample in samples)
    return samples


def places(samples, reason, **filters):
    fates = select(samples, Filters(**filters))
    return [place for place, fate in enumerate(fates) if fate == reason]


def test_real_repetitions(natalia):
    # By reading them: 11 and 22 are 9, 17 is 10, 44 is 26, but for commas, full stops and spaces.
    assert places(natalia, "repeated") == [11, 17, 22, 44]
    # 9 and 11, 26 and 44 are the same to the byte.
    assert places(natalia, "kim2023_f5_repeated", rules="kim2023") == [9, 11, 26, 44]


def test_real_reasoning(natalia):
    # By reading them: 45 write 48/2 = 24 and 48 + 24 = 72; these five do without the first.
    texts = [sample.text for sample in natalia]
    short = [n for n, text in enumerate(texts) if not re.search("48 ?/ ?2 = 24", text)]
    assert short == [1, 7, 31, 47, 49]
    assert distinct_chains(texts) == 2
    assert places(natalia, None, balance=1) == [0, 1]
    assert places(natalia, None, per_question=5) == [0, 1, 2, 3, 7]
    # All four repetitions are of the common reasoning; 20 of it and the five others are kept.
    assert Counter(select(natalia, Filters(balance=20))) == {
        "repeated": 4,
        "unbalanced": 45 - 4 - 20,
        None: 25,
    }


def test_real_near_identical_chains(natalia):
    def runs(text):
        words = re.findall(r"[a-z]+|\d+|[/+=]", text.lower())
        return {" ".join(words[at : at + 3]) for at in range(len(words) - 2)}

    fates = select(natalia, Filters(similarity=0.8))
    kept = []
    for sample, fate in zip(natalia, fates, strict=True):
        own = runs(sample.text)
        nearest = max((len(own & other) / len(own | other) for other in kept), default=0)
        assert (fate is not None) == (nearest >= 0.8)
        kept += [own] if fate is None else []
    assert Counter(fates)["near_identical"] > 0


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
