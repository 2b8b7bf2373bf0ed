"""Training by default: the papers' numbers, by the size of data and student."""

import pytest

from cot_flax.distill import defaults


@pytest.mark.parametrize(
    ("examples", "epochs", "batch_size", "rate", "paper"),
    [
        (210, 20, 8, 3e-4, "[3]"),
        (10_000, 20, 8, 3e-4, "[3]"),
        (207_135, 10, 120, 5e-4, "[1]"),
        (1_840_000, 1, 512, 1e-4, "[4]"),
    ],
)
def test_the_papers_numbers(examples, epochs, batch_size, rate, paper):
    found = defaults.training(examples, 250_000_000, from_scratch=False)
    assert (found.epochs, found.batch_size, found.learning_rate) == (epochs, batch_size, rate)
    assert found.steps == epochs * examples // batch_size
    assert f"paper {paper}" in found.reasons[0] and not found.lora


def test_few_examples_for_a_large_student_train_adapters():
    found = defaults.training(64, 3 * 10**9, from_scratch=False)
    assert found.lora and found.learning_rate == 3e-3 and "paper [4]" in found.reasons[1]
    assert not defaults.training(207_135, 3 * 10**9, from_scratch=False).lora


def test_random_weights_have_a_row_of_their_own():
    found = defaults.training(210, 0, from_scratch=True)
    assert found.steps == 40 * 210 // 16 and "ours" in found.reasons[0]


def test_a_batch_has_no_more_than_there_is():
    assert defaults.training(5, 0, from_scratch=False).batch_size == 5
