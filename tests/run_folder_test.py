"""Tests of reading back what training and evaluation wrote."""

import json
from pathlib import Path

import pytest

from cot_flax import run_folder
from cot_flax.errors import UserError

RESULTS = '{"cards": {"a": {}}, "tasks": {"a": {}}}'


@pytest.mark.parametrize("place", [".", "test", "bbh"])
def test_results_directly_or_in_a_folder(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "results.json").write_text(RESULTS)
    rows = [{"task": "a", "id": "1"}, {"task": "a", "id": "2"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / place / "predictions.jsonl").write_text(lines)
    (found,) = run_folder.evaluations(tmp_path)
    assert found == tmp_path / place
    assert run_folder.read_results(found) == json.loads(RESULTS)
    assert run_folder.read_predictions(found) == rows
    (run,) = run_folder.read_runs({"run": tmp_path})
    assert (run.results, run.predictions) == (json.loads(RESULTS), rows)


def write_results(folder, checkpoint, **tasks):
    folder.mkdir(parents=True)
    results = {
        "checkpoint": checkpoint,
        "split": folder.name,
        "cards": {task: {} for task in tasks},
    }
    results["tasks"] = {task: {"accuracy": accuracy} for task, accuracy in tasks.items()}
    (folder / "results.json").write_text(json.dumps(results | {"unfinished": ["late"]}))
    rows = [{"task": task, "from": folder.name} for task in tasks]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_evaluations_of_one_checkpoint_are_one_run(tmp_path):
    last = "run/checkpoints/600"
    write_results(tmp_path / "test", last, gsm8k=0.5)
    write_results(tmp_path / "bbh", last, sorting=0.25, gsm8k=0.75)
    write_results(tmp_path / "early", "run/checkpoints/300", svamp=0.1)
    (run,) = run_folder.read_runs({"run": tmp_path})
    assert run.tasks == {"gsm8k": {"accuracy": 0.5}, "sorting": {"accuracy": 0.25}}
    assert run.predictions == [
        {"task": "gsm8k", "from": "test"},
        {"task": "sorting", "from": "bbh"},
    ]
    assert list(run.cards) == ["gsm8k", "sorting"]
    assert [results["split"] for results in run.further] == ["bbh"]
    assert sorted(run.missing) == [
        "1 tasks in bbh that it has before, which are not shown",
        "an evaluation that did not end, without late",
        "an evaluation that did not end, without late",
        "no metrics.jsonl, so it has no learning curves",
        "results of another checkpoint in early, which are not shown",
    ]


def test_what_several_runs_share_is_said_once():
    def run(label, *missing):
        return run_folder.Run(label, Path(), {}, [], [], missing)

    runs = [run("a", "gap", "leak"), run("b", "leak", "leak"), run("c", "other leak")]
    assert run_folder.shared_notes(runs) == [
        ("a", "has", "gap"),
        ("a, b", "have", "leak"),
        ("c", "has", "other leak"),
    ]


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("/runs/a/checkpoints/600", 600),
        ("gs://b/a/checkpoints/7", 7),
        ("/models/t5/600", None),
        ("google/flan-t5-base", None),
        ("", None),
    ],
)
def test_the_step_of_a_checkpoint(place, step):
    assert run_folder.step_of(place) == step


def test_missing_parts_are_said(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.json").write_text(RESULTS)
    (tmp_path / "bare").mkdir()
    row = {"step": 7, "kind": "train"}
    (tmp_path / "bare" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    full, bare = run_folder.read_runs({"f": tmp_path / "full", "b": tmp_path / "bare"})
    assert [sentence.split(",")[0] for sentence in full.missing] == [
        "no predictions.jsonl",
        "no metrics.jsonl",
    ]
    assert [sentence.split(",")[0] for sentence in bare.missing] == ["no results.json"]
    assert (full.last_step, bare.last_step, bare.tasks) == (None, 7, {})


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no results\.json in .*expected.*run cot-flax evaluate"):
        run_folder.read_runs({"a": tmp_path})
    with pytest.raises(UserError, match="no folders"):
        run_folder.read_runs({})
    with pytest.raises(UserError, match=r"no folder .*typo"):
        run_folder.read_runs({"a": tmp_path / "typo"})
    (tmp_path / "results.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match="without tasks"):
        run_folder.read_runs({"a": tmp_path})
    for cards in ("{}", '{"b": {}}'):
        (tmp_path / "results.json").write_text(f'{{"cards": {cards}, "tasks": {{"a": {{}}}}}}')
        with pytest.raises(UserError, match=r"got results without cards at .*results\.json; exp"):
            run_folder.read_runs({"a": tmp_path})
    (tmp_path / "results.json").write_text(RESULTS)
    (tmp_path / "predictions.jsonl").write_text('{"id": 1}\n{"id"')
    with pytest.raises(UserError, match=r"predictions\.jsonl, line 2"):
        run_folder.read_runs({"a": tmp_path})
    (tmp_path / "predictions.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n{"st')
    with pytest.raises(UserError, match=r"malformed line in .*metrics\.jsonl"):
        run_folder.read_runs({"a": tmp_path})


def test_the_base_is_the_run_that_is_named(tmp_path):
    for name in ("base", "kl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(RESULTS)
    runs = {name: tmp_path / name for name in ("base", "kl")}
    assert run_folder.base_of(run_folder.read_runs(runs)) is None
    assert run_folder.base_of(run_folder.read_runs(runs, base="kl")) == 1


def test_facts_are_read_back(tmp_path):
    assert run_folder.read_facts(tmp_path) == {}
    facts = {"started_from": "", "training": {"steps": 3, "learning_rate": 1e-3}}
    run_folder.write_facts(tmp_path / "new", facts)
    assert run_folder.read_facts(tmp_path / "new") == facts
    for text in ("[1]", '{"half'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json; expected one JSON object"):
            run_folder.read_facts(tmp_path)


def test_a_configuration_is_kept_beside_the_first_one(tmp_path):
    for text, step in (("A = 1\n", 0), ("A = 1\n", 5), ("A = 2\n", 7)):
        run_folder.write_config(tmp_path / "run", text, step)
    kept = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert kept == {"config.gin": "A = 1\n", "config-7.gin": "A = 2\n"}
    run_folder.write_config(tmp_path / "run", "A = 3\n", 0)
    assert (tmp_path / "run" / "config.gin").read_text() == "A = 3\n"


def test_only_what_a_run_leaves_is_deleted(tmp_path):
    leaves = ["checkpoints/3/a", "tensorboard/b", "test/results.json", "predictions.jsonl"]
    leaves += ["bbh/results.json", "bbh/predictions.jsonl"]
    leaves += ["config.gin", "config-7.gin", "run.json", "metrics.jsonl"]
    others = ["notes.txt", "test/notes.txt", "my_config.gin", "run/run.json", "run/results.json"]
    for name in [*leaves, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    run_folder.clear(tmp_path)
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == set(others)
    run_folder.clear(tmp_path / "nowhere")
