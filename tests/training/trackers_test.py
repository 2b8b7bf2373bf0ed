"""Trackers: what `train` tells one, and the real Weights & Biases, offline."""

import json
import re
import sys

import gin
import pytest

from cot_flax import configuration, run_folder
from cot_flax.errors import UserError
from cot_flax.training.trackers import Wandb

from .loop_test import run  # noqa: F401 (a fixture)


class Recorder:
    """Keeps what it is told."""

    def __init__(self):
        self.started, self.rows, self.closed = [], [], 0

    def start(self, run_id, model_dir, facts):
        self.started.append((run_id, model_dir, facts["training"]["batch_size"]))

    def write(self, step, metrics):
        self.rows.append((step, metrics))

    def close(self):
        self.closed += 1


def test_it_gets_every_line_of_the_metrics(run, tmp_path):  # noqa: F811
    tracker = Recorder()
    evaluator = lambda student, params: {"accuracy": 0.5}  # noqa: E731
    run(tmp_path, total_steps=6, evaluators=[evaluator], tracker=tracker)
    lines = (tmp_path / run_folder.METRICS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row.pop("step"), row.pop("kind")) for row in rows] == [
        (5, "train"),
        (6, "train"),
        (6, "eval"),
    ]
    kinds = ("train", "train", "eval")
    expected = [
        {f"{kind}/{k}": v for k, v in row.items()} for kind, row in zip(kinds, rows, strict=True)
    ]
    assert [metrics for _, metrics in tracker.rows] == expected
    assert [step for step, _ in tracker.rows] == [5, 6, 6]
    assert tracker.closed == 1


def test_a_run_keeps_its_id_until_it_begins_anew(run, tmp_path):  # noqa: F811
    tracker = Recorder()
    for steps, changes in ((1, {}), (2, {}), (3, {"microbatches": 2}), (1, {"overwrite": True})):
        run(tmp_path, total_steps=steps, tracker=tracker, **changes)
    first, again, changed, anew = (run_id for run_id, *_ in tracker.started)
    assert first == again == changed != anew == run_folder.read_facts(tmp_path)["id"]
    assert [told[1:] for told in tracker.started] == [(str(tmp_path), 8)] * 4


def test_a_service_that_cannot_be_had_leaves_the_folder_as_it_was(run, tmp_path):  # noqa: F811
    class Absent(Recorder):
        def start(self, *told):
            raise UserError("no service", "one", "log in")

    with pytest.raises(UserError, match="got no service"):
        run(tmp_path / "new", total_steps=1, tracker=Absent())
    assert not (tmp_path / "new").exists()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield
    wandb.teardown()  # its service has read the environment


@pytest.mark.filterwarnings("default")  # its own
def test_weights_and_biases_offline(offline, run, tmp_path, capfd):  # noqa: F811
    model_dir = tmp_path / "runs" / "copying"
    run(model_dir, total_steps=5, tracker=Wandb(tags=("a",)))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(run_folder.read_facts(model_dir)["id"])
    (stored,) = folder.glob("*.wandb")
    for text in (b"cot-flax", b"copying", str(model_dir).encode()):
        assert text in stored.read_bytes()
    row = json.loads((model_dir / run_folder.METRICS).read_text())
    said = re.search(r"train/loss +([\d.]+)", capfd.readouterr().err)
    assert float(said[1]) == pytest.approx(row["loss"], rel=1e-4)


@pytest.mark.filterwarnings("default")
def test_without_a_login_it_is_one_line(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a login lies
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"no run of Weights & Biases \(.*; run `wandb login`"):
        Wandb().start("id", "runs/x", {})


def test_without_the_package_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"got no wandb; .*pip install wandb"):
        Wandb().start("id", "runs/x", {})


def test_a_macro_names_it():
    bindings = ["MODEL_DIR=x", "TRACKER=@trackers.Wandb()", "trackers.Wandb.project='p'"]
    configuration.parse(["experiments/world_base.gin"], bindings)
    assert configuration.macro("TRACKER").evaluate
    assert gin.query_parameter("trackers.Wandb.project") == "p"
    with pytest.raises(UserError, match=r"got TRACKER = 'wandb'; expected .*a reference"):
        configuration.parse(["experiments/world_base.gin"], ["MODEL_DIR=x", "TRACKER='wandb'"])
    gin.clear_config()
