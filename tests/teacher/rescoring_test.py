import json
import math
from dataclasses import replace

import pytest
from support.story_server import STORIES, TEACHER, StoryServer, prompt_of

from cot_flax.chains.samples import Logprobs, read_samples, write_samples
from cot_flax.errors import UserError
from cot_flax.lab.world.teacher import make_samples, tokenize
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.journal import Journal, journal_path
from cot_flax.teacher.requests import Completion, Reply
from cot_flax.teacher.rescoring import closed, rescore
from cot_flax.text.wording import LANGUAGES

# Every text once: of two equal calls one is sent.
SAMPLES = list(
    {
        (s.question, s.text): replace(s, logprobs=None)
        for s in make_samples(STORIES[:8], samples=2, seed=1)
    }.values()
)[:10]


@pytest.fixture
def samples(tmp_path):
    write_samples(tmp_path / "samples.jsonl", SAMPLES)
    return tmp_path / "samples.jsonl"


def run(server, samples, out, **settings):
    settings = {"wait_initial": 0.01, "wait_max": 0.02} | settings
    teacher = OpenAITeacher("scorer", base_url=server.url, **settings)
    return rescore(
        samples, out, journal_path(out), teacher, prompt_of, top_logprobs=3, concurrency=4
    )


@pytest.mark.parametrize("dialect", ["openai", "one_token", "no_echo"])
def test_the_scores_are_the_servers_distribution(samples, tmp_path, dialect):
    with StoryServer([500, "cut"], dialect=dialect) as server:
        totals = run(server, samples, tmp_path / "scored.jsonl.gz")
    scored = list(read_samples(tmp_path / "scored.jsonl.gz"))
    for sample, before in zip(scored, SAMPLES, strict=True):
        (story,) = [story for story in STORIES if story.question == sample.question]
        tokens = tuple(tokenize(before.text))
        exact = [TEACHER.next_token(story, tokens[:i]) for i in range(len(tokens))]
        assert sample.logprobs.tokens == tokens
        assert sample.logprobs.token_logprobs == pytest.approx(
            [math.log(p[token]) for p, token in zip(exact, tokens, strict=True)]
        )
        for top, p in zip(sample.logprobs.top_logprobs, exact, strict=True):
            best = sorted(p.values(), reverse=True)[:3]
            assert sorted(map(math.exp, top.values()), reverse=True)[:3] == pytest.approx(best)
        assert sample.teacher["params"] == before.teacher["params"] | {"scored_by": "scorer"}
        unscored = replace(sample, logprobs=None, teacher=before.teacher)
        assert unscored == before
    different = {(sample.question, sample.text) for sample in SAMPLES}
    assert (totals.samples, totals.requests) == (10, len(different))
    assert not totals.problems


def test_a_record_without_a_chain_is_not_sent(tmp_path):
    direct = replace(SAMPLES[1], id="direct", text="", format="zero_shot_answer")
    write_samples(tmp_path / "mixed.jsonl", [SAMPLES[0], direct])
    with StoryServer() as server:
        totals = run(server, tmp_path / "mixed.jsonl", tmp_path / "scored.jsonl")
    scored = list(read_samples(tmp_path / "scored.jsonl"))
    assert scored[0].logprobs and scored[1] == direct
    assert (totals.samples, totals.requests, server.answered.total()) == (2, 1, 1)


GIVEN = {"model": "given rationales", "params": {}}
ASKED = {"model": "nobody", "params": {"recipe": "fu2023"}}


@pytest.mark.parametrize(
    ("text", "gold", "teacher", "expected"),
    [
        ("48 + 24 = 72 clips.", "72", GIVEN, "48 + 24 = 72 clips.\nThe answer is 72"),
        (" 48 + 24 = 72.\n", "72", ASKED, " 48 + 24 = 72.\nThe answer is 72"),
        ("72 clips in 2 months.", "72", GIVEN, "72 clips in 2 months.\nThe answer is 72"),
        ("The patient is ill.", "page", GIVEN, "The patient is ill.\nThe answer is page"),
        # These are closed, wrong, or of an unknown answer: they stay.
        (" 72. The answer is $72.\n", "72", ASKED, " 72. The answer is $72.\n"),
        ("72 clips in 2 months.", "72", ASKED, "72 clips in 2 months."),
        ("So the answer is 71.", "72", GIVEN, "So the answer is 71."),
        ("The answer is queue.", "page", ASKED, "The answer is queue."),
        ("48 + 24 = 72.", "", ASKED, "48 + 24 = 72."),
    ],
)
def test_a_text_is_closed_as_a_student_learns_it(text, gold, teacher, expected):
    sample = replace(SAMPLES[0], text=text, gold_answer=gold, teacher=teacher)
    assert closed(sample) == replace(sample, text=expected)
    assert closed(closed(sample)) == closed(sample)


def test_a_text_of_another_language_is_closed_in_it():
    sample = replace(SAMPLES[0], text="2 加 3 等于 5。", gold_answer="5")
    assert closed(sample, LANGUAGES["zh"].wording).text == "2 加 3 等于 5。\n答案是5"


def test_the_closing_sentence_is_scored(samples, tmp_path):
    bare = replace(
        SAMPLES[0],
        text=SAMPLES[0].text.partition("\nThe answer")[0],
        thought="Hm.",
        thought_logprobs=Logprobs.certain("Hm."),  # another teacher's
    )
    write_samples(samples, [bare])
    with StoryServer() as server:
        run(server, samples, tmp_path / "scored.jsonl")
    (scored,) = read_samples(tmp_path / "scored.jsonl")
    assert scored.text == SAMPLES[0].text
    assert scored.logprobs.tokens == tuple(tokenize(SAMPLES[0].text))
    assert (scored.thought, scored.thought_logprobs) == ("Hm.", None)


def test_texts_that_cannot_be_scored_are_counted_and_asked_for_again(samples, tmp_path):
    odd = [replace(SAMPLES[3], text=text, sample=9 + i) for i, text in enumerate(["No.", "Oh?"])]
    write_samples(samples, [SAMPLES[0], SAMPLES[2], *odd])
    out = tmp_path / "scored.jsonl"
    with StoryServer() as server:
        totals = run(server, samples, out)
        again = run(server, samples, out)
    assert totals.problems == again.problems == {"no_probability": 2}
    assert (totals.requests, totals.from_journal) == (2, 0)
    assert (again.requests, again.from_journal) == (0, 2)
    assert [sample.logprobs is None for sample in read_samples(out)] == [False, False, True, True]


def test_failures_that_an_older_version_remembered_are_asked_for_again(samples, tmp_path):
    out, old = tmp_path / "scored.jsonl", tmp_path / "old"
    with StoryServer() as server:
        run(server, samples, out)
        expected = out.read_bytes()
        keys = [json.loads(line)["key"] for line in journal_path(out).read_bytes().splitlines()]
        with Journal(old) as journal:
            journal.add(keys[0], Reply((Completion("", None, "not_given"),), 0, 0))
        journal_path(out).write_bytes(old.read_bytes())
        totals = run(server, samples, out)
    assert (totals.requests, totals.from_journal) == (10, 0)
    assert not totals.problems and out.read_bytes() == expected


def test_a_server_without_scores_stops_the_run_at_the_first_text(samples, tmp_path):
    """llama.cpp: the text comes back, the log-probabilities are of what it generated."""
    out = tmp_path / "scored.jsonl"

    def script(body):
        echo = body["prompt"] * body.get("echo", False)
        return 200, {"choices": [{"text": echo, "logprobs": {"content": []}}]}

    with StoryServer(script=script) as server:
        message = r"1 of 1 requests refused.*no log-prob.*from 127.*\(not_given\).*with vLLM"
        with pytest.raises(UserError, match=message):
            run(server, samples, out)
        assert len(server.bodies) == 3
    assert not out.exists()
    with StoryServer() as server:
        assert run(server, samples, out).requests == 10


def test_a_run_that_scores_nothing_stops(samples, tmp_path):
    write_samples(samples, [replace(s, text="Nonsense") for s in SAMPLES])
    out = tmp_path / "scored.jsonl"
    with StoryServer() as server, pytest.raises(UserError, match=r"refused.*no_probability"):
        run(server, samples, out)
    assert not out.exists()


def test_a_broken_samples_file_costs_nothing(samples, tmp_path):
    with open(samples, "a") as file:
        file.write("{}\n")
    with StoryServer() as server, pytest.raises(UserError, match="line 11"):
        run(server, samples, tmp_path / "scored.jsonl")
    assert server.bodies == []


def test_a_failed_request_leaves_no_file(samples, tmp_path):
    out = tmp_path / "scored.jsonl"
    with StoryServer([None, 500]) as server:
        with pytest.raises(UserError, match="1 of 10 without an answer"):
            run(server, samples, out, attempts=1)
        assert not out.exists()
        assert run(server, samples, out).requests == 1
