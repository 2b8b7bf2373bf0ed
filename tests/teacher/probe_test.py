"""What a probe finds out of servers of known habits and faults."""

import json
import re
from dataclasses import replace

import pytest
from support.story_server import DIALECTS, STORIES, Dialect, StoryServer

from cot_flax.errors import UserError
from cot_flax.teacher import findings
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.findings import Findings, Wanted
from cot_flax.teacher.probe import MOST_REQUESTS, probe

EVERYTHING = Wanted(everything=True)
VLLM = DIALECTS["vllm"]
SAMPLING = Wanted(top_logprobs=5, draws=True, samples=8, stops=True)
RESCORING = Wanted(top_logprobs=5, scores=True)


def found_at(server, wanted=EVERYTHING, **settings):
    teacher = OpenAITeacher("story", base_url=server.url, wait_initial=0.01, **settings)
    return probe(teacher, wanted)


def found_of(dialect, wanted=EVERYTHING):
    with StoryServer(dialect=dialect) as server:
        return found_at(server, wanted)


def test_a_server_without_faults_has_no_warning():
    with StoryServer(dialect="vllm") as server:
        found = found_at(server)
        assert found.requests == len(server.bodies) + 1 <= MOST_REQUESTS  # one lists the models
    assert list(found.warnings(SAMPLING)) == []
    for wanted in (SAMPLING, RESCORING):
        found.check(wanted)
    assert (found.model, found.listed, found.n, found.shape) == (
        "story",
        ["story"],
        128,
        "logprobs.tokens",
    )
    honoured = {"top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed"}
    assert set(found.honoured) == honoured
    assert (found.chains, found.draws, found.scoring) == (4, True, "echo and one token")
    assert (found.repeated, found.agreement) == (0.0, 0.0)
    assert (found.own_is_top, found.scored_is_top) == (1.0, 1.0)
    assert (found.ignored, found.refused, found.unseen) == ([], [], [])
    assert found.other_api is True and found.thought == "" and found.lost == ""


@pytest.mark.parametrize(
    ("dialect", "warning"),
    [
        (replace(VLLM, ignores=("logprobs", "top_logprobs")), r"no log-probabilities \(not_given"),
        (replace(VLLM, is_greedy=True), "4 equal chains at temperature 0.7"),
        (replace(VLLM, noise=0.1), "two scorings of one text differ by 2.4 nats over 24 tokens"),
        (
            replace(VLLM, generation_noise=0.2),
            "log-probabilities of another place: 0%.*generated and scored .* differ by 4.8 nats",
        ),
        (replace(VLLM, model="other"), "asked for model 'story', answered by 'other'"),
        (replace(VLLM, ignores=("stop", "seed")), "passed over without a word: .*stop"),
        (replace(VLLM, ignores=("top_k",)), "passed over without a word: top_k"),
        (replace(VLLM, lost="é{"), "characters that its tokenizer does not know: é {"),
        ("llama_cpp_python", r"passed over .*: n, .*given texts are not scored \(shifted\)"),
        ("llama_server", r"8 chains take 2 requests a question.*not scored \(not_given\)"),
        ("vllm_reasoning", "thinks before it answers, apart in `reasoning`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "vllm",
)
def test_a_fault_is_named(dialect, warning):
    found = found_of(dialect)
    said = list(found.warnings(replace(SAMPLING, top_logprobs=None)))
    assert found.requests <= MOST_REQUESTS
    assert re.search(warning, " ".join(said)), said


@pytest.mark.parametrize(
    ("dialect", "wanted", "message"),
    [
        (
            "no_logprobs",
            SAMPLING,
            r"no log-probabilities from 127.*\(not_given\).*--top-logprobs 0",
        ),
        (
            replace(VLLM, refuses=("logprobs",)),
            SAMPLING,
            r"\(refused: .*logprobs is not supported.*--top-logprobs 0",
        ),
        (replace(VLLM, generation_noise=0.2), SAMPLING, "of another place: 0% of the tokens"),
        (replace(VLLM, is_greedy=True), SAMPLING, "4 equal chains .*; .*--samples 1"),
        ("llama_cpp_python", RESCORING, r"of a given text from 127.*\(shifted\).*vLLM"),
        ("llama_server", RESCORING, r"of a given text from 127.*\(not_given\).*vLLM"),
    ],
)
def test_what_makes_a_run_worthless_stops_it(dialect, wanted, message):
    found = found_of(dialect, wanted)
    with pytest.raises(UserError, match=message):
        found.check(wanted)
    harmless = Wanted(samples=1, draws=wanted.draws)
    found.check(harmless)


def test_a_run_asks_for_what_it_needs_alone():
    with StoryServer(dialect="vllm") as server:
        found = found_at(server, Wanted(samples=1, stops=True))
        assert len(server.bodies) == found.requests <= 3
    assert found.answers(Wanted(samples=1)) and not found.answers(SAMPLING)
    assert not found.answers(EVERYTHING)
    with StoryServer(dialect="vllm") as server:
        found = found_at(server, SAMPLING)
        assert len(server.bodies) == found.requests <= 10
    assert found.answers(SAMPLING) and not found.answers(RESCORING)
    assert not found_of("no_logprobs", SAMPLING).answers(SAMPLING)
    assert not found.answers(replace(SAMPLING, chat=True))


def test_what_it_learned_is_for_the_client():
    assert found_of("llama_server").known_habits().most_n == 4
    assert found_of("llama_cpp_python").known_habits().most_n == 1
    assert found_of("no_echo").known_habits().scoring == "prompt_logprobs"
    chat = found_of(Dialect(refuses=("max_tokens",)), Wanted(chat=True))
    assert chat.known_habits().limit_name == "max_completion_tokens"


def test_settings_are_sent_where_they_are_known():
    found = found_of("llama_server")
    assert found.settings({"min_p": 0.1}) == {"top_k": 0}
    assert found_of("vllm").settings({}) == {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    with StoryServer(dialect=replace(VLLM, refuses=("top_k", "min_p"))) as server:
        found = found_at(server)
    assert (sorted(found.refused), found.unseen) == (["min_p", "top_k"], [])
    for name in found.refused:  # it is no refusal of several chains: asked once
        assert len([body for body in server.bodies if name in body]) == 1


def test_a_server_with_the_chat_api_alone_is_asked_by_it():
    def script(body):
        error = {"error": {"message": "no such path", "code": 404}}
        return None if "messages" in body else (404, error)

    with StoryServer(script=script) as server:
        found = found_at(server)
    assert (found.chat, found.other_api, found.shape) == (True, False, "logprobs.content")
    assert "chat alone" in findings.report(found)


def test_a_server_that_fails_leaves_questions_open():
    """The first answer comes at the third try, and from then on one in two is an error."""
    with StoryServer([500, 503] + [None] + [500] * 40, dialect="vllm") as server:
        found = found_at(server, wait_max=0.02)
    assert found.model == "story"
    assert {"chains", "seed", "top_k"} <= set(found.unseen)
    assert found.draws is None and found.known_habits().scoring == ""


def test_a_slow_server_is_asked_no_longer_than_it_may_take(monkeypatch):
    """Half a second for each of some five waves of answers, and one second for all."""
    monkeypatch.setattr("cot_flax.teacher.probe.MOST_SECONDS", 1.0)
    with StoryServer(dialect="vllm", delay=0.4) as server:
        found = found_at(server, SAMPLING)
    assert found.model == "story" and found.unseen and found.seconds < 1.5


def test_a_server_that_refuses_everything_is_named_once():
    with StoryServer([401] * 3) as server, pytest.raises(UserError, match="HTTP 401"):
        found_at(server)
    with StoryServer([400] * 9) as server, pytest.raises(UserError, match="HTTP 400"):
        found_at(server, SAMPLING)


def test_findings_are_kept_by_server_model_and_api(tmp_path):
    path = findings.path_beside(tmp_path / "new" / "teacher.journal")
    with StoryServer(dialect="vllm") as server:
        first = found_at(server, SAMPLING)
        findings.keep(path, first)
        place = findings.server_of(server.url)
        assert findings.read_kept(path, place, "story", False) == first
        assert findings.read_kept(path, place, "story", True) is None
        assert findings.read_kept(path, place, "other", False) is None
        # What another run finds out is added.
        findings.keep(path, found_at(server, RESCORING))
        both = findings.read_kept(path, place, "story", False)
        assert both.honoured == first.honoured and both.known_habits().scoring
        # What is known better replaces what was known before.
        server.dialect = replace(VLLM, ignores=("top_k",))
        findings.keep(path, found_at(server, SAMPLING))
        later = findings.read_kept(path, place, "story", False)
        assert "top_k" in later.ignored and "top_k" not in later.honoured
    assert both.answers(SAMPLING) and both.answers(RESCORING)
    path.write_text(json.dumps({f"story at {place}, completions": {"unknown": 1}}))
    assert findings.read_kept(path, place, "story", False) is None
    path.write_text("torn")
    assert findings.read_kept(path, place, "story", False) is None


def test_a_place_has_no_password(monkeypatch):
    assert findings.server_of("http://me:secret@localhost:8000/v1/") == "localhost:8000/v1"
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert findings.server_of(None) == "api.openai.com/v1"


def test_the_report_says_what_is_not_known():
    report = findings.report(Findings("localhost:1/v1", "m"))
    assert "localhost:1/v1" in report and report.count("not found out") >= 6
    assert findings.report(found_of("vllm")).count("not found out") == 0


def test_a_story_is_asked_about_by_nobody():
    """So that tests may count the requests of a run alone."""
    with StoryServer(dialect="vllm") as server:
        found_at(server)
        bodies = json.dumps(server.bodies)
    assert not any(story.question in bodies for story in STORIES)
