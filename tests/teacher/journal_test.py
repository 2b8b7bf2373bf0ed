import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.journal import Journal, journal_path, read_answers
from cot_flax.teacher.requests import Completion, Reply

LOGPROBS = Logprobs(("It", " é"), (-0.5, 0.0), ({"It": -0.5}, {}))
REPLY = Reply(
    (
        Completion("It é", LOGPROBS, "stop"),
        Completion("", None, "length", "nan", "It é", LOGPROBS),
    ),
    12,
    34,
)
OTHER = Reply((Completion("half \ud83d\u2028\n", None, "stop"),), 1, 2)


@pytest.fixture
def path(tmp_path):
    return journal_path(tmp_path / "new" / "samples.jsonl.gz")


@pytest.fixture
def written(path):
    """A journal of two answers."""
    with Journal(path) as journal:
        journal.add("a", REPLY)
        journal.add("b", OTHER)
    return path


def test_the_samples_files_of_a_folder_share_one(tmp_path, monkeypatch):
    assert journal_path("runs/samples.jsonl").as_posix() == "runs/teacher.journal"
    assert journal_path(tmp_path / "s.jsonl.gz") == journal_path(tmp_path / "t.jsonl")
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path))
    assert journal_path("gs://b/run/s.jsonl") == tmp_path / "buckets" / "b/run/teacher.journal"


def test_the_format(written):
    first, second = [json.loads(line) for line in written.read_bytes().splitlines()]
    logprobs = {
        "tokens": ["It", " é"],
        "token_logprobs": [-0.5, 0.0],
        "top_logprobs": [{"It": -0.5}, {}],
    }
    first_one = {"text": "It é", "logprobs": logprobs, "finish_reason": "stop"}
    second_one = {"text": "", "logprobs": None, "finish_reason": "length"}
    completions = [
        first_one | {"logprob_problem": "", "thought": "", "thought_logprobs": None},
        second_one | {"logprob_problem": "nan", "thought": "It é", "thought_logprobs": logprobs},
    ]
    reply = {"completions": completions, "prompt_tokens": 12, "completion_tokens": 34}
    assert first == {"key": "a", "reply": reply}
    assert second["key"] == "b"


def test_answers_of_older_versions_are_read(path):
    old = {"text": "It", "logprobs": None, "finish_reason": "stop", "logprob_problem": ""}
    reply = {"completions": [old], "prompt_tokens": 1, "completion_tokens": 2}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"key": "a", "reply": reply}) + "\n")
    with read_answers(path) as answers:
        assert answers["a"] == (Reply((Completion("It", None, "stop"),), 1, 2),)


def test_answers_come_back_in_the_same_run_and_in_the_next(path):
    with Journal(path) as journal:
        assert len(journal) == 0 and "a" not in journal
        journal.add("a", REPLY)
        assert journal["a"] == (REPLY,)  # between two writes
        journal.add("b", OTHER)
        assert journal["a"] == (REPLY,) and journal["b"] == (OTHER,)
    with Journal(path) as journal:
        assert len(journal) == 2 and journal["b"] == (OTHER,)
        journal.add("a", OTHER)
        assert journal["a"] == (REPLY, OTHER)
    with read_answers(path) as answers:
        assert answers["a"] == (REPLY, OTHER) and answers["b"] == (OTHER,)
        assert answers["d"] == () and "d" not in answers and len(answers) == 3


TEXT = st.text(st.characters(), max_size=6)
REPLIES = st.builds(
    Reply, st.tuples(st.builds(Completion, TEXT, st.none(), TEXT)), st.integers(0), st.integers(0)
)


@given(st.dictionaries(TEXT, REPLIES, max_size=4))
def test_round_trip(tmp_path_factory, replies):
    path = tmp_path_factory.mktemp("journal") / "journal"
    with Journal(path) as journal:
        for key, reply in replies.items():
            journal.add(key, reply)
    with read_answers(path) as answers:
        assert {key: answers[key] for key in replies} == {k: (r,) for k, r in replies.items()}


def test_a_line_torn_anywhere_is_cut_off(written):
    whole = written.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        written.write_bytes(whole[:end])
        with read_answers(written) as answers:
            assert "a" in answers and "b" not in answers
        with Journal(written) as journal:
            assert "a" in journal and "b" not in journal
            journal.add("b", OTHER)
        assert written.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"[1]\n", b'{"key": "c"\n', b'{"key": 1, "reply": {}}\n', bytes(9) + b"\n",
     b'{"key": "c", "reply": {"completions": [], "prompt_tokens": 0}}\n'],
)  # fmt: skip
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_broken_line_is_named(written, line, number):
    lines = written.read_bytes().splitlines(keepends=True)
    before = b"".join([*lines[: number - 1], line, *lines[number - 1 :]])
    written.write_bytes(before)
    for opened in (Journal, read_answers):
        with pytest.raises(UserError, match=f"journal, line {number}: a broken line"):
            opened(written)
    assert written.read_bytes() == before


def test_two_runs_do_not_share_a_journal(written):
    with Journal(written), pytest.raises(UserError, match="journal: in use by another run"):
        Journal(written)
    with Journal(written) as journal:
        assert len(journal) == 2


def test_reading_needs_no_lock_and_makes_no_file(written, tmp_path):
    with Journal(written), read_answers(written) as answers:
        assert len(answers) == 2
    with read_answers(tmp_path / "none") as answers:
        assert len(answers) == 0
    assert not (tmp_path / "none").exists()


FILL_UP = """
import resource, sys
from cot_flax.errors import UserError
from cot_flax.teacher.journal import Journal
from cot_flax.teacher.requests import Completion, Reply
resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000))
with Journal(sys.argv[1]) as journal:
    for key, length in [("a", 10_000), ("b", 10_000), ("c", 10_000), ("d", 10)]:
        try:
            journal.add(key, Reply((Completion("x" * length, None, "stop"),), 1, 1))
        except UserError as error:
            print(key, error)
"""


def test_a_full_disk_is_named_and_leaves_the_journal_whole(path):
    command = [sys.executable, "-c", FILL_UP, os.fspath(path)]
    output = subprocess.run(command, timeout=60, capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"c got {path}: File too large") and output.count("\n") == 1
    with read_answers(path) as answers:
        assert [key for key in "abcd" if key in answers] == ["a", "b", "d"]


WRITE_AND_DIE = """
import os, signal, sys
from cot_flax.teacher.journal import Journal
from cot_flax.teacher.requests import Completion, Reply
journal = Journal(sys.argv[1])
for i in range(5):
    journal.add(str(i), Reply((Completion("x" * 10_000, None, "stop"),), 1, 1))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_added_survives_kill_9(path):
    run = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, os.fspath(path)], timeout=60)
    assert run.returncode == -signal.SIGKILL
    with Journal(path) as journal:  # the lock died with its process
        assert len(journal) == 5
