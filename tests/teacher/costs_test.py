from dataclasses import replace

import pytest

from cot_flax.teacher.costs import Prices, Totals, plan
from cot_flax.teacher.journal import Journal, journal_path
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import BRIDGE, Numbers, Recipe, messages
from cot_flax.teacher.requests import Completion, Reply

QUESTIONS = [Question(f"q{i}", "sums", "train", "?" * (10 + i)) for i in range(5)]
PRICES = Prices(input=2.0, output=10.0)
ONE_STEP = Recipe(
    "plain",
    "zero_shot_cot",
    Numbers(samples=3, temperature=0.7, max_tokens=100, per_request=2),
    prompt=lambda question: question.question,
    clean=lambda completion: completion,
)
TWO_STEPS = replace(ONE_STEP, two_steps=True)


def chat(question):
    return messages([("system", "Be brief."), ("user", question.question)])


def test_prices_are_for_a_million_tokens():
    assert PRICES.cost(1_500_000, 100_000) == pytest.approx(3.0 + 1.0)
    assert Totals(PRICES, prompt_tokens=1000, completion_tokens=100).cost == pytest.approx(0.003)
    assert Totals(prompt_tokens=1000).cost is None


def test_a_plan_of_one_step(tmp_path):
    """3 samples are calls for 2 and 1; 10 to 14 characters are 3, 3, 3, 4, 4 tokens."""
    out = tmp_path / "new" / "s.jsonl"
    found = plan(QUESTIONS, ONE_STEP, "teacher", out, prices=PRICES)
    assert (found.questions, found.requests, found.answered, found.most_requests) == (5, 10, 0, 10)
    assert found.prompts == ("?" * 10, "?" * 11, "?" * 12)
    assert found.prompt_tokens == 2 * (3 + 3 + 3 + 4 + 4)
    assert found.completion_tokens == 5 * 3 * 100
    assert found.cost == pytest.approx((34 * 2 + 1500 * 10) / 1e6)
    assert not out.parent.exists()


def test_a_plan_of_a_chat_counts_all_messages(tmp_path):
    recipe = replace(ONE_STEP, prompt=chat)
    found = plan(QUESTIONS[:1], recipe, "teacher", tmp_path / "s.jsonl")
    assert found.prompt_tokens == 2 * 5  # 9 + 10 characters
    assert found.prompts[0] == chat(QUESTIONS[0])
    assert found.cost is None


def test_a_plan_of_two_steps_takes_the_longest_completions(tmp_path):
    """A follow-up's prompt is the first one, a completion of 100 tokens at most and the bridge."""
    found = plan(QUESTIONS[:1], TWO_STEPS, "teacher", tmp_path / "s.jsonl")
    assert (found.requests, found.most_requests) == (2, 2 + 3)
    follow_up = -(-(10 + 1 + len(BRIDGE)) // 4) + 100
    assert found.prompt_tokens == 2 * 3 + 3 * follow_up
    assert found.completion_tokens == 3 * 100 + 3 * 100


def test_a_plan_leaves_out_what_the_journal_answers(tmp_path):
    first, second = TWO_STEPS.first(QUESTIONS[0])
    completions = tuple(Completion(text, None, "stop") for text in ("one", "four"))
    follow_up = TWO_STEPS.next(QUESTIONS[0], first, completions[0])
    with Journal(journal_path(tmp_path / "s.jsonl")) as journal:
        journal.add(first.key("teacher"), Reply(completions, 1, 1))
        journal.add(follow_up.key("teacher"), Reply(completions[:1], 1, 1))
        journal.add(second.key("another teacher"), Reply(completions[:1], 1, 1))
    found = plan(QUESTIONS[:1], TWO_STEPS, "teacher", tmp_path / "s.jsonl")
    assert (found.requests, found.answered) == (2, 1)
    # Left are the follow-up on "four", the second call and its follow-up.
    assert found.most_requests == 3
    assert found.completion_tokens == 300


def test_a_plan_of_nothing(tmp_path):
    found = plan([], ONE_STEP, "teacher", tmp_path / "s.jsonl", prices=PRICES)
    assert (found.requests, found.most_requests, found.cost, found.prompts) == (0, 0, 0.0, ())
