"""Scoring again: what is written, what is refused, and what a process needs to know."""

import json
import subprocess
import sys

import pytest
from support.reports import story_rows, write_run

from cot_flax import run_folder
from cot_flax.cli import app
from cot_flax.errors import UserError
from cot_flax.evaluation.rescoring import rescore
from cot_flax.evaluation.summary import summarize
from cot_flax.text.answers import label_kind, marked_kind


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", story_rows("zero_shot_cot", 0.5, 0), [])
    return tmp_path / "run"


def rows_at(run):
    return run_folder.read_predictions(run / "test")


def change(run, **fields):
    """Writes other fields into all predictions, and the summary that belongs to them."""
    rows = [row | fields for row in rows_at(run)]
    lines = (json.dumps(row) + "\n" for row in rows)
    (run / "test" / "predictions.jsonl").write_text("".join(lines))
    results = run_folder.read_results(run / "test")
    results["tasks"] = dict.fromkeys(results["tasks"], summarize(rows))
    (run / "test" / "results.json").write_text(json.dumps(results))


def test_scores_are_those_of_the_texts(run):
    before = rows_at(run)
    change(run, extracted="0", right=False)
    found = rescore(run / "test")
    assert rows_at(run) == before
    assert found == run_folder.read_results(run / "test")
    (summary,) = found["tasks"].values()
    assert summary["accuracy"] == sum(row["right"] for row in before) / len(before)
    assert sum(summary["error_classes"].values()) == len(before)


def test_another_mode_is_kept_in_the_results(run):
    change(run, text="2 + 3 = 5")
    assert rescore(run, "strict")["decoding"]["mode"] == "strict"
    assert all(row["extracted"] is None for row in rows_at(run))
    assert rescore(run)["decoding"]["mode"] == "strict"
    rescore(run, "flexible")
    assert {row["extracted"] for row in rows_at(run)} == {"5"}


def test_another_process_knows_the_kinds(run):
    """Of labels, of markers, and of a module of somebody's own."""
    labels = marked_kind(label_kind(["page", "queue"]), ["Verdict"], "END")
    text = "It is loud. Verdict: queue END or page"
    change(run, gold="queue", answer_kind=labels, text=text, extracted=None, right=False)
    words = [sys.executable, "-m", "cot_flax.cli", "evaluate", "--rescore", str(run / "test")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(row["right"] and row["extracted"] == "queue" for row in rows_at(run))


def test_a_kind_whose_module_is_gone_is_named(run):
    results = run_folder.read_results(run / "test")
    for summary in results["tasks"].values():
        summary["answer_kinds"] = [{"kind": "times", "module": "nobodys.times"}]
    (run / "test" / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"answer kind .times. of nobodys\.times"):
        rescore(run)


def test_what_cannot_be_scored_again_is_named(run, tmp_path):
    with pytest.raises(UserError, match="mode 'loose'"):
        rescore(run, "loose")
    with pytest.raises(UserError, match="these: none"):
        rescore(tmp_path)
    write_run(run, story_rows("few_shot_cot", 0.5, 0), [], subfolder="other")
    with pytest.raises(UserError, match="these: test, other"):
        rescore(run)
    (run / "test" / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match="no predictions"):
        rescore(run / "test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rescore", "x", "--gin.SPLIT='test'"], "--rescore and --gin.SPLIT"),
        (["--answer-mode", "strict"], "--answer-mode strict"),
    ],
)
def test_options_that_do_not_go_together_are_named(words, message):
    with pytest.raises(UserError, match=message):
        app(["evaluate", *words], standalone_mode=False)
