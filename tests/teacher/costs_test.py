import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cot_flax.chains.samples import Logprobs
from cot_flax.teacher.costs import Prices, PromptTokens, Totals, plan, size_of, tokens_paid
from cot_flax.teacher.journal import Journal
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import BRIDGE, Numbers, Recipe, messages
from cot_flax.teacher.requests import Completion, Reply, Request

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


def test_prompt_tokens_are_estimated_from_bytes_until_answers_correct_that():
    tokens = PromptTokens()
    assert (tokens.about(300), tokens.most(300)) == (100, 300 + 100)
    tokens.learn(1000, 400)
    tokens.learn(1000, 200)
    tokens.learn(1000, 0)  # a server that does not count
    assert tokens.about(300) == 90
    assert tokens.most(300) == 133 + 100  # a tenth more than the 0.4 tokens a byte that were seen


@pytest.mark.parametrize(("prompt", "size"), [("né", 3), ("多少", 6), ("\ud83d", 3)])
def test_a_prompt_is_measured_in_utf_8(prompt, size):
    assert size_of(prompt) == size
    assert size_of(messages([("system", "ab"), ("user", prompt)])) == 2 + size


def test_usage_that_covers_one_of_two_is_known_for_what_it_is():
    """llama.cpp's own answer: 70 prompt tokens, 8 written, for two texts that 8 tokens end."""
    path = Path(__file__).parents[1] / "fixtures" / "servers" / "llama_server_b11434_n2_usage.json"
    real = json.loads(path.read_text())
    asked, answer = real["request"], real["response"]
    request = Request(asked["prompt"], n=2, max_tokens=8)
    completions = [Completion(c["text"], None, c["finish_reason"]) for c in answer["choices"]]
    assert tokens_paid(request, completions, answer["usage"]) == (70, 16)


WRITTEN = "It is 17. " * 12  # 120 bytes, some 40 tokens
SCORED = Logprobs(("It",) * 50, (-1.0,) * 50, ({},) * 50)


@pytest.mark.parametrize(
    ("n", "usage", "paid"),
    [
        (1, {"prompt_tokens": 30, "completion_tokens": 40}, (30, 40)),
        (2, {"prompt_tokens": 30, "completion_tokens": 80}, (30, 80)),
        (2, {"prompt_tokens": 30, "completion_tokens": 40}, (30, 80)),
        (8, {"prompt_tokens": 30, "completion_tokens": 40}, (30, 320)),
        (8, {"prompt_tokens": 30, "completion_tokens": 900}, (30, 900)),  # it thought unseen
        (2, {"prompt_tokens": None, "completion_tokens": None}, (34, 80)),
        (2, None, (34, 80)),
        (2, "many", (34, 80)),
    ],
)
def test_what_an_answer_cost(n, usage, paid):
    request = Request("x" * 100, n=n, max_tokens=100)
    completions = [Completion(WRITTEN, None, "stop")] * n
    assert tokens_paid(request, completions, usage) == paid


def test_log_probabilities_count_what_usage_leaves_out():
    usage = {"prompt_tokens": 30, "completion_tokens": 50}
    completions = [Completion("It" * 50, SCORED, "stop")] * 2
    assert tokens_paid(Request("x" * 100, n=2), completions, usage) == (30, 100)
    thought = Completion("", Logprobs((), (), ()), "length", "", "It" * 50, SCORED)
    assert tokens_paid(Request("x" * 100), [thought, completions[0]], usage) == (30, 100)


def test_a_plan_of_one_step(tmp_path):
    """3 samples are calls for 2 and 1; prompts of 10 to 14 bytes."""
    journal = tmp_path / "new" / "journal"
    found = plan(QUESTIONS, ONE_STEP, "teacher", journal, prices=PRICES)
    assert (found.questions, found.answered, found.most_requests) == (5, 0, 10)
    assert found.prompts == ("?" * 10, "?" * 11, "?" * 12)
    assert found.prompt_bytes == 2 * (10 + 11 + 12 + 13 + 14)
    assert found.prompt_tokens == 40
    assert found.completion_tokens == 5 * 3 * 100
    assert found.cost == pytest.approx((40 * 2 + 1500 * 10) / 1e6)
    assert not journal.parent.exists()


def test_a_plan_of_a_chat_counts_all_messages(tmp_path):
    recipe = replace(ONE_STEP, prompt=chat)
    found = plan(QUESTIONS[:1], recipe, "teacher", tmp_path / "journal")
    assert found.prompt_bytes == 2 * (9 + 10)
    assert found.prompts[0] == chat(QUESTIONS[0])
    assert found.cost is None


def test_a_plan_of_two_steps_takes_the_longest_completions(tmp_path):
    """A follow-up's prompt is the first one, a completion of 100 tokens at most and the bridge."""
    found = plan(QUESTIONS[:1], TWO_STEPS, "teacher", tmp_path / "journal")
    assert found.most_requests == 2 + 3
    assert found.prompt_bytes == 2 * 10 + 3 * (10 + 1 + len(BRIDGE))
    assert found.prompt_tokens == math.ceil(found.prompt_bytes / 3) + 3 * 100
    assert found.completion_tokens == 3 * 100 + 3 * 100


def test_a_plan_leaves_out_what_the_journal_answers(tmp_path):
    first = TWO_STEPS.first(QUESTIONS[0])
    completions = tuple(Completion(text, None, "stop") for text in ("one", "four"))
    follow_up = TWO_STEPS.next(QUESTIONS[0], first, completions[0])
    with Journal(tmp_path / "journal") as journal:
        journal.add(first.key("teacher"), Reply(completions, 20, 1))
        journal.add(follow_up.key("teacher"), Reply(completions[:1], 1, 1))
        journal.add(first.key("another teacher"), Reply(completions[:1], 1, 1))
    found = plan(QUESTIONS[:1], TWO_STEPS, "teacher", tmp_path / "journal")
    # Left are a third chain, its follow-up and that on "four"; the journal knows 2 tokens a byte.
    assert (found.answered, found.most_requests) == (0, 3)
    assert found.completion_tokens == 300
    assert found.prompt_tokens == 2 * found.prompt_bytes + 100
    two = replace(TWO_STEPS, numbers=replace(TWO_STEPS.numbers, samples=2))
    assert plan(QUESTIONS[:1], two, "teacher", tmp_path / "journal").answered == 1


def test_a_plan_of_nothing(tmp_path):
    found = plan([], ONE_STEP, "teacher", tmp_path / "journal", prices=PRICES)
    assert (found.questions, found.most_requests, found.cost, found.prompts) == (0, 0, 0.0, ())
