"""Last letters and coin flips, made by seed at any length."""

import gin
import pytest

from cot_flax.errors import UserError
from cot_flax.tasks import symbolic

MODULE = "cot_flax.tasks.symbolic"


def bind(**settings):
    for name, value in settings.items():
        function, _, parameter = name.partition("__")
        gin.bind_parameter(f"{MODULE}.{function}.{parameter}", value)


def names_of(record):
    return record["question"].split('"')[1].split()


def test_last_letters_are_those_of_the_names():
    for record in symbolic._records("test", "last_letter_concatenation"):
        names = names_of(record)
        assert record["answer"] == "".join(name[-1] for name in names)
        assert record["steps"] == len(names)
        assert record["rationale"].endswith(f'"{record["answer"]}".')


def test_a_coin_is_heads_up_after_an_even_number_of_flips():
    found = symbolic._records("test", "coin_flip")
    for record in found:
        flips = record["question"].count(" flips the coin.")
        others = record["question"].count(" does not flip the coin.")
        assert flips + others == record["steps"]
        assert record["answer"] == ("no" if flips % 2 else "yes")
        assert f"flipped {flips} time" in record["rationale"]
    assert 200 < sum(record["answer"] == "yes" for record in found) < 400


@pytest.mark.parametrize("name", symbolic.MAKERS)
def test_tests_are_longer_and_no_item_is_in_two_splits(name):
    bind(counts__train=50, counts__validation=10, counts__test=30, lengths__test=(2, 4, 9))
    made = {split: symbolic._records(split, name) for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in made.items()} == {
        "train": 50, "validation": 10, "test": 30
    }  # fmt: skip
    assert {record["steps"] for record in made["train"] + made["validation"]} == {2}
    assert [record["steps"] for record in made["test"][:4]] == [2, 4, 9, 2]
    questions = [record["question"] for found in made.values() for record in found]
    assert len(set(questions)) == 90


def test_the_seed_decides():
    first = symbolic._records("train", "coin_flip")
    symbolic._made.cache_clear()
    assert symbolic._records("train", "coin_flip") == first
    bind(counts__seed=1)
    assert symbolic._records("train", "coin_flip") != first


def test_more_items_than_there_are():
    bind(counts__train=2000, lengths__train=(1,))
    with pytest.raises(UserError, match="different items so far, one of 1 names wanted"):
        symbolic._records("train", "last_letter_concatenation")
    bind(lengths__train=(0,))
    with pytest.raises(UserError, match="0 names an item; expected 1 to"):
        symbolic._records("train", "last_letter_concatenation")
