"""Training by default: the papers' numbers, by the size of data and student."""

import pytest

from cot_flax.distill import defaults


def training(chains, questions=None, parameters=250_000_000, **more):
    given = {"from_scratch": False, "validation": 500} | more
    return defaults.training(chains, questions or chains, parameters, **given)


@pytest.mark.parametrize(
    ("chains", "questions", "passes", "batch_size", "rate", "paper"),
    [
        (210, 210, 20, 8, 3e-4, "[3]"),
        (10_000, 1_250, 20, 8, 3e-4, "[3]"),
        (207_135, 7_273, 10, 120, 5e-4, "[1]"),
        (1_840_000, 1_840_000, 1, 512, 1e-4, "[4]"),
    ],
)
def test_the_papers_numbers(chains, questions, passes, batch_size, rate, paper):
    found = training(chains, questions)
    assert (found.batch_size, found.learning_rate) == (batch_size, rate)
    # Each chain is seen so often in its two formats together, which are 80 % of the examples.
    examples = 2 * chains + 2 * questions
    assert 0.8 * found.epochs * examples / chains == pytest.approx(passes, rel=0.05)
    assert found.steps == pytest.approx(found.epochs * examples / batch_size, abs=1)
    assert f"paper {paper}" in found.reasons[1] and not found.lora


def test_all_formats_are_mixed_as_paper_1_has_them():
    found = training(210)
    few, zero = {"few_shot_cot": 0.4, "few_shot_answer": 0.1}, ("zero_shot_cot", "zero_shot_answer")
    assert found.rates == few | {zero[0]: 0.4, zero[1]: 0.1}
    assert found.epochs == 6.2 and found.steps == 651  # 20 * 210 / 0.8 / 840; 6.2 * 840 / 8
    alone = training(210, few_shot="there is nothing to show")
    assert alone.rates == {zero[0]: pytest.approx(0.8), zero[1]: pytest.approx(0.2)}
    assert alone.epochs == 12.5 and alone.steps == 657  # 20 * 210 / 0.8 / 420; 12.5 * 420 / 8
    assert alone.reasons[0].endswith("none is few-shot, for there is nothing to show")


def test_a_checkpoint_is_chosen_where_validation_can_tell():
    assert training(210, validation=20).eval_period == 65  # a tenth of 651
    assert training(210, validation=19).eval_period == 0
    assert "checkpoint: the last, for 19" in training(210, validation=19).reasons[-1]
    assert training(1, validation=20).eval_period == 1  # of 7 steps: 20 / 0.8 in batches of 4


def test_few_examples_for_a_large_student_train_adapters():
    found = training(64, parameters=3 * 10**9)
    assert found.lora and found.learning_rate == 3e-3 and "paper [4]" in found.reasons[2]
    assert not training(207_135, 7_273, 3 * 10**9).lora


def test_random_weights_have_a_row_of_their_own():
    found = training(210, parameters=0, from_scratch=True)
    assert set(found.rates) == {"zero_shot_cot", "zero_shot_answer"}
    assert found.epochs == 25 and found.steps == 657  # 40 * 210 / 0.8 / 420; 25 * 420 / 16
    assert "ours" in found.reasons[1] and "random weights" in found.reasons[0]


def test_a_batch_has_no_more_than_there_is():
    assert training(1, parameters=0).batch_size == 4
