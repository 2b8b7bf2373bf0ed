import asyncio
import hashlib
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, SimpleNamespace

import pytest
from support.story_server import STORIES, StoryServer, prompt_of

from cot_flax.chains.samples import read_samples
from cot_flax.errors import UserError
from cot_flax.lab.world.teacher import tokenize
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.costs import Prices, Totals, given, plan
from cot_flax.teacher.dispatch import Desk, _call, sample, take_over
from cot_flax.teacher.journal import Journal, journal_path, read_answers
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import BRIDGE, Numbers, Recipe, messages
from cot_flax.teacher.requests import Completion, Reply, Request

QUESTIONS = [
    Question(f"story-{i}", "stories", "train", story.question, str(story.answer))
    for i, story in enumerate(STORIES)
]
FEW = QUESTIONS[:6]
RECIPE = Recipe(
    "plain",
    "zero_shot_cot",
    Numbers(samples=2, temperature=0.7, max_tokens=200, top_logprobs=3),
    prompt=lambda question: prompt_of(question.question),
    clean=lambda completion: completion,
)
TWO_STEPS = replace(RECIPE, two_steps=True)
CHAT = replace(TWO_STEPS, prompt=lambda question: messages([("user", question.question)]))


def teacher_at(server, **settings):
    settings = {"timeout": 60.0, "wait_initial": 0.01, "wait_max": 0.02} | settings
    return OpenAITeacher("story", base_url=server.url, **settings)


def run(
    server,
    out,
    questions=FEW,
    recipe=RECIPE,
    concurrency=4,
    prices=None,
    limits=MappingProxyType({}),
    **settings,
):
    teacher = teacher_at(server, **settings)
    journal = journal_path(out)
    return sample(
        questions, recipe, teacher, out, journal, concurrency=concurrency, prices=prices, **limits
    )


def undisturbed(tmp_path, questions=FEW, recipe=RECIPE):
    """The bytes of the samples file that one request after the other makes."""
    with StoryServer() as server:
        run(server, tmp_path / "undisturbed.jsonl", questions, recipe, concurrency=1)
    return (tmp_path / "undisturbed.jsonl").read_bytes()


def test_the_samples(tmp_path):
    out = tmp_path / "new" / "s.jsonl"
    with StoryServer() as server:
        totals = run(server, out, prices=Prices(1.0, 2.0))
    samples = list(read_samples(out))
    assert [(s.id, s.sample) for s in samples] == [(q.id, i) for q in FEW for i in range(2)]
    for question, first, second in zip(FEW, samples[::2], samples[1::2], strict=True):
        assert first.question == question.question and first.gold_answer == question.answer
        assert (first.dataset, first.split, first.format) == ("stories", "train", "zero_shot_cot")
        assert first.prompt_hash == second.prompt_hash and len(first.prompt_hash) == 16
        assert first.finish_reason == "stop"
        assert first.logprobs.tokens == tuple(tokenize(first.text))
    assert len({s.prompt_hash for s in samples}) == len(FEW)
    assert samples[0].teacher["model"] == "story"
    assert samples[0].teacher["params"]["recipe"] == "plain"
    assert samples[0].teacher["params"]["temperature"] == 0.7
    prompt_tokens = sum(len(tokenize(prompt_of(q.question))) for q in FEW)
    completion_tokens = sum(len(tokenize(s.text)) for s in samples)
    assert (totals.samples, totals.requests, totals.from_journal) == (12, 6, 0)
    assert (totals.prompt_tokens, totals.completion_tokens) == (prompt_tokens, completion_tokens)
    assert totals.cost == pytest.approx((prompt_tokens + 2 * completion_tokens) / 1e6)
    assert not totals.problems


def choices(*texts, **more):
    """An answer in the completions shape without log-probabilities."""
    return 200, {"choices": [{"text": text, "finish_reason": "stop"} | more for text in texts]}


def of_question(number, answer):
    """A script that answers the requests about one of QUESTIONS, and no other."""
    return lambda body: answer if QUESTIONS[number].question in json.dumps(body) else None


@pytest.mark.parametrize(("questions", "asked"), [(QUESTIONS, 3), (FEW[:2], 2)])
def test_a_run_without_log_probabilities_stops_at_the_first_answers(tmp_path, questions, asked):
    out = tmp_path / "s.jsonl"
    message = (
        rf"{asked} answers in a row without log-prob.*\(not_given {2 * asked}\).*--top-logprobs"
    )
    with StoryServer(dialect="no_logprobs") as server:
        with pytest.raises(UserError, match=message):
            run(server, out, questions, concurrency=1)
        assert len(server.bodies) == asked
    assert not out.exists()
    # What it did get is no result: a server that gives them is asked anew.
    with StoryServer() as server:
        totals = run(server, out, questions)
        assert (totals.requests, totals.from_journal) == (len(questions), 0)
        assert not totals.problems
    assert out.read_bytes() == undisturbed(tmp_path, questions)


def test_a_few_samples_without_log_probabilities_are_counted(tmp_path):
    out = tmp_path / "s.jsonl"
    with StoryServer(script=of_question(0, choices("So 1", "So 2"))) as server:
        totals = run(server, out, concurrency=1)
    assert totals.problems == {"not_given": 2}
    assert [s.logprobs is None for s in read_samples(out)] == [True] * 2 + [False] * 10
    found = plan(FEW, RECIPE, "story", journal_path(out))
    assert (found.answered, found.most_requests) == (5, 1)
    with StoryServer() as server:
        again = run(server, out)
    assert (again.requests, again.from_journal, again.problems) == (1, 5, {})


def test_log_probabilities_that_end_on_the_way_stop_the_run(tmp_path):
    bad = [q.question for q in QUESTIONS[3:]]
    script = lambda body: choices("So 1", "So") if any(q in body["prompt"] for q in bad) else None  # noqa: E731
    with (
        StoryServer(script=script) as server,
        pytest.raises(UserError, match="20 answers in a row"),
    ):
        run(server, tmp_path / "s.jsonl", QUESTIONS, concurrency=1)
    assert len(server.bodies) == 3 + 20


def test_a_run_may_be_started_again_for_all_that_it_lacks(tmp_path):
    """Every other question lacks them: 20, and the next run asks these one after the other."""
    bad = [q.question for q in QUESTIONS[1::2]]
    script = lambda body: choices("So 1", "So") if any(q in body["prompt"] for q in bad) else None  # noqa: E731
    out = tmp_path / "s.jsonl"
    with StoryServer(script=script) as server:
        first = run(server, out, QUESTIONS, concurrency=1)
        again = run(server, out, [QUESTIONS[0], *QUESTIONS[1::2], QUESTIONS[1]], concurrency=1)
    assert first.problems == {"not_given": 40}
    assert (again.requests, again.from_journal) == (20, 2)


FILTERED = (400, {"error": {"message": "filtered", "code": "content_filter"}})


def test_a_refused_question_is_left_out_and_counted(tmp_path):
    out = tmp_path / "s.jsonl"
    with StoryServer(script=of_question(2, FILTERED)) as server:
        totals = run(server, out)
        again = run(server, out)
        assert len(server.bodies) == 6 + 1
    assert totals.refused == again.refused == {"content_filter": 2}
    assert list(totals.refusals) == ["story-2"] and "HTTP 400" in totals.refusals["story-2"]
    kept = [q.id for q in FEW if q.id != "story-2"]
    assert [s.id for s in read_samples(out)] == [id for id in kept for _ in range(2)]
    assert (again.requests, again.from_journal) == (0, 5)


def test_a_choice_that_was_filtered_is_left_out(tmp_path):
    answer = choices("1 + 1 = 2", "")
    answer[1]["choices"][1]["finish_reason"] = "content_filter"
    recipe = replace(TWO_STEPS, numbers=replace(RECIPE.numbers, top_logprobs=None))
    first = lambda body: answer if body["n"] == 2 else choices("2")  # noqa: E731
    with StoryServer(script=first) as server:
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
        assert len(server.bodies) == 2  # and no second step for it
    assert totals.refused == {"content_filter": 1} and totals.samples == 1
    (sample,) = read_samples(tmp_path / "s.jsonl")
    assert (sample.sample, sample.text) == (0, "1 + 1 = 2\nTherefore, the answer is 2")


def test_a_second_step_that_is_refused_costs_its_chain(tmp_path):
    refuse_one = lambda body: (  # noqa: E731
        choices("One", "Two") if body["n"] == 2 else FILTERED if "Two" in body["prompt"] else None
    )
    with StoryServer(script=refuse_one) as server:
        recipe = replace(TWO_STEPS, numbers=replace(RECIPE.numbers, top_logprobs=None))
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
    assert (totals.refused, totals.samples) == ({"content_filter": 1}, 1)


@pytest.mark.parametrize(
    ("questions", "answer", "sent"),
    [
        (QUESTIONS, FILTERED, 21),
        (FEW, FILTERED, 6),
        (FEW, (200, {"output": "17"}), 1),  # of an unknown shape, and paid for
    ],
)
def test_a_run_of_refusals_alone_stops(tmp_path, questions, answer, sent):
    with StoryServer(script=lambda body: answer) as server:
        with pytest.raises(UserError, match=rf"{sent} of {sent} requests refused, the first: "):
            run(server, tmp_path / "s.jsonl", questions, concurrency=1)
        assert len(server.bodies) == sent
    assert not (tmp_path / "s.jsonl").exists()


def test_more_refused_questions_than_a_run_of_failures_do_not_stop_it(tmp_path):
    kept = [q.question for q in QUESTIONS[:10]]
    script = lambda body: None if any(q in body["prompt"] for q in kept) else FILTERED  # noqa: E731
    with StoryServer(script=script) as server:
        totals = run(server, tmp_path / "s.jsonl", QUESTIONS, concurrency=1)
        again = run(server, tmp_path / "s.jsonl", QUESTIONS, concurrency=1)
    assert totals.refused == again.refused == {"content_filter": 2 * 30}
    assert totals.samples == again.samples == 20


def test_thoughts_are_kept_and_counted(tmp_path):
    def script(body):
        said = {"content": "It is 17.", "reasoning_content": "9 + 8 = 17."}
        return 200, {"choices": [{"message": said, "finish_reason": "stop"}] * body["n"]}

    numbers = replace(RECIPE.numbers, top_logprobs=None)
    recipe = replace(CHAT, two_steps=False, numbers=numbers)
    with StoryServer(script=script) as server:
        apart = run(server, tmp_path / "s.jsonl", recipe=recipe)
    (first, *_) = read_samples(tmp_path / "s.jsonl")
    assert (apart.thoughts, apart.thought_tokens) == (12, 0)
    assert (first.text, first.thought) == ("It is 17.", "9 + 8 = 17.")


def said(*tokens, text, thought, finish_reason="stop"):
    """A choice of the chat API, each of its tokens with the log-probability -1."""
    entries = [{"token": token, "logprob": -1.0, "top_logprobs": []} for token in tokens]
    message = {"content": text, "reasoning": thought}
    logprobs = {"content": entries}
    return {"message": message, "finish_reason": finish_reason, "logprobs": logprobs}


def test_a_thought_keeps_its_log_probabilities(tmp_path):
    tokens = ("9 + 8", " = 17", ".", "</think>", "\n\n", "It is", " 17", ".")
    choice = said(*tokens, text="It is 17.", thought="9 + 8 = 17.")
    recipe = replace(CHAT, two_steps=False)
    with StoryServer(script=lambda body: (200, {"choices": [choice] * 2})) as server:
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
    (first, _) = read_samples(tmp_path / "s.jsonl")
    assert first.logprobs.tokens == tokens[-3:]
    assert first.thought_logprobs.tokens == tokens[:3]
    assert (totals.thoughts, totals.thought_tokens) == (2, 6)


def test_chains_that_a_thought_left_no_room_for_are_left_out(tmp_path):
    cut = said("9 + 8", " =", text=None, thought="9 + 8 =", finish_reason="length")
    whole = said("It is", " 17", text="It is 17", thought=None)
    recipe = replace(CHAT, two_steps=False)
    with StoryServer(script=lambda body: (200, {"choices": [cut, whole]})) as server:
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
    (sample,) = read_samples(tmp_path / "s.jsonl")
    assert (sample.sample, sample.text) == (0, "It is 17")
    assert (totals.samples, totals.empty) == (1, 1)


def test_thoughts_that_are_all_cut_off_stop_the_run_at_the_third(tmp_path):
    cut = said("9 + 8", " =", text=None, thought="9 + 8 =", finish_reason="length")
    whole = said("It is", " 17", text="It is 17", thought=None)
    recipe = replace(CHAT, two_steps=False)
    script = lambda body: (200, {"choices": [cut] * 2})  # noqa: E731
    with (
        StoryServer(script=script) as server,
        pytest.raises(UserError, match=r"3 answers without a text: thought alone.*--max-tokens"),
    ):
        run(server, tmp_path / "s.jsonl", QUESTIONS, recipe, concurrency=1)
    assert len(server.bodies) == 3
    answers = itertools.chain([cut, whole], itertools.repeat(cut))
    script = lambda body: (200, {"choices": [next(answers), next(answers)]})  # noqa: E731
    with StoryServer(script=script) as server:
        totals = run(server, tmp_path / "other" / "s.jsonl", FEW, recipe, concurrency=1)
    assert (totals.samples, totals.empty) == (1, 2 * len(FEW) - 1)


def test_a_run_without_any_text_makes_no_file(tmp_path):
    cut = said("9 + 8", " =", text=None, thought="9 + 8 =", finish_reason="length")
    recipe = replace(CHAT, two_steps=False)
    with (
        StoryServer(script=lambda body: (200, {"choices": [cut] * 2})) as server,
        pytest.raises(UserError, match=r"2 answers without a text: thought alone.*--max-tokens"),
    ):
        run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize("recipe", [TWO_STEPS, CHAT], ids=["completions", "chat"])
def test_two_steps(tmp_path, recipe):
    with StoryServer() as server:
        totals = run(server, tmp_path / "s.jsonl", recipe=recipe)
    samples = list(read_samples(tmp_path / "s.jsonl"))
    assert len(samples) == 12
    different = {(s.id, s.text.partition(BRIDGE)[0].rstrip()) for s in samples}
    assert totals.requests == len(FEW) + len(different)  # equal chains share the second step
    assert max(server.answered.values()) == 1


def test_an_answer_behind_a_line_break_is_not_lost(tmp_path):
    """The server begins the second step with a line break, at which it is stopped."""

    def script(body):
        if BRIDGE not in body["prompt"]:
            return choices("One", "Two")
        return choices("" if "\n" in body.get("stop", ()) else "\n17.\nAnd on it goes")

    recipe = of(2, TWO_STEPS, top_logprobs=None)
    with StoryServer(script=script) as server:
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
        assert run(server, tmp_path / "s.jsonl", FEW[:1], recipe).requests == 0
        assert plan(FEW[:1], recipe, "story", tmp_path / "teacher.journal").most_requests == 0
    assert totals.requests == 1 + 2 * 2
    texts = [sample.text for sample in read_samples(tmp_path / "s.jsonl")]
    assert texts == [f"{chain}\n{BRIDGE} 17." for chain in ("One", "Two")]


@pytest.mark.parametrize("recipe", [RECIPE, TWO_STEPS], ids=["one", "two"])
def test_faults_change_nothing(tmp_path, recipe):
    faults = [429, "malformed", None, 500, "cut", None, "no_choices", 503, None, None, 408, 409]
    with StoryServer(faults) as server:
        run(server, tmp_path / "s.jsonl", recipe=recipe)
    assert (tmp_path / "s.jsonl").read_bytes() == undisturbed(tmp_path, recipe=recipe)


def test_a_second_run_sends_nothing(tmp_path):
    with StoryServer() as server:
        first = run(server, tmp_path / "s.jsonl", recipe=TWO_STEPS)
        before = (tmp_path / "s.jsonl").read_bytes()
        sent = len(server.bodies)
        second = run(server, tmp_path / "s.jsonl", recipe=TWO_STEPS)
        assert len(server.bodies) == sent == first.requests
    assert second.requests == second.prompt_tokens == 0
    assert second.from_journal == 6 + 12
    assert (tmp_path / "s.jsonl").read_bytes() == before


def of(samples, recipe=RECIPE, **numbers):
    return replace(recipe, numbers=replace(recipe.numbers, samples=samples, **numbers))


def test_two_samples_become_four_by_two_more(tmp_path):
    with StoryServer() as server:
        run(server, tmp_path / "two.jsonl", recipe=of(2))
        four = run(server, tmp_path / "four.jsonl", recipe=of(4))
        assert [body["n"] for body in server.bodies] == [2] * 6 + [2] * 6
        two = run(server, tmp_path / "again.jsonl", recipe=of(2))
        assert len(server.bodies) == 12
    assert (four.requests, four.samples, two.requests, two.from_journal) == (6, 24, 0, 6)
    texts = [(s.id, s.text) for s in read_samples(tmp_path / "four.jsonl")]
    first = [(s.id, s.text) for s in read_samples(tmp_path / "two.jsonl")]
    assert [pair for i in range(0, 24, 4) for pair in texts[i : i + 2]] == first
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_seed_goes_on_where_it_was():
    """A server that gives the same for a seed is asked with another one for what is missing."""
    sent = []

    async def complete(request):
        sent.append((request.n, request.done))
        return Reply((Completion(str(request.done), None, "stop"),), 1, 1)

    request = Request("What?", n=3, temperature=0.7, seed=7)
    teacher = SimpleNamespace(name="t", complete=complete)
    with TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        desk = Desk(journal, Totals(), 1, per_request=2)
        asyncio.run(desk.ask(_call(request, teacher)))
        assert [c.text for c in given(request, "t", journal)] == ["0", "1", "2"]
    assert sent == [(2, 0), (2, 1), (1, 2)]


def test_an_answer_of_many_that_comes_one_by_one_is_kept_one_by_one(tmp_path):
    """The third of four fails: the next run asks for two."""
    out = tmp_path / "s.jsonl"
    with StoryServer([None, None, 500], dialect="llama_cpp_python") as server:
        with pytest.raises(UserError, match="1 of 1 without an answer"):
            run(server, out, FEW[:1], of(4), attempts=1)
        with read_answers(journal_path(out)) as answers:
            assert len(answers) == 2
        again = run(server, out, FEW[:1], of(4))
        assert [body["n"] for body in server.bodies] == [4, 3, 2, 2, 1]
    assert (again.requests, again.samples) == (2, 4)


def test_fewer_choices_than_asked_for_are_made_up(tmp_path):
    with StoryServer(["fewer", "fewer"]) as server:
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], of(3))
    assert [body["n"] for body in server.bodies] == [3, 2, 1]
    assert totals.samples == 3
    assert totals.prompt_tokens == 3 * len(tokenize(prompt_of(FEW[0].question)))


def test_only_the_chain_that_lacks_something_is_asked_for_again(tmp_path):
    """Of two choices one has no log-probabilities, and of two one has no text."""
    logprobs = {"tokens": ["So"], "token_logprobs": [-1.0], "top_logprobs": [{"So": -1.0}]}
    whole = {"text": "So", "finish_reason": "stop", "logprobs": logprobs}
    bare = whole | {"logprobs": None}
    empty = {"text": "", "finish_reason": "stop", "logprobs": {key: [] for key in logprobs}}

    def script(body):
        first = FEW[0].question in body["prompt"]
        choices = [whole, bare if first else empty] if body["n"] == 2 else [whole]
        return 200, {"choices": choices}

    out = tmp_path / "s.jsonl"
    with StoryServer(script=script) as server:
        first = run(server, out, FEW[:2])
        again = run(server, out, FEW[:2])
        assert [body["n"] for body in server.bodies] == [2, 2, 1, 1]
    assert (first.problems, first.empty) == ({"not_given": 1}, 1)
    assert (again.requests, again.problems, again.empty) == (2, {}, 0)
    assert [s.text for s in read_samples(out)] == ["So"] * 4


def test_calls_are_split_by_what_one_may_ask_for(tmp_path):
    with StoryServer() as server:
        run(server, tmp_path / "s.jsonl", FEW[:1], of(7, per_request=3))
        assert [body["n"] for body in server.bodies] == [3, 3, 1]


def test_what_came_before_a_refusal_is_kept(tmp_path):
    """Of three single requests the last is refused: two chains, each with its second step."""
    recipe = of(3, TWO_STEPS, per_request=1, top_logprobs=None)
    texts = iter(["One", "Two"])

    def script(body):
        if BRIDGE in body["prompt"]:
            return choices(" 2")
        return choices(text) if (text := next(texts, None)) else FILTERED

    with StoryServer(script=script) as server:
        totals = run(server, tmp_path / "s.jsonl", FEW[:1], recipe)
    assert (totals.samples, totals.refused) == (2, {"content_filter": 1})


@pytest.mark.parametrize("recipe", [of(3, per_request=2), of(3, CHAT, per_request=2)])
def test_a_journal_of_the_first_format_is_taken_over(tmp_path, recipe):
    """Its keys hold n and the place among calls of equal content, and a line with no answer."""
    out, journal = tmp_path / "s.jsonl", tmp_path / "teacher.journal"
    with StoryServer() as server:
        run(server, out, FEW[:2], recipe)
        expected, sent = out.read_bytes(), len(server.bodies)
        with read_answers(journal) as answers, Journal(f"{out}.journal") as old:
            for question in FEW[:2]:
                first = recipe.first(question)
                for series, reply in enumerate(answers[first.key("story")]):
                    fields = asdict(first) | {"n": len(reply.completions), "series": series}
                    old.add(first_key(fields), Reply((), 0, 0))
                    old.add(first_key(fields), reply)
                    for completion in reply.completions:
                        if follow_up := recipe.next(question, first, completion):
                            fields = asdict(follow_up) | {"stop": [], "series": 0}
                            old.add(first_key(fields), answers[follow_up.key("story")][0])
        journal.unlink()
        taken = take_over(out, FEW[:2], recipe, "story", journal)
        assert 4 <= taken == sent
        assert take_over(out, FEW[:2], recipe, "story", journal) == 0
        run(server, out, FEW[:2], recipe)
        assert len(server.bodies) == sent
    assert out.read_bytes() == expected
    assert take_over(tmp_path / "none.jsonl", FEW, recipe, "story", journal) == 0


def first_key(fields):
    """As it was made, when a request had fewer fields."""
    later = ("done", "top_k", "min_p", "repetition_penalty", "extra_body")
    given = {name: value for name, value in fields.items() if name not in later}
    content = json.dumps({"teacher": "story", **given}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def test_other_parameters_are_other_requests(tmp_path):
    warmer = replace(RECIPE, numbers=replace(RECIPE.numbers, temperature=1.0))
    with StoryServer() as server:
        run(server, tmp_path / "s.jsonl")
        totals = run(server, tmp_path / "s.jsonl", recipe=warmer)
    assert totals.requests == len(FEW)


def test_single_answers_survive_kill_9(tmp_path):
    """A server that gives one at a time: each is in the journal when the next is asked for."""
    out = tmp_path / "s.jsonl"
    with StoryServer(dialect="llama_cpp_python", delay=0.005) as server:
        kill_somewhere(server, out, random.Random(0), signal.SIGKILL)
        with read_answers(journal_path(out)) as answers:
            kept = len(answers)
        assert started(server, out).wait(120) == 0
        with read_answers(journal_path(out)) as answers:
            whole = len(answers)
        paid = server.answered.total()
    assert kept > 0 and whole <= paid <= whole + CONCURRENCY
    assert len(list(read_samples(out))) == 2 * len(QUESTIONS)


class Whole(Exception):
    """A run that ended by itself."""


@pytest.mark.parametrize("concurrency", [1, 8])
def test_no_more_is_spent_than_allowed(tmp_path, concurrency):
    """What is in flight counts at its highest price; the next run goes on from there."""
    out, prices, recipe = tmp_path / "s.jsonl", Prices(10, 100), of(2, max_tokens=40)
    with StoryServer(delay=0.01) as server:
        for _ in range(20):
            with suppress(Whole), pytest.raises(UserError, match="goes on where") as stopped:
                run(server, out, QUESTIONS, recipe, concurrency, prices, {"max_cost": 0.05})
                raise Whole
            if out.exists():
                break
            message = r"--max-cost \$0.0500: \$(\S+) spent on (\d+) requests"
            spent, requests = re.search(message, str(stopped.value)).groups()
            assert 0.03 < float(spent) <= 0.05 and int(requests) > 0
        assert server.answered.total() == len(QUESTIONS)  # nothing twice
    assert len(list(read_samples(out))) == 2 * len(QUESTIONS)


def test_a_limit_of_cost_wants_prices(tmp_path):
    with StoryServer() as server, pytest.raises(UserError, match="--max-cost without prices"):
        run(server, tmp_path / "s.jsonl", limits={"max_cost": 1.0})
    assert not server.bodies


@pytest.mark.parametrize("recipe", [RECIPE, TWO_STEPS], ids=["one", "two"])
def test_the_first_answers_correct_the_bill(tmp_path, capfd, recipe):
    """A word is a token there: the estimate from bytes is too high, and texts end early."""
    with StoryServer() as server:
        planned = plan(QUESTIONS, recipe, "story", tmp_path / "journal")
        limits = {"planned": planned}
        totals = run(server, tmp_path / "s.jsonl", QUESTIONS, recipe, limits=limits)
    pattern = r"first 3 answers the run takes about (\S+) prompt.* (\S+) written"
    found = re.search(pattern, capfd.readouterr().err).groups()
    prompt, written = (int(number.replace(",", "")) for number in found)
    assert prompt == pytest.approx(totals.prompt_tokens, rel=0.2)
    assert prompt < 0.9 * planned.prompt_tokens
    assert 1 / 3 < written / totals.completion_tokens < 3  # three answers say no more
    assert written < 0.5 * planned.completion_tokens


def test_at_most_so_many_requests_at_one_time(tmp_path):
    many = replace(RECIPE, numbers=replace(RECIPE.numbers, samples=6, per_request=2))
    with StoryServer(delay=0.02) as server:
        run(server, tmp_path / "s.jsonl", recipe=many, concurrency=3)
    assert len(server.bodies) == 18
    assert 1 < server.most_parallel <= 3


def test_one_question_is_asked_until_an_answer_is_as_it_should_be(tmp_path):
    with StoryServer(dialect="no_logprobs", delay=0.02) as server:
        with pytest.raises(UserError, match="3 answers in a row"):
            run(server, tmp_path / "s.jsonl", QUESTIONS, concurrency=16)
        assert (len(server.bodies), server.most_parallel) == (3, 1)


def test_a_failed_request_leaves_no_samples_file_and_is_made_up_later(tmp_path):
    out = tmp_path / "s.jsonl"
    with StoryServer([None, 500, 503]) as server:
        with pytest.raises(UserError, match=r"2 of 6 .*\(story-1, story-2\); story-1: HTTP 500"):
            run(server, out, concurrency=1, attempts=1)
        assert not out.exists()
        assert len(server.bodies) == 6
        totals = run(server, out)
        assert (totals.requests, totals.from_journal) == (2, 4)
        assert max(server.answered.values()) == 1
    assert out.read_bytes() == undisturbed(tmp_path)


@pytest.mark.parametrize(
    ("faults", "sent", "message"),
    [
        ([500] * 40, 21, "21 failed requests in a row, the last with: .*HTTP 500"),
        ([None, *[500] * 20, None, *[503] * 18], 40, "38 of 40 without an answer"),
        ([None, None, 401], 3, "HTTP 401"),
    ],
)
def test_when_a_run_stops_early(tmp_path, faults, sent, message):
    with StoryServer(faults) as server, pytest.raises(UserError, match=message):
        run(server, tmp_path / "s.jsonl", QUESTIONS, concurrency=1, attempts=1)
    assert len(server.bodies) == sent
    with read_answers(tmp_path / "teacher.journal") as answers:
        assert len(answers) == faults.count(None)


@pytest.mark.parametrize("fault", [None, 401, 400, 500])
def test_the_key_is_written_nowhere(tmp_path, fault, key, capfd):
    """Every refusal of this server quotes the key."""
    with StoryServer([None, fault]) as server:
        try:
            run(server, tmp_path / "s.jsonl", attempts=1, concurrency=1)
        except UserError as error:
            print(error)
    assert server.keys[0] == f"Bearer {key}"
    output = capfd.readouterr()
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert written and not any(key in text for text in (*written, output.out, output.err))


def test_progress_without_a_terminal_is_a_line(tmp_path, capfd):
    with StoryServer() as server:
        totals = run(server, tmp_path / "s.jsonl", prices=Prices(0, 1e6))
    line = capfd.readouterr().err.splitlines()[-1]
    n = totals.completion_tokens
    assert line.startswith(f"6/6, {totals.prompt_tokens:,} tokens in, {n:,} out, ${n:,.2f}")


def test_a_plan_sends_nothing_and_tells_what_the_run_then_sends(tmp_path):
    with StoryServer() as server:
        run(server, tmp_path / "s.jsonl", FEW[:2])
        sent = len(server.bodies)
        found = plan(FEW, RECIPE, "story", tmp_path / "teacher.journal")
        assert len(server.bodies) == sent
        totals = run(server, tmp_path / "s.jsonl")
    assert (found.questions, found.answered, found.most_requests) == (6, 2, 4)
    assert totals.requests == found.most_requests
    assert found.prompts == tuple(prompt_of(question.question) for question in FEW[:3])


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1], sys.argv[1] + "/../lib"
import dispatch_test
dispatch_test.disturbed_run(*sys.argv[2:])
"""
CONCURRENCY = 4


def disturbed_run(url, out):
    """In a process of its own, to be killed."""
    teacher = OpenAITeacher("story", base_url=url, timeout=60.0)
    sample(QUESTIONS, TWO_STEPS, teacher, out, journal_path(out), concurrency=CONCURRENCY)


def started(server, out):
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), server.url, str(out)]
    # Into files: a pipe that nobody reads would fill up.
    with open(out.with_name("output"), "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def kill_somewhere(server, out, rng, number):
    """Kills a run at a random moment after its next answers."""
    process = started(server, out)
    enough = server.answered.total() + rng.randrange(1, 15)
    wait_for(lambda: server.answered.total() >= enough or process.poll() is not None)
    time.sleep(rng.random() * 0.01)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0


def key_of(body):
    """The journal's key of a request, from what the server saw of it."""
    names = ("prompt", "max_tokens", "temperature", "stop")
    given = {name: body[name] for name in names if name in body}
    given["stop"] = tuple(given.get("stop", ()))
    return Request(top_logprobs=body["logprobs"], **given).key("story")


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 3), (signal.SIGINT, 2)])
def test_a_run_that_was_killed_goes_on(tmp_path, number, times, key):
    """No answer in the journal is asked for again; only requests in flight are paid for twice."""
    out, rng = tmp_path / "s.jsonl", random.Random(number)
    (tmp_path / "other").mkdir()
    known, sent = set(), 0
    with StoryServer(delay=0.005) as server:
        for _ in range(times):
            kill_somewhere(server, out, rng, number)
            assert not out.exists()
            assert known.isdisjoint(map(key_of, server.bodies[sent:]))
            with read_answers(journal_path(out)) as answers:
                known = {k for body in server.bodies if (k := key_of(body)) in answers}
                assert len(known) == len(answers)
            sent = len(server.bodies)
        assert started(server, out).wait(120) == 0
        assert known.isdisjoint(map(key_of, server.bodies[sent:]))
        with read_answers(journal_path(out)) as answers:
            assert len(answers) == len(server.answered)
            assert server.answered.total() <= len(answers) + times * CONCURRENCY
    assert out.read_bytes() == undisturbed(tmp_path / "other", QUESTIONS, TWO_STEPS)
    assert server.keys[-1] == f"Bearer {key}"
    assert not any(key in p.read_text() for p in tmp_path.iterdir() if p.is_file())
