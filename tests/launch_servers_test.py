"""launch/real_servers.py: what its table says of a run."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

from cot_flax.chains.samples import write_samples
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.teacher.questions import read_questions

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SERVERS = SimpleNamespace(**runpy.run_path(str(LAUNCH / "real_servers.py")))


def test_a_run_says_its_requests_and_tokens_and_a_failure_none():
    planned = "8 questions, 8 first requests, ...: 2,457 prompt tokens, 3,072 written (estimated)\n"
    done = (
        "32 samples in a.jsonl: 1,040 requests, 0 answers from the journal; "
        "3,288 prompt tokens, 480 written\n"
    )
    assert SERVERS.said(planned + done) == ["1040", "3288", "480"]
    assert SERVERS.said(planned) == ["-", "-", "-"]


def test_chains_right_ones_and_those_with_logprobs_are_counted(tmp_path):
    good, wrong = make_samples(make_stories(1, split="train"), samples=2)
    wrong = dataclasses.replace(wrong, text="The answer is 999", logprobs=None)
    write_samples(tmp_path / "a.jsonl", [good, wrong])
    assert SERVERS.counts(tmp_path / "a.jsonl") == ["2", "1", "1"]
    assert SERVERS.counts(tmp_path / "none.jsonl") == ["-", "-", "-"]


def test_the_questions_serve_recipes_that_show_rationales(tmp_path):
    SERVERS._write_questions(4, tmp_path / "q.jsonl")
    read = list(read_questions(tmp_path / "q.jsonl", dataset="stories", split="train"))
    assert len(read) == 4 and all(question.rationale and question.answer for question in read)
