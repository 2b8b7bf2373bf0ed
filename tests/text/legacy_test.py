"""Tests of the papers' own rules: they must keep the published defects."""

import pytest

from cot_flax.text.answers import answers_match, extract_answer


def check(mode, kind, text, extracted, gold=None, right=None):
    found = extract_answer(text, kind=kind, mode=mode)
    assert found == extracted
    if gold is not None:
        assert answers_match(found, gold, kind=kind, mode=mode) is right


@pytest.mark.parametrize(
    ("text", "extracted", "gold", "right"),
    [
        ("The answer is 1,000", "0", "1,000", True),
        ("The answer is 1,000", "0", "5,000", True),  # a false positive of the paper
        ("The answer is -3", "3", "3", True),
        ("The answer is 18.00.", "18", "18", True),
        ("It is .5", "0.5", "0.50", True),
        ("The answer is 72 for 3 days", "3", "72", False),
        ("The answer is 72", "72", "no digits", False),
        ("no digits", None, "no digits", False),
    ],
)
def test_fu2023_numbers(text, extracted, gold, right):
    check("fu2023", "number", text, extracted, gold, right)


@pytest.mark.parametrize(
    ("text", "extracted", "gold", "right"),
    [
        ("So the answer is (B).", " (B).", "(B)", True),
        ("So the answer is invalid", " invalid", "valid", True),  # likewise
        ("The Answer Is (B)", None, "(B)", False),
        ("the answer is (A). the answer is (B)", " (A). ", "(B)", False),
    ],
)
def test_fu2023_bbh(text, extracted, gold, right):
    check("fu2023", "choice", text, extracted, gold, right)


@pytest.mark.parametrize(
    ("kind", "text", "extracted", "gold", "right"),
    [
        ("number", "5 + 3 = 8 --> 8 or 9", "8", "8", True),
        ("number", "5 + 3 = 8", "8", "8", True),
        ("number", "--> 18.00", "18.00", "18", False),
        ("number", "--> 18.00", "18.00", "18.0", True),
        ("number", "--> 0.33333333", "0.33333333", "0.3333333333", True),
        ("number", "--> 1,000", "1000", "1,000", True),
        ("number", "--> .5", "5", "0.5", False),
        ("number", "21-15", "-15", "15", False),
        ("number", "21-15 = 6", "6", "6", True),
        ("number", "9 --> none", None, "9", False),
        ("number", "--> 5 --> 6", "5", "5", True),
        ("choice", "Both A and B", "B", "B", True),
        ("choice", "--> Bank (D)", "B", "D", False),
        ("choice", "--> (G)", None, "G", False),
        ("yes_no", "--> Yes, it is", "yes", "Yes", True),
        ("yes_no", "--> (yes)", None, "yes", False),
        ("yes_no", "yes! no", "no", "no", True),
        ("text", '--> "ya jo".', "yajo", "yajo", True),
        ("text", "--> Yajo", "Yajo", "yajo", False),
    ],
)
def test_ho2022(kind, text, extracted, gold, right):
    check("ho2022", kind, text, extracted, gold, right)


@pytest.mark.parametrize(
    ("kind", "text", "extracted", "gold", "right"),
    [
        ("float", "--> 43.0", "43.0", "43", True),  # 230 of AddSub's 395 golds have no point
        ("number", "--> 43.0", "43.0", "43", False),  # MultiArith's and GSM8K's are strings
        ("float", "--> 43.1", "43.1", "43", False),
        ("choice A-C", "--> Dave (B)", "B", "B", True),
        ("choice A-E", "--> F or E", "E", "E", True),
        ("number in minutes", "--> 90", "90", "90", True),
    ],
)
def test_ho2022_goes_by_the_data_set(kind, text, extracted, gold, right):
    check("ho2022", kind, text, extracted, gold, right)


def test_ho2022_takes_the_first_of_21_minus_15_after_the_marker():
    check("ho2022", "number", "--> -15 = 6", "-15", "6", False)


@pytest.mark.parametrize(
    ("text", "extracted", "gold", "right"),
    [
        ("So. [ANSWER] (B)", "b", "B", True),
        ("[ANSWER] x [ANSWER] 1,000", "1000", "1,000", True),
        ("[ANSWER] 72.", "72.", "72", False),
        ("no marker", "no marker", "No Marker", True),
        ("[ANSWER] ", None, "72", False),
    ],
)
@pytest.mark.parametrize("kind", ["number", "choice", "yes_no", "text"])
def test_kim2023(kind, text, extracted, gold, right):
    check("kim2023", kind, text, extracted, gold, right)
