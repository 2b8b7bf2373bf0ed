"""Tests of `cot-flax answer` and of what `serve` says before it serves."""

import io
import json
import sys

import pytest
from support.serving import _quick_compilation, write_run  # noqa: F401 (fixtures)

from cot_flax import load
from cot_flax.cli import main

QUESTIONS = ["How many coins does Anna have?", "How many pens does Ben have?"]


@pytest.fixture(scope="module")
def run(write_run):  # noqa: F811
    return write_run(["stories_zero_shot_cot", "stories_zero_shot_answer"])


@pytest.fixture(scope="module")
def expected(run):
    return load(run).answer(QUESTIONS)


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cot-flax", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_a_question_has_its_chain_and_its_answer(run, expected, monkeypatch, capsys):
    assert call(monkeypatch, "answer", "--checkpoint", run, QUESTIONS[0]) == 0
    chain, _, said = capsys.readouterr().out.rstrip().rpartition("\n")
    assert chain == expected[0].text
    assert said == f"Answer: {expected[0].answer or 'none was found'}"


@pytest.mark.parametrize("place", ["file", "stdin"])
def test_questions_of_a_file_in_their_order(place, run, expected, monkeypatch, capsys, tmp_path):
    text = f"{QUESTIONS[0]}\n\n{json.dumps({'id': 1, 'question': QUESTIONS[1]})}\n"
    (tmp_path / "q.txt").write_text(text)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    words = ["--file", tmp_path / "q.txt"] if place == "file" else ["-"]
    assert call(monkeypatch, "answer", "--checkpoint", run, "--json", *words) == 0
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["question"] for row in rows] == QUESTIONS
    assert [row["text"] for row in rows] == [one.text for one in expected]
    assert rows[0].keys() == {
        *("question", "prompt", "text", "answer", "votes", "tied", "texts", "unread")
    }


def test_samples_vote_and_say_so(run, monkeypatch, capsys):
    words = ["answer", "--checkpoint", run, "--samples", 3, "--max-tokens", 4, *QUESTIONS]
    assert call(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"> {QUESTIONS[0]}\n") and f"> {QUESTIONS[1]}\n" in out
    assert out.count("Answer: ") == 2 and out.count(" (") >= 2


ASK = ["answer", "--checkpoint", "{run}"]
SERVE = ["serve", "--checkpoint", "{run}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["answer", "q?"], "got no --checkpoint; expected a run or another checkpoint"),
        (ASK, "got no question; expected one at least"),
        (["answer", "--checkpoint", "nowhere/x/y", "q?"], "got no folder nowhere/x/y"),
        ([*ASK, "--file", "none.txt"], "got none.txt (No such file"),
        ([*ASK, "--file", "{bad}"], 'bad.jsonl, line 2: {"q": 1}; expected a JSON object'),
        ([*ASK, "q?", "--format", "x"], "got format 'x'; expected one"),
        ([*ASK, "q?", "--samples", "two"], "got --samples 'two'"),
        ([*ASK, "q?", "--template", "x"], "got template 'x'"),
        (["serve"], "got no --checkpoint"),
        ([*SERVE, "--format", "few_shot_cot"], "few_shot_cot and no exemplars"),
        ([*SERVE, "--host", "192.0.2.1"], "got 192.0.2.1:8000 ("),
    ],
)
def test_what_is_wrong_is_one_line(words, message, run, monkeypatch, capsys, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"q": 1}\n')
    words = [word.format(run=run, bad=tmp_path / "bad.jsonl") for word in words]
    assert call(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
