import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.story_server import STORIES, StoryServer, prompt_of

from cot_flax.chains.samples import read_samples
from cot_flax.errors import UserError
from cot_flax.lab.world.teacher import tokenize
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.costs import Prices, plan
from cot_flax.teacher.dispatch import sample
from cot_flax.teacher.journal import read_answers
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import BRIDGE, Numbers, Recipe, messages
from cot_flax.teacher.requests import Request

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


def run(server, out, questions=FEW, recipe=RECIPE, concurrency=4, prices=None, **settings):
    teacher = teacher_at(server, **settings)
    return sample(questions, recipe, teacher, out, concurrency=concurrency, prices=prices)


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


def test_samples_without_log_probabilities_are_counted(tmp_path):
    with StoryServer(dialect="no_logprobs") as server:
        totals = run(server, tmp_path / "s.jsonl")
        again = run(server, tmp_path / "s.jsonl")  # from the journal
    assert totals.problems == again.problems == {"not_given": 12}
    assert again.requests == 0
    assert next(read_samples(tmp_path / "s.jsonl")).logprobs is None


@pytest.mark.parametrize("recipe", [TWO_STEPS, CHAT], ids=["completions", "chat"])
def test_two_steps(tmp_path, recipe):
    with StoryServer() as server:
        totals = run(server, tmp_path / "s.jsonl", recipe=recipe)
    samples = list(read_samples(tmp_path / "s.jsonl"))
    assert len(samples) == 12
    different = {(s.id, s.text.partition(BRIDGE)[0].rstrip()) for s in samples}
    assert totals.requests == len(FEW) + len(different)  # equal chains share the second step
    assert max(server.answered.values()) == 1


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


def test_other_parameters_are_other_requests(tmp_path):
    warmer = replace(RECIPE, numbers=replace(RECIPE.numbers, temperature=1.0))
    with StoryServer() as server:
        run(server, tmp_path / "s.jsonl")
        totals = run(server, tmp_path / "s.jsonl", recipe=warmer)
    assert totals.requests == len(FEW)


def test_at_most_so_many_requests_at_one_time(tmp_path):
    many = replace(RECIPE, numbers=replace(RECIPE.numbers, samples=6, per_request=2))
    with StoryServer(delay=0.02) as server:
        run(server, tmp_path / "s.jsonl", recipe=many, concurrency=3)
    assert len(server.bodies) == 18
    assert 1 < server.most_parallel <= 3


def test_a_failed_request_leaves_no_samples_file_and_is_made_up_later(tmp_path):
    out = tmp_path / "s.jsonl"
    with StoryServer([None, 500, 400]) as server:
        with pytest.raises(UserError, match=r"2 of 6 .*\(story-1, story-2\); story-1: .*HTTP 500"):
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
        ([None, *[500] * 20, None, *[400] * 18], 40, "38 of 40 without an answer"),
        ([None, None, 401], 3, "HTTP 401"),
    ],
)
def test_when_a_run_stops_early(tmp_path, faults, sent, message):
    with StoryServer(faults) as server, pytest.raises(UserError, match=message):
        run(server, tmp_path / "s.jsonl", QUESTIONS, concurrency=1, attempts=1)
    assert len(server.bodies) == sent
    with read_answers(tmp_path / "s.jsonl.journal") as answers:
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
        found = plan(FEW, RECIPE, "story", tmp_path / "s.jsonl")
        assert len(server.bodies) == sent
        totals = run(server, tmp_path / "s.jsonl")
    assert (found.requests, found.answered, found.most_requests) == (6, 2, 4)
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
    sample(QUESTIONS, TWO_STEPS, teacher, out, concurrency=CONCURRENCY)


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
    names = ("prompt", "n", "max_tokens", "temperature")
    return Request(top_logprobs=body["logprobs"], **{n: body[n] for n in names}).key("story")


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
            with read_answers(f"{out}.journal") as answers:
                known = {k for body in server.bodies if (k := key_of(body)) in answers}
                assert len(known) == len(answers)
            sent = len(server.bodies)
        assert started(server, out).wait(120) == 0
        assert known.isdisjoint(map(key_of, server.bodies[sent:]))
        with read_answers(f"{out}.journal") as answers:
            assert len(answers) == len(server.answered)
            assert server.answered.total() <= len(answers) + times * CONCURRENCY
    assert out.read_bytes() == undisturbed(tmp_path / "other", QUESTIONS, TWO_STEPS)
    assert server.keys[-1] == f"Bearer {key}"
    assert not any(key in p.read_text() for p in tmp_path.iterdir() if p.is_file())
