"""`cot-flax teach` as a user types it, against a real server on this machine."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.story_server import DIALECTS, STORIES, TEACHER, Dialect, StoryServer

from cot_flax import cli
from cot_flax.chains.samples import read_samples
from cot_flax.lab.world.teacher import reference_rationale
from cot_flax.teacher import questions
from cot_flax.text.scoring import score

TRIAGE = Path(__file__).parents[1] / "examples" / "triage"
WORKED = [
    {"id": "a", "question": "What is 2 + 3?", "rationale": "2 + 3 = 5.", "answer": "5"},
    {"id": "b", "question": "What is 9 - 4?", "rationale": "9 - 4 = 5.", "answer": "5"},
]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(tmp_path):
    stories = [
        {"id": f"s{i}", "question": s.question, "answer": str(s.answer)}
        | {"rationale": reference_rationale(s)}
        for i, s in enumerate(STORIES[:6])
    ]
    for name, records in (("questions", stories), ("worked", WORKED)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cot-flax", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def sampling(files, url, *more):
    return [
        *("teach", "sample", files / "questions.jsonl", "--out", files / "samples.jsonl"),
        *("--recipe", "fu2023", "--dataset", "stories", "--exemplars", files / "worked.jsonl"),
        *("--shots", 2, "--samples", 3, "--model", "story", "--base-url", url, "--no-probe", *more),
    ]


def test_samples_are_asked_for_once_and_become_a_store(files, monkeypatch, capsys):
    with StoryServer(faults=[500, "malformed"]) as server:
        assert call(monkeypatch, *sampling(files, server.url)) == 0
        assert server.answered.total() == 6 + 1  # the malformed answer was paid for too
        assert call(monkeypatch, *sampling(files, server.url)) == 0
        assert server.answered.total() == 6 + 1
    assert "18 samples in" in capsys.readouterr().out
    samples = list(read_samples(files / "samples.jsonl"))
    assert [(s.id, s.sample) for s in samples] == [(f"s{i}", n) for i in range(6) for n in range(3)]
    for s in samples:
        top = s.logprobs.top_logprobs[0]
        story = STORIES[int(s.id[1:])]
        exact = TEACHER.next_token(story, ())
        assert top == pytest.approx({token: math.log(exact[token]) for token in top})
    task = ("--task", "stories_teacher_zero_shot_cot")
    out = files / "store"
    assert call(monkeypatch, "prepare", files / "samples.jsonl", "--out", out, *task) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    records = score(
        [s.text for s in samples], [s.gold_answer for s in samples], kind="number", mode="strict"
    )
    right = [s.text for s, record in zip(samples, records, strict=True) if record.right]
    dropped = manifest["tally"]["fates"]
    assert manifest["kept"] == len(right) - dropped.get("repeated", 0) > 0
    assert manifest["read"] == 18


DATA_HALF = """
include 'runs/teach.gin'
include 'runs/prepare.gin'
QUESTIONS_FILE = '{folder}/questions.jsonl'
EXEMPLARS_FILE = '{folder}/worked.jsonl'
SAMPLES_FILE = '{folder}/from_gin.jsonl'
RECIPE = 'fu2023'
DATASET = 'stories'
TEACHER_MODEL = 'story'
TEACH_SHOTS = 2
TEACH_SAMPLES = 3
TEACH_TEMPERATURE = 1
TEACHER_STORE = '{folder}/store'
STORE_TASK = 'stories_teacher_zero_shot_cot'
TEACHER_TOP_K = 4
PER_QUESTION = 2
PREPARE_WORKERS = 2
"""


def test_the_data_half_of_a_paper_is_a_file(files, monkeypatch, capsys):
    """Its requests and samples are those of the options, its store has its settings."""
    (files / "paper.gin").write_text(DATA_HALF.format(folder=files))
    paper = f"--gin_file={files / 'paper.gin'}"
    with StoryServer() as server:
        assert call(monkeypatch, *sampling(files, server.url, "--temperature", 1)) == 0
        url = f"--gin.TEACHER_URL={server.url}"
        flags = (url, "--gin.TEACHER_PROBE=False")
        assert call(monkeypatch, "teach", paper, *flags) == 0
        assert server.answered.total() == 6  # the journal of the folder has them all
    shown = capsys.readouterr()
    assert f"18 samples in {files}/from_gin.jsonl: 0 requests" in shown.out
    assert f"TEACHER_URL = '{server.url}'" in shown.err
    assert (files / "from_gin.jsonl").read_bytes() == (files / "samples.jsonl").read_bytes()
    assert call(monkeypatch, "prepare", paper, "--balance", 1) == 0
    settings = json.loads((files / "store" / "manifest.json").read_text())["plan"]["settings"]
    assert settings["top_k"] == 4
    filters = settings["filters"]
    assert (filters["per_question"], filters["balance"], filters["rules"]) == (2, 1, "own")


def test_an_option_wins_over_the_file_and_a_flag_over_the_option(files, monkeypatch, capsys):
    (files / "paper.gin").write_text(DATA_HALF.format(folder=files))
    arguments = ["teach", "sample", f"--gin_file={files / 'paper.gin'}", "--dry-run"]
    written = {}
    for more in ([], ["--samples", "5"], ["--samples", "5", "--gin.TEACH_SAMPLES=7"]):
        assert call(monkeypatch, *arguments, "--max-tokens", 10, *more) == 0
        found = re.search(r"prompt tokens, ([\d,]+) written", capsys.readouterr().out)
        written[len(more)] = int(found[1])
    assert written == {0: 6 * 3 * 10, 2: 6 * 5 * 10, 3: 6 * 7 * 10}


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["teach", "sample"], "no value for .*; expected one; pass .* or --gin"),
        (
            ["teach", "sample", "q", "--recipe", "fu2023", "--dataset", "d"],
            "SAMPLES_FILE; .* --out or",
        ),
        (["teach", "scenario", "--out", "o"], "SCENARIO; .*pass FOLDER or --gin.SCENARIO=VALUE"),
        (["teach", "rescore", "--out", "o"], "UNSCORED_FILE; .*pass SAMPLES or"),
        (["teach", "scenario", str(TRIAGE), "--out", "o", "--gin.TEACH_SHOTS=2"], "2 shots of a"),
        (["teach", "--gin.RECIPE=fu2023", "--gin.TEACH_SAMPLE=1"], "such as TEACH_SAMPLES"),
        (["prepare", "s.jsonl", "--out", "o"], "STORE_TASK; .*pass --task or --gin.STORE_TASK"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_what_is_missing_is_named_with_its_short_form(monkeypatch, capsys, verb, message):
    assert call(monkeypatch, *verb) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_a_dry_run_asks_nothing_and_says_what_it_would_cost(files, monkeypatch, capsys):
    with StoryServer() as server:
        prices = ("--price-in", 1000, "--price-out", 2000, "--max-tokens", 10)
        arguments = sampling(files, server.url, "--dry-run", "--limit", 4, *prices)
        assert call(monkeypatch, *arguments) == 0
        assert not server.bodies
    printed = capsys.readouterr().out
    assert printed.count("What is 2 + 3?") == 3  # the prompts of three questions
    # 4 requests of 3 samples of at most 10 tokens.
    found = re.search(
        r"at most 4 requests .* ([\d,]+) prompt tokens, 120 written, \$(\S+) ", printed
    )
    prompt_tokens = int(found[1].replace(",", ""))
    assert float(found[2]) == pytest.approx(prompt_tokens / 1000 + 120 / 500, abs=0.01)
    assert not (files / "teacher.journal").exists()


def test_a_run_ends_before_it_costs_more_than_allowed(files, monkeypatch, capsys):
    prices = ("--price-in", 10, "--price-out", 100, "--max-tokens", 20)
    with StoryServer() as server:
        assert call(monkeypatch, *sampling(files, server.url, *prices, "--max-cost", 0.02)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.search(r"got --max-cost \$0.0200: \$0.0\d+ spent on \d requests", line), line
        sent = len(server.bodies)
        assert 0 < sent < 6
        assert call(monkeypatch, *sampling(files, server.url, *prices, "--max-cost", 1)) == 0
        assert len(server.bodies) == 6
        assert call(monkeypatch, *sampling(files, server.url, "--max-cost", 1)) == 2
        assert "--max-cost without prices" in capsys.readouterr().err
        probed = [a for a in sampling(files, server.url, *prices) if a != "--no-probe"]
        again = ("--journal", files / "other.journal", "--max-cost", 0.02)
        assert call(monkeypatch, *probed, *again) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.search(r"got --max-cost \$0.0200: \$0.0\d+ spent on 0 requests and a probe", line)


def test_a_batch_is_written_and_its_results_are_taken(files, monkeypatch, capsys):
    requests, results = files / "requests.jsonl", files / "results.jsonl"
    prices = ("--price-in", 0, "--price-out", 1000, "--max-tokens", 10)
    arguments = sampling(files, "http://127.0.0.1:1/v1", "--top-logprobs", 0, *prices)
    assert call(monkeypatch, *arguments, "--batch-file", requests) == 0
    out = capsys.readouterr().out
    assert re.search(r"6 requests in .* 180 written, \$0.09 at half the price", out), out
    assert call(monkeypatch, *arguments, "--batch-results", requests) == 2
    assert (
        "requests.jsonl without an answer to these questions (HTTP ? 6)" in capsys.readouterr().err
    )
    with open(results, "w") as file:
        for line in map(json.loads, requests.read_text().splitlines()):
            choices = [{"text": "So 5", "finish_reason": "stop"}] * line["body"]["n"]
            usage = {"prompt_tokens": 9, "completion_tokens": 6}
            body = {"choices": choices, "usage": usage}
            response = {"status_code": 200, "body": body}
            file.write(json.dumps({"custom_id": line["custom_id"], "response": response}) + "\n")
    assert call(monkeypatch, *arguments, "--batch-results", results, "--batch-file", requests) == 0
    printed = capsys.readouterr()
    assert "6 answers taken from" in printed.err and "54 prompt tokens, 36 written" in printed.err
    assert "18 samples in" in printed.out and ": 0 requests" in printed.out
    local = ("teach", "sample", files / "questions.jsonl", "--out", files / "o", "--dataset", "d")
    more = ("--recipe", "ho2022", "--checkpoint", "x", "--batch-file", requests)
    assert call(monkeypatch, *local, *more) == 2
    assert "a batch for x; expected a server's model" in capsys.readouterr().err


def test_no_server_is_one_line_within_seconds(files, monkeypatch, capsys):
    with StoryServer() as server:
        pass
    start = time.monotonic()
    assert call(monkeypatch, *sampling(files, server.url)) == 2
    assert time.monotonic() - start < 10
    planned, line = capsys.readouterr().err.splitlines()
    assert planned.startswith("6 questions")
    assert re.search(f"no server at {server.url}.*start it, such as `vllm serve", line)


def of_stories(bodies):
    """Those of a run, without a probe's."""
    return [b for b in bodies if any(story.question in json.dumps(b) for story in STORIES)]


def probing(*arguments):
    """The arguments of `sampling`, which find out first what the server does."""
    return [argument for argument in arguments if argument != "--no-probe"]


def test_a_run_finds_out_what_the_server_does_and_uses_it(files, monkeypatch, capsys):
    """llama.cpp: n is at most 4, repetition_penalty is passed over; asked once."""
    command = probing(*sampling(files, "", "--samples", 6, "--limit", 2))
    with StoryServer(dialect="llama_server") as server:
        command[command.index("")] = server.url
        assert call(monkeypatch, *command) == 0
        asked = of_stories(server.bodies)
        assert sorted(body["n"] for body in asked) == [2, 2, 4, 4]
        for body in asked:
            assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)
            assert "repetition_penalty" not in body
        first = len(server.bodies)
        assert first - len(asked) <= 20
        shown = capsys.readouterr()
        assert "12 samples in" in shown.out and re.search(r"probe: \d+ requests in", shown.err)
        assert "WARNING: passed over without a word: repetition_penalty" in shown.err
        assert call(monkeypatch, *command, "--limit", 3) == 0
        more = server.bodies[first:]
        assert len(more) == len(of_stories(more)) == 2  # nothing is found out again
        assert call(monkeypatch, *command, "--limit", 3) == 0
        assert len(server.bodies) == first + 2
    (sample, *_) = read_samples(files / "samples.jsonl")
    params = sample.teacher["params"]
    assert (params["top_k"], params["min_p"]) == (0, 0.0)
    assert params["teachers_own"] == ["repetition_penalty"]


@pytest.mark.parametrize(
    ("dialect", "more", "message"),
    [
        ("no_logprobs", (), r"no log-probabilities from 127.*--top-logprobs 0"),
        (Dialect(is_greedy=True), (), "4 equal chains at temperature 0.7.*--samples 1"),
        (Dialect(refuses=("logprobs",)), (), r"\(refused: .*logprobs is not supported"),
    ],
)
def test_a_run_that_is_worthless_stops_before_its_first_question(
    files, monkeypatch, capsys, dialect, more, message
):
    with StoryServer(dialect=dialect) as server:
        assert call(monkeypatch, *probing(*sampling(files, server.url, *more))) == 2
        assert server.bodies and not of_stories(server.bodies)
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])
        assert not (files / "samples.jsonl").exists()
        # A server that was mended since is asked again.
        server.dialect = DIALECTS["vllm"]
        assert call(monkeypatch, *probing(*sampling(files, server.url, *more))) == 0
    assert "WARNING" not in capsys.readouterr().err


def test_what_the_journal_answers_needs_no_server(files, monkeypatch):
    with StoryServer(dialect="vllm") as server:
        arguments = probing(*sampling(files, server.url))
        assert call(monkeypatch, *arguments) == 0
    first = (files / "samples.jsonl").read_bytes()
    (files / "samples.jsonl").unlink()
    assert call(monkeypatch, *arguments) == 0
    assert (files / "samples.jsonl").read_bytes() == first


def test_a_refusal_for_good_is_no_reason_to_run_it_again(files, monkeypatch, capsys):
    refusal = 400, {"error": {"message": "unsupported: logprobs", "code": 400}}
    for arguments in (sampling(files, ""), probing(*sampling(files, ""))):
        with StoryServer(script=lambda body: refusal) as server:
            arguments[arguments.index("")] = server.url
            assert call(monkeypatch, *arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.count("; expected ") == 1 and "again" not in line
        assert "HTTP 400 from 127" in line and "unsupported: logprobs" in line


def test_equal_chains_are_refused_before_anything_is_sent(files, monkeypatch, capsys):
    with StoryServer() as server:
        assert call(monkeypatch, *sampling(files, server.url, "--temperature", 0)) == 2
        assert not server.bodies
    message = "3 chains a question at temperature 0, .*; expected .*; set --temperature, or"
    assert re.search(message, capsys.readouterr().err)


def test_rescoring_uses_what_the_server_does(files, monkeypatch, capsys):
    with StoryServer() as server:
        assert call(monkeypatch, *sampling(files, server.url, "--limit", 2)) == 0
    prompt = ("--prompt", "Q: {question}\\nA:")
    command = (
        "teach",
        "rescore",
        files / "samples.jsonl",
        "--out",
        files / "scored.jsonl",
        *prompt,
    )
    with StoryServer(dialect="no_echo") as server:
        assert call(monkeypatch, *command, "--model", "story", "--base-url", server.url) == 0
        asked = of_stories(server.bodies)
        assert len(asked) == len({body["prompt"] for body in asked})
        assert all(body["prompt_logprobs"] == 5 for body in asked)
    capsys.readouterr()
    with StoryServer(dialect="llama_cpp_python") as server:
        assert call(monkeypatch, *command, "--model", "story", "--base-url", server.url) == 2
        assert not of_stories(server.bodies)
    assert "of a given text from 127" in (shown := capsys.readouterr().err) and "shifted" in shown


def test_a_probe_of_its_own(files, monkeypatch, capsys):
    out = files / "samples.jsonl"
    with StoryServer(dialect="llama_server") as server:
        teacher = ("--model", "smol", "--base-url", server.url)
        assert call(monkeypatch, "teach", "probe", *teacher, "--out", out) == 0
        printed = capsys.readouterr().out
        assert re.search(r"chains a request +up to 4\n", printed)
        assert len(server.bodies) <= 20
        count = len(server.bodies)
        command = probing(*sampling(files, server.url, "--limit", 1))
        command[command.index("story")] = "smol"
        assert call(monkeypatch, *command) == 0
        assert len(server.bodies) == count + 1  # what was kept is used
    assert call(monkeypatch, "teach", "probe", "--checkpoint", files) == 2
    assert "a server's (--model)" in capsys.readouterr().err


def test_fields_and_headers_of_ones_own_are_sent(files, monkeypatch, capsys):
    monkeypatch.setenv("TEAM", "ours")
    own = ("--top-k", 7, "--min-p", 0.1, "--repetition-penalty", 1.1, "--seed", 5)
    body = ("--extra-body", '{"chat_template_kwargs": {"enable_thinking": false}}')
    header = ("--header", "Authorization: Basic $TEAM", "--attempts", 2)
    with StoryServer() as server:
        arguments = sampling(files, server.url, "--limit", 1, *own, *body, *header)
        assert call(monkeypatch, *arguments) == 0
        assert call(monkeypatch, *arguments, "--extra-body", "[1]") == 2
    (sent,) = server.bodies
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"], sent["seed"]) == (
        *(7, 0.1, 1.1),
        5,
    )
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.keys == ["Basic ours"]
    assert re.search("--extra-body .*a JSON object", capsys.readouterr().err)
    (sample, *_) = read_samples(files / "samples.jsonl")
    params = sample.teacher["params"]
    assert params["extra_body"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert params["seed"] == 5 and "teachers_own" not in params


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_run_that_is_stopped_says_what_it_cost_and_goes_on(files, number, code, name):
    arguments = [*map(str, sampling(files, "", "--concurrency", 1))]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with StoryServer(delay=0.3) as server:
        arguments[arguments.index("")] = server.url
        command = [sys.executable, "-m", "cot_flax.cli", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        while len(server.bodies) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == code, error
        line = error.splitlines()[-1]
        answers = int(re.search(rf"stopped by {name} after (\d+) answers, [\d,]+ prompt", line)[1])
        assert answers >= 2 and "run the same command to go on" in line
        assert "Traceback" not in error
        before = len(server.bodies)
        assert subprocess.run(command, capture_output=True).returncode == 0
        assert len(server.bodies) - before == 6 - answers


def test_what_is_sent_can_be_set(files, monkeypatch):
    sent = {"--stop": r"\nQ:", "--top-p": 0.5, "--presence-penalty": 1, "--frequency-penalty": 2}
    options = [word for pair in sent.items() for word in pair]
    with StoryServer() as server:
        assert call(monkeypatch, *sampling(files, server.url, "--limit", 1)) == 0
        more = ("--limit", 1, *options, "--stop", "END", "--per-request", 2)
        assert call(monkeypatch, *sampling(files, server.url, *more)) == 0
    recipes_own, *others = server.bodies
    assert recipes_own["stop"] == ["\nQuestion:"] and recipes_own["top_p"] == 1.0
    assert sorted(body["n"] for body in others) == [1, 2]  # sent at one time, in either order
    for body in others:
        assert (body["stop"], body["top_p"]) == (["\nQ:", "END"], 0.5)
        assert (body["presence_penalty"], body["frequency_penalty"]) == (1.0, 2.0)


def test_held_out_questions_are_neither_asked_nor_shown(files, monkeypatch, capsys):
    lines = (files / "questions.jsonl").read_text().splitlines(keepends=True)
    (files / "held.jsonl").write_text(lines[0].replace("? ", " ?  ") + lines[4])
    arguments = sampling(files, "http://127.0.0.1:1/v1", "--dry-run", "--held-out")
    del arguments[arguments.index("--exemplars") :][:2]
    assert call(monkeypatch, *arguments, files / "held.jsonl") == 0
    printed = capsys.readouterr()
    assert "held-out questions left out: 2" in printed.err
    assert "4 questions, of which the journal answers 0; at most 4 requests" in printed.out
    for i in (0, 4):
        assert STORIES[i].question not in printed.out
    everything = files / "questions.jsonl"
    assert call(monkeypatch, *arguments, everything) == 2
    assert "questions that are all held out" in capsys.readouterr().err


def test_questions_that_tasks_hold_out_are_not_asked(files, monkeypatch, capsys):
    monkeypatch.setitem(questions.VALIDATION, "stories", (6, 2))
    arguments = sampling(files, "http://127.0.0.1:1/v1", "--dry-run")
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr()
    assert "the last 2 of stories's training questions" in printed.err
    assert "33.3% of the bill: not asked" in printed.err
    assert "4 questions, of which" in printed.out
    assert call(monkeypatch, *arguments, "--split", "all") == 0
    assert "6 questions, of which" in capsys.readouterr().out


def test_what_is_left_out_or_apart_is_said(files, monkeypatch, capsys):
    refusal = {"error": {"message": "filtered", "type": "t", "code": "content_filter"}}

    def script(body):
        if STORIES[2].question in json.dumps(body):
            return 400, refusal
        said = {"content": "It is 5.", "reasoning": "2 + 3 = 5."}
        cut = {"content": None, "reasoning": "2 + 3"}
        ends = ((said, "stop"), (said, "stop"), (cut, "length"))
        return 200, {"choices": [{"message": m, "finish_reason": end} for m, end in ends]}

    with StoryServer(script=script) as server:
        arguments = sampling(files, server.url, "--chat", "--top-logprobs", 0)
        assert call(monkeypatch, *arguments) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0].startswith("10 samples in")
        assert re.search(r"refused, left out: content_filter 3, of 1 .*\(s2: HTTP 400", printed[1])
        assert re.search(r"WARNING: 10 samples have a thought.*prepare --chain", printed[2])
        assert printed[3].startswith("chains without a text, left out: 5")
    sample = next(read_samples(files / "samples.jsonl"))
    assert (sample.text, sample.thought) == ("It is 5.", "2 + 3 = 5.")


def test_given_chains_get_the_teachers_own_log_probabilities(files, monkeypatch, capsys):
    with StoryServer() as server:
        assert call(monkeypatch, *sampling(files, server.url)) == 0
        arguments = ("rescore", files / "samples.jsonl", "--out", files / "scored.jsonl")
        prompt = ("--prompt", "Q: {question}\\nA:")
        teacher = ("--model", "story", "--base-url", server.url, "--no-probe")
        assert call(monkeypatch, "teach", *arguments, *prompt, *teacher) == 0
        old = files / "scored.jsonl.journal"
        (files / "teacher.journal").rename(old)
        assert call(monkeypatch, "teach", *arguments, *prompt, *teacher) == 2
        assert f"add --journal {old}, and nothing is asked twice" in capsys.readouterr().err
        sent = len(server.bodies)
        assert call(monkeypatch, "teach", *arguments, *prompt, *teacher, "--journal", old) == 0
        assert len(server.bodies) == sent
    before = list(read_samples(files / "samples.jsonl"))
    for old, new in zip(before, read_samples(files / "scored.jsonl"), strict=True):
        assert new.logprobs.tokens == old.logprobs.tokens
        assert new.logprobs.token_logprobs == pytest.approx(old.logprobs.token_logprobs)


def test_the_triage_example_can_be_asked(files, monkeypatch, capsys):
    arguments = ("teach", "scenario", TRIAGE, "--out", files / "triage.jsonl", "--model", "m")
    assert call(monkeypatch, *arguments, "--dry-run", "--chat") == 0
    printed = capsys.readouterr().out
    assert "[system] You sort the tickets" in printed
    assert "12 questions, of which the journal answers 0; at most 12 requests" in printed


MISTAKES = [
    (["--checkpoint", "run"], "2 teachers; expected one of --model, --checkpoint"),
    (["--price-in", "1"], "one price; expected --price-in and --price-out"),
    (["--temperature", "-1"], "temperature -1.0; expected at least 0"),
    (["--base-url", "localhost:1"], "the base URL 'localhost:1'; expected http"),
    (["--base-url", "https://api.openai.com/v1"], "no key for api.openai.com; .*OPENAI_API_KEY"),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(files, monkeypatch, capsys, more, message):
    assert call(monkeypatch, *sampling(files, "http://127.0.0.1:1/v1", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("cot-flax: ")]) == 1
    assert re.search(message, error[-1])
    assert not (files / "samples.jsonl").exists()


def test_an_unknown_recipe_and_a_missing_file_are_named(files, monkeypatch, capsys):
    arguments = sampling(files, "http://127.0.0.1:1/v1")
    arguments[arguments.index("fu2023")] = "fu2032"
    assert call(monkeypatch, *arguments) == 2
    assert "fu2032" in capsys.readouterr().err
    (files / "questions.jsonl").unlink()
    assert call(monkeypatch, *sampling(files, "http://127.0.0.1:1/v1")) == 2
    assert "questions.jsonl" in capsys.readouterr().err


def test_given_rationales_can_be_imported_to_be_scored(files, monkeypatch, capsys):
    (files / "sums.tsv").write_text("One and one?\t2\t1 + 1 = 2.\\nSo 2.\n")
    out = files / "human.jsonl"
    assert call(monkeypatch, "teach", "import", files / "sums.tsv", "--out", out) == 0
    (sample,) = read_samples(out)
    assert (sample.question, sample.text) == ("One and one?", "1 + 1 = 2.\nSo 2.")
    assert capsys.readouterr().out == f"1 samples in {out}\n"
    scored = ("--out", files / "scored.jsonl", "--model", "m", "--dry-run")
    assert call(monkeypatch, "teach", "rescore", out, *scored) == 0
    printed = capsys.readouterr().out
    assert "Q: One and one?\nLet's think step by step\n1 + 1 = 2.\nSo 2.\n" in printed
    assert "1 texts to score" in printed
    (files / "sums.tsv").write_text("no tabs\n")
    assert call(monkeypatch, "teach", "import", files / "sums.tsv", "--out", out) == 2
    assert "sums.tsv, line 1: 1 columns" in capsys.readouterr().err
    assert len(list(read_samples(out))) == 1  # the old file is still there
    row = {"question": "2 + 2?", "text": "It is 4.", "answer": "4"}
    lines = [json.dumps(row), json.dumps(row | {"thinking": "Hm."})]
    (files / "own.jsonl").write_text("\n".join(lines))
    assert call(monkeypatch, "teach", "import", files / "own.jsonl", "--out", out) == 0
    line = f"2 samples in {out}, 1 of them with a thought apart (prepare --chain)\n"
    assert capsys.readouterr().out == line
