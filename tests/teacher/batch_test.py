import json
import urllib.request
from dataclasses import replace

import pytest
from support.story_server import STORIES, StoryServer, prompt_of

from cot_flax.chains.samples import read_samples
from cot_flax.errors import UserError
from cot_flax.teacher import batch
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.costs import Prices
from cot_flax.teacher.dispatch import sample
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import BRIDGE, Numbers, Recipe, messages

QUESTIONS = [
    Question(f"story-{i}", "stories", "train", story.question) for i, story in enumerate(STORIES)
][:5]
RECIPE = Recipe(
    "plain",
    "zero_shot_cot",
    Numbers(samples=3, temperature=0.7, max_tokens=200, top_logprobs=3, per_request=2),
    prompt=lambda question: prompt_of(question.question),
    clean=lambda completion: completion,
    two_steps=True,
)
CHAT = replace(RECIPE, prompt=lambda question: messages([("user", question.question)]))
NOWHERE = "http://127.0.0.1:1/v1"


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def written(tmp_path, journal, recipe=RECIPE, **limits):
    teacher = OpenAITeacher("story", base_url=NOWHERE)
    path = tmp_path / "requests.jsonl"
    found = batch.write_requests(path, QUESTIONS, recipe, teacher, journal, **limits)
    return found, [json.loads(line) for line in path.read_text().splitlines()]


def taken(tmp_path, journal, lines, recipe=RECIPE):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    teacher = OpenAITeacher("story", base_url=NOWHERE)
    return batch.take_results(path, QUESTIONS, recipe, teacher, journal)


def worked_off(lines, server):
    """What the batch API makes of a requests file: its lines in any order."""

    def answer(line):
        url = server.url.removesuffix("/v1") + line["url"]
        content = json.dumps(line["body"]).encode()
        request = urllib.request.Request(url, content, method=line["method"])
        with urllib.request.urlopen(request) as response:
            body = json.loads(response.read())
        response = {"status_code": 200, "request_id": "r", "body": body}
        return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}

    return [answer(line) for line in reversed(lines)]


@pytest.mark.parametrize("recipe", [RECIPE, CHAT], ids=["completions", "chat"])
def test_both_steps_by_batches(tmp_path, journal, recipe):
    """The first file has the chains, the second their answers; then nothing is left to ask."""
    with StoryServer() as server:
        found, first = written(tmp_path, journal, recipe)
        assert found.requests == len(first) == 2 * 5
        assert found.completion_tokens == 3 * 5 * 200
        assert sorted(line["body"]["n"] for line in first) == [1] * 5 + [2] * 5
        assert not server.bodies
        result = taken(tmp_path, journal, worked_off(first, server), recipe)
        assert (result.answers, result.known, result.foreign, result.failed) == (10, 0, 0, {})
        found, second = written(tmp_path, journal, recipe)
        assert 5 < found.requests == len({line["custom_id"] for line in second}) <= 15
        assert all(BRIDGE in json.dumps(line["body"]) for line in second)
        taken(tmp_path, journal, worked_off(second, server), recipe)
        assert written(tmp_path, journal, recipe)[0].requests == 0
        sent = len(server.bodies)
        teacher = OpenAITeacher("story", base_url=server.url)
        totals = sample(QUESTIONS, recipe, teacher, tmp_path / "s.jsonl", journal)
        assert len(server.bodies) == sent
    assert (totals.requests, totals.samples) == (0, 15)
    assert all(s.logprobs for s in read_samples(tmp_path / "s.jsonl"))
    assert result.completion_tokens > 0 and result.prompt_tokens > 0


def test_a_result_is_taken_once(tmp_path, journal):
    with StoryServer() as server:
        lines = worked_off(written(tmp_path, journal)[1], server)
    assert taken(tmp_path, journal, lines[:4]).answers == 4
    again = taken(tmp_path, journal, lines)
    assert (again.answers, again.known) == (6, 4)
    assert taken(tmp_path, journal, lines).known == 10


def test_what_failed_is_named_and_asked_for_again(tmp_path, journal):
    with StoryServer() as server:
        _, asked = written(tmp_path, journal)
        lines = worked_off(asked, server)
    lines[0] |= {"response": None, "error": {"code": "batch_expired", "message": "late"}}
    error = {"error": {"message": "no", "type": "t", "code": "content_filter"}}
    lines[1]["response"] = {"status_code": 400, "body": error}
    lines[2]["response"]["body"] = {"choices": [{"index": 0}]}
    lines[3]["custom_id"] = "another-0"
    result = taken(tmp_path, journal, lines)
    assert (result.answers, result.foreign) == (6, 1)
    assert list(result.failed)[:2] == ["batch_expired", "content_filter"]
    assert "an answer of an unknown shape" in list(result.failed)[2]
    _, again = written(tmp_path, journal)
    first_step = [line for line in again if BRIDGE not in line["body"]["prompt"]]
    assert sum(line["body"]["n"] for line in first_step) == 15 - sum(
        line["body"]["n"] for line in asked[:6]
    )


def test_a_file_of_another_kind_is_named(tmp_path, journal):
    with pytest.raises(UserError, match=r"results.jsonl, line 1: .*custom_id"):
        taken(tmp_path, journal, [{"id": "q"}])


def test_a_batch_costs_half_and_no_more_than_allowed(tmp_path, journal):
    prices = Prices(0, 2)  # 3,000 tokens written at most
    with pytest.raises(UserError, match=r"may cost \$3,000.00.*at most --max-cost \$2,999.00"):
        written(tmp_path, journal, prices=Prices(0, 2e6), max_cost=2999)
    assert not (tmp_path / "requests.jsonl").exists()
    with pytest.raises(UserError, match="--max-cost without prices"):
        written(tmp_path, journal, max_cost=1)
    assert written(tmp_path, journal, prices=prices, max_cost=0.003)[0].requests == 10


def test_a_file_has_no_more_requests_than_it_may(tmp_path, journal, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 9)
    with pytest.raises(UserError, match=r"more than 9 requests.*--limit"):
        written(tmp_path, journal)
    assert not (tmp_path / "requests.jsonl").exists()
