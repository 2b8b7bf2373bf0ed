"""Tests of whole runs: learning, resuming bit for bit, and stopping for a stated reason."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.students import lora
from cot_flax.students.parameters import Tensor, nest, unstack_layers
from cot_flax.students.t5 import T5Student
from cot_flax.text.tokenizers import T5_SPECIAL_IDS, SpecialIds
from cot_flax.training import interruption, logs, loop, optimizers, resume
from cot_flax.training.checkpoints import Checkpointer
from cot_flax.training.sharding import MeshConfig
from cot_flax.weights.huggingface import write_folder
from cot_flax.weights.native import read_metadata
from cot_flax.weights.source import Source

pytestmark = pytest.mark.filterwarnings("error")

STEPS = 60
SPEED = {"tokens_per_second", "input_wait"}


@dataclasses.dataclass
class Copying:
    """The targets are the inputs: 8 rows of 3 tokens; a few things can go wrong."""

    batch_size: int = 8
    shards: int = 1
    vocabulary: str = "copying"
    vocabulary_files: dict = dataclasses.field(default_factory=lambda: {"spiece.model": b"copied"})
    special_ids: SpecialIds = T5_SPECIAL_IDS
    facts: dict = dataclasses.field(default_factory=dict)
    spoilt: int | None = None  # the batch (from 1) whose loss is infinite
    broken: int | None = None  # the batch that cannot be made
    skipped: list[int] = dataclasses.field(default_factory=list)

    def check(self, objective, vocab_size):
        if objective.uses_teacher:
            raise UserError("no teacher", "one", "find one")

    def batches(self, layout, skip, shards):
        self.skipped.append(skip)
        return (self.batch(number) for number in itertools.count(skip // self.batch_size + 1))

    def batch(self, number):
        if number == self.broken:
            raise OSError(f"batch {number} is broken")
        tokens = np.random.default_rng(number % 4).integers(2, 24, (self.batch_size, 3))
        targets = np.pad(tokens, ((0, 0), (0, 1)), constant_values=1).astype(np.int32)
        weights = np.ones(targets.shape, np.float32)
        return {
            "encoder_input_tokens": tokens.astype(np.int32),
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": weights * (np.inf if number == self.spoilt else 1),
        }

    def report(self):
        return "left out nothing"


class Constant(Copying):
    """The targets are 23 23 23 whatever the inputs are."""

    def batch(self, number):
        batch = super().batch(number)
        targets = np.where(batch["decoder_target_tokens"] > 1, 23, 1).astype(np.int32)
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        return batch | {"decoder_target_tokens": targets, "decoder_input_tokens": shifted}


class Interrupted(Exception):
    """Stands for whatever ends a run from outside."""


class Evaluator:
    """Notes when it was called; may interrupt the run."""

    def __init__(self, interrupt_at=None):
        self.calls, self._interrupt_at = [], interrupt_at

    def __call__(self, model, params):
        self.calls.append((model, float(params["decoder"]["decoder_norm"]["scale"][0])))
        if len(self.calls) == self._interrupt_at:
            raise Interrupted
        return {"accuracy": float(len(self.calls))}


@pytest.fixture(scope="module")
def run(config):
    """Starts or resumes a run that saves every 10 steps, logs every 5, evaluates every 30."""

    def start(model_dir, data=None, **changes):
        settings = {
            "model": dataclasses.replace(config, dropout_rate=0.05),
            "data": data or Copying(),
            "objective": Objective(),
            "optimizer": optimizers.adamw(optimizers.warmup_cosine(2e-2, 60, 5)),
            "mesh": MeshConfig(data=1),
            "total_steps": STEPS,
            "checkpoint_period": 10,
            "log_period": 5,
            "eval_period": 30,
        }
        return loop.train(model_dir=str(model_dir), **settings | changes)

    return start


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """An uninterrupted run: its folder, its last state, its evaluator, its data."""
    folder, evaluator, data = tmp_path_factory.mktemp("finished"), Evaluator(), Copying()
    return folder, run(folder, data, evaluators=[evaluator]), evaluator, data


def test_a_run_writes_what_it_is(run, config, tmp_path):
    known = {"data": {"mixture": "copying_task"}, "training": {"learning_rate": 0.02}}
    objective = Objective(label_smoothing=0.1)
    run(tmp_path, objective=objective, total_steps=1, seed=3, facts=known)
    student = T5Student(dataclasses.replace(config, dropout_rate=0.05))
    written = run_folder.read_facts(tmp_path)
    versions = written.pop("versions")
    assert re.fullmatch("[0-9a-f]{32}", written.pop("id"))
    assert versions.keys() == {"cot_flax", "jax", "python"} and versions["jax"] == jax.__version__
    assert written == {
        "student": {
            "family": "t5",
            "special_ids": {"pad": 0, "end": 1, "start": 0},
            "config": json.loads(json.dumps(dataclasses.asdict(student.config))),
            "parameters": sum(map(math.prod, student.parameter_shapes().values())),
            "vocabulary": "copying",
        },
        "started_from": "",
        "data": {"mixture": "copying_task", "shards": 1},
        "objective": dataclasses.asdict(objective),
        "training": {
            "learning_rate": 0.02,
            "steps": 1,
            "batch_size": 8,
            "microbatches": 1,
            "equal_microbatches": False,
            "mesh": {"data": 1, "model": 1, "fsdp": False},
            "seed": 3,
        },
    }


def rows_of(folder, kind="train"):
    """What metrics.jsonl says, without the speed."""
    rows = [row for row in run_folder.read_metrics(str(folder)) if row["kind"] == kind]
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows]


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_learns_to_copy(finished):
    losses = [row["loss"] for row in rows_of(finished[0])]
    # At first hardly better than a guess among 24.
    assert losses[0] > 0.7 * np.log(24)
    assert losses[-1] < 0.4 * losses[0]


def test_logs_a_row_every_period(finished):
    lines = (finished[0] / run_folder.METRICS).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(5, STEPS + 1, 5))
    names = {"loss", "cross_entropy", "token_accuracy", "learning_rate", "gradient_norm"}
    assert all(set(row) == names | SPEED | {"step", "kind"} for row in rows)
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert all(0 < row["input_wait"] < 1 for row in rows)
    # Means over steps 0 to 4 of a warm-up of 5 steps: 2/5 of the peak.
    assert rows[0]["learning_rate"] == pytest.approx(2e-2 * 2 / 5)


def test_the_step_is_compiled_once(run, tmp_path, caplog):
    """In a run with evaluations and checkpoints, which compile programs of their own."""
    with jax.log_compiles():
        run(tmp_path, evaluators=[Evaluator()], total_steps=25, eval_period=10)
    compiled = [r.message for r in caplog.records if "Compiling jit(train_step)" in r.message]
    assert len(compiled) == 1


class Growing(Copying):
    """The fifth batch has rows of another length."""

    def batch(self, number):
        batch = super().batch(number)
        return {k: np.tile(v, (1, 2)) for k, v in batch.items()} if number == 5 else batch


def test_a_batch_of_another_shape_is_an_error_not_a_compilation(run, tmp_path):
    with pytest.raises(TypeError, match="Argument types differ"):
        run(tmp_path, Growing(), total_steps=5)


def test_a_step_that_copies_from_the_host_is_an_error(run, tmp_path, monkeypatch):
    """The guard is on: batches that nobody put on the device are refused."""
    monkeypatch.setattr(loop, "prefetch", lambda batches, place: batches)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tmp_path, total_steps=2)


def test_waiting_for_data_is_told(monkeypatch):
    """Of four seconds a batch took three to come; then nothing is waited for."""
    clock = [0.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: clock[0])
    speed = logs.Speed()

    def batches():
        clock[0] += 3.0
        yield "batch"

    assert speed.wait_for(batches()) == "batch"
    clock[0] += 1.0
    assert speed.lap(40.0) == {"tokens_per_second": 10.0, "input_wait": 0.75}
    clock[0] += 2.0
    assert speed.lap(2.0) == {"tokens_per_second": 1.0, "input_wait": 0.0}


def test_evaluates_every_period_and_at_the_end(finished, config):
    folder, last, evaluator, _ = finished
    rows = [{"step": step, "kind": "eval", "accuracy": n} for n, step in ((1, 30), (2, 60))]
    assert rows_of(folder, "eval") == rows
    model, scale = evaluator.calls[-1]
    assert dataclasses.replace(model.config, dropout_rate=0.0) == config
    assert scale == last.params["decoder"]["decoder_norm"]["scale"][0]


def test_saves_every_period_and_at_the_end(finished):
    folder, last, _, data = finished
    assert steps_in(folder) == [40, 50, 60]  # keep_checkpoints is 3
    assert read_metadata(f"{folder}/checkpoints/{STEPS}").rows == 8 * int(last.step) == 8 * STEPS
    assert data.skipped == [0]


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_resumes_bit_for_bit_after_an_interruption(finished, run, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, evaluators=[Evaluator(interrupt_at=1)])
    # Interrupted in the evaluation at step 30, before that step was saved.
    assert steps_in(tmp_path) == [10, 20]
    data = Copying()
    resumed = run(tmp_path, data, evaluators=[Evaluator()])
    assert data.skipped == [20 * 8]
    assert_same(resumed, finished[1])
    assert rows_of(tmp_path) == rows_of(finished[0])


def test_resumes_a_run_that_was_to_be_shorter(finished, run, tmp_path):
    run(tmp_path, total_steps=15)
    assert steps_in(tmp_path) == [10, 15]
    assert_same(run(tmp_path), finished[1])


def test_a_finished_run_is_left_as_it_is(finished, run):
    folder, last, *_ = finished
    before = (folder / run_folder.METRICS).read_text()
    data = Copying()
    assert_same(run(folder, data), last)
    assert (folder / run_folder.METRICS).read_text() == before
    assert steps_in(folder) == [40, 50, 60]


def test_a_fresh_run_takes_the_parameters_alone_from_a_checkpoint(finished, run, tmp_path):
    folder, last, *_ = finished
    still = optimizers.adamw(optimizers.constant(0.0))
    state = run(tmp_path, initial_checkpoint_path=str(folder), total_steps=1, optimizer=still)
    assert_same(state.params, last.params)
    assert int(state.step) == 1


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KNOWN = {"mixture": "copying", "lengths": {"inputs": 4, "targets": 4}, "rates": {"a": 0.5}}


@pytest.fixture(scope="module")
def begun(run, tmp_path_factory):
    """A run of two steps on data of which something is known."""
    folder = tmp_path_factory.mktemp("begun")
    facts = {"training": {"optimizer": "adamw", "settings": {"b1": 0.9}}}
    run(folder, Copying(facts=KNOWN), total_steps=2, facts=facts, config="A = 1\n")
    return folder


def test_other_chains_are_named_without_their_digits():
    (change,) = resume.changes({"data": {"fingerprint": "ab"}}, {"data": {"fingerprint": "cd"}})
    assert str(change) == "other chains in TEACHER_STORE"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "begun with RANDOM_SEED 0, not 5; expected the same run again"),
        ({"objective": Objective(z_loss=0.1)}, "Z_LOSS 0.0, not 0.1"),
        ({"initial_checkpoint_path": "base"}, "INITIAL_CHECKPOINT_PATH '', not 'base'"),
        ({"data": Copying(facts=KNOWN | {"mixture": "b"})}, "TASK_NAME 'copying', not 'b'"),
        (
            {"data": Copying(facts=KNOWN | {"lengths": {"inputs": 4, "targets": 5}})},
            "TASK_FEATURE_LENGTHS inputs 4, targets 4, not inputs 4, targets 5",
        ),
        ({"data": Copying(facts=KNOWN | {"rates": {"a": 0.25}})}, "mixing rates a 0.5, not a 0.25"),
        ({"facts": {"training": {"optimizer": "adafactor"}}}, "OPTIMIZER 'adamw', not 'adafactor'"),
        (
            {"seed": 5, "objective": Objective(z_loss=0.1)},
            r"0.0, not 0.1; RANDOM_SEED 0, not 5; .* another MODEL_DIR; --accept-ch.* --overwrite",
        ),
    ],
)
def test_a_run_is_not_gone_on_with_as_another_one(begun, run, changes, message):
    before = files_of(begun)
    with pytest.raises(UserError, match=message):
        run(begun, **{"data": Copying(facts=KNOWN), "total_steps": 4} | changes)
    assert files_of(begun) == before


@pytest.fixture
def copied(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "copied")


def test_what_may_change_is_said_and_kept(copied, run, capsys):
    """The learning rate, and a batch of twice the size, before which 2 x 8 rows were read."""
    data = Copying(batch_size=16, facts=KNOWN)
    facts = {"training": {"learning_rate": 1.0, "optimizer": "adamw", "settings": {"b1": 0.8}}}
    run(copied, data, total_steps=5, facts=facts, config="A = 2\n")
    assert data.skipped == [16]
    assert read_metadata(f"{copied}/checkpoints/5").rows == 16 + 3 * 16
    printed = capsys.readouterr().err
    assert "goes on after step 2, 16 rows into the data" in printed
    (changed,) = re.findall("changed since it was begun: (.*)", printed)
    shown = {"TRAIN_STEPS 2, not 5", "BATCH_SIZE 8, not 16", "b1 0.9, not 0.8"}
    assert set(changed.split("; ")) == shown
    written = run_folder.read_facts(copied)
    assert written["training"]["batch_size"] == 16 and written["training"]["steps"] == 5
    (note,) = written["resumed"]
    assert note["after"] == 2 and note["changes"]["training.batch_size"] == [8, 16]
    assert (copied / "config.gin").read_text() == "A = 1\n"
    assert (copied / "config-2.gin").read_text() == "A = 2\n"
    again = Copying(batch_size=16, facts=KNOWN)
    run(copied, again, total_steps=6, facts=facts, config="A = 1\n")
    assert again.skipped == [16 + 3 * 16]
    assert [note["after"] for note in run_folder.read_facts(copied)["resumed"]] == [2, 5]
    assert not (copied / "config-5.gin").exists()


def test_an_accepted_change_of_the_data_reads_them_from_the_beginning(copied, run):
    data = Copying(facts=KNOWN | {"mixture": "b"})
    run(copied, data, total_steps=4, accept_changes=True)
    assert data.skipped == [0]
    assert read_metadata(f"{copied}/checkpoints/4").rows == 2 * 8
    assert run_folder.read_facts(copied)["data"]["mixture"] == "b"


def test_overwriting_deletes_the_run_and_nothing_else(copied, run):
    (copied / "test").mkdir()
    for name in ("test/results.json", "notes.txt"):
        (copied / name).write_text("{}")
    run(copied, seed=5, total_steps=1, overwrite=True, config="A = 3\n")
    assert steps_in(copied) == [1]
    assert [row["step"] for row in rows_of(copied)] == [1]
    assert run_folder.read_facts(copied)["training"]["seed"] == 5
    assert (copied / "config.gin").read_text() == "A = 3\n"
    assert (copied / "notes.txt").exists() and not (copied / "test" / "results.json").exists()


def test_results_without_a_checkpoint_are_not_lost(run, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="results of an evaluation and no checkpoint"):
        run(tmp_path, total_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(run, tmp_path):
    with pytest.raises(UserError, match="loss inf at step 7"):
        run(tmp_path, Copying(spoilt=7))
    run(tmp_path, total_steps=5, seed=1)
    assert [row["step"] for row in rows_of(tmp_path)] == [5]
    assert run_folder.read_facts(tmp_path)["training"]["seed"] == 1


def test_steps_that_are_done_are_said(begun, run, capsys):
    before = files_of(begun)
    run(begun, Copying(facts=KNOWN), total_steps=2, facts={"training": {"settings": {"b1": 0.9}}})
    assert capsys.readouterr().err == (
        f"nothing to do: the run at {begun} has done 2 steps, TRAIN_STEPS is 2\n"
    )
    assert files_of(begun) == before


def test_another_optimizers_state_is_one_line(begun, run):
    """Also where nobody said by what name it goes."""
    factored = optimizers.adafactor(optimizers.constant(1e-2))
    with pytest.raises(UserError, match=r"an optimizer's state of \d+ arrays .* another MODEL_DIR"):
        run(begun, Copying(facts=KNOWN), total_steps=4, optimizer=factored)


def test_a_checkpoint_that_counts_in_batches_goes_on_with_the_next_row(copied, run):
    """As those from before 0.1.0 do, which lack the field `rows`."""
    path = copied / "checkpoints" / "2" / "metadata" / "metadata"
    stored = json.loads(path.read_text())
    del stored["rows"]
    path.write_text(json.dumps(stored | {"batches": 2}))
    data = Copying(facts=KNOWN)
    run(copied, data, total_steps=3)
    assert data.skipped == [2 * 8]


def test_without_a_period_a_short_run_saves_ten_times(run, tmp_path):
    run(tmp_path, total_steps=24, checkpoint_period=None, keep_checkpoints=None)
    assert steps_in(tmp_path) == [*range(2, 25, 2)]  # 24 // 10 is 2


class Killer(Evaluator):
    """Sends this process a signal in the middle of an evaluation."""

    def __init__(self, number):
        super().__init__()
        self._number = number

    def __call__(self, model, params):
        os.kill(os.getpid(), self._number)
        return super().__call__(model, params)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_the_run_goes_on_bit_for_bit(
    finished, run, tmp_path, capsys, number, code
):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, evaluators=[Killer(number)], eval_period=13)
    assert stopped.value.code == code and signal.getsignal(number) is before
    assert steps_in(tmp_path) == [10, 13]
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"{signal.Signals(number).name} after step 13 of 60, which is saved: " + (
        "the same line goes on"
    )
    assert_same(run(tmp_path), finished[1])


def test_a_signal_waits_for_what_must_not_be_left_half_done():
    signals, seen = interruption.Signals(), []
    with pytest.raises(interruption.Stopped), signals.listening(), signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("the rest of the block")
    assert seen


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 44 bytes.\nmore"),
        MemoryError("Unable to allocate 9 GiB"),
    ],
)
def test_no_memory_is_one_line_that_says_what_takes_less(error):
    with (
        pytest.raises(UserError, match=r"emory|allocate.*BATCH_SIZE.*MICROBATCHES.*REMAT.*plan"),
        interruption.memory_named(),
    ):
        raise error
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"), interruption.memory_named():
        raise jax.errors.JaxRuntimeError("another")


def test_a_log_file_gets_a_summary_and_a_line_at_every_period(run, tmp_path, capsys):
    data = Copying(facts=KNOWN | {"pack": True})
    run(tmp_path, data, total_steps=10, evaluators=[Evaluator()])
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"student: t5, [\d,]+ parameters, from random weights \(INITIAL_.*\)", lines[0]
    )
    assert lines[1] == "data: copying = a 50.0%"
    assert lines[2] == "objective: cross entropy; 10 steps of 8 packed rows, at most 64 tokens"
    assert lines[3] == f"devices: cpu (data 1 x model 1); MODEL_DIR: {tmp_path}"
    steps = r"step {}  loss [\d.]+  lr [\d.e-]+  [\d,]+ tokens/s  eta {}"
    assert re.fullmatch(steps.format(5, "-:--:--"), lines[4])
    assert lines[5] == "so far left out nothing"
    assert re.fullmatch(steps.format(10, "0:00:00"), lines[-3])
    assert lines[-2:] == ["step 10  eval  accuracy 1", "left out nothing"]


def test_a_terminal_gets_the_same_beside_its_progress_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    run(tmp_path, total_steps=10, evaluators=[Evaluator()])
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    for text in ("student: t5", "step 10  eval  accuracy 1", "step 10  loss", "eta"):
        assert text in shown


@pytest.mark.parametrize("initial", [False, True], ids=["resume", "initial"])
@pytest.mark.parametrize("wrong", ["vocabulary", "model"])
def test_refuses_a_checkpoint_of_another_kind(initial, wrong, finished, run, config, tmp_path):
    folder = finished[0]
    changes = {"data": Copying(vocabulary="reversing")}
    message = r"a checkpoint with vocabulary copying at .*60; expected .* vocabulary reversing"
    if wrong == "model":
        changes = {"model": dataclasses.replace(config, mlp_dim=64)}
        message = "another model at .*60: mlp_dim 32, not 64"
    if initial:
        changes["initial_checkpoint_path"] = str(folder)
    with pytest.raises(UserError, match=message):
        run(tmp_path if initial else folder, **changes)


def test_refuses_data_and_batches_that_do_not_fit(run, tmp_path):
    with pytest.raises(UserError, match="no teacher"):
        run(tmp_path / "run", objective=Objective(kl_weight=1.0))
    with pytest.raises(UserError, match=r"BATCH_SIZE 8; .* multiple of 3"):
        run(tmp_path / "run", microbatches=3)
    with pytest.raises(UserError, match="no folder /no such folder"):
        run(tmp_path / "run", initial_checkpoint_path="/no such folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("total_steps", 0),
        ("log_period", 0),
        ("checkpoint_period", 0),
        ("keep_checkpoints", 0),
        ("eval_period", -1),
    ],
)
def test_refuses_periods_that_are_none(setting, wrong, run, tmp_path):
    name = "TRAIN_STEPS" if setting == "total_steps" else setting.upper()
    with pytest.raises(UserError, match=f"got {name} {wrong}; expected {wrong + 1} or"):
        run(tmp_path, **{setting: wrong})
    assert not list(tmp_path.iterdir())


def test_an_infinite_loss_stops_the_run_and_is_not_saved(run, tmp_path):
    """Step 12 is spoilt; with a checkpoint at every step the last good one is 11."""
    with pytest.raises(UserError, match=r"loss inf at step 12 \(.* loss weights .*metrics are in"):
        run(tmp_path, Copying(spoilt=12), checkpoint_period=1)
    assert steps_in(tmp_path)[-1] == 11


def test_the_error_names_the_first_bad_place(finished, run, tmp_path):
    """A run that starts from a poisoned checkpoint ends at its first step and saves nothing."""
    folder, last, *_ = finished
    poisoned = jax.tree.map(np.array, last.params)
    poisoned["decoder"]["layers_0"]["encoder_decoder_attention"]["out"]["kernel"][0, 0] = np.nan
    checkpointer = Checkpointer(str(tmp_path / "poisoned"), period=1, keep=None)
    metadata = read_metadata(f"{folder}/checkpoints/{STEPS}")
    checkpointer.save(last.replace(params=poisoned), metadata, step=1)
    checkpointer.close()
    place = "decoder.layers_0.encoder_decoder_attention"
    with pytest.raises(UserError, match=rf"got loss nan at step 1 \(.* {place}\); expected"):
        run(
            tmp_path / "run",
            initial_checkpoint_path=str(tmp_path / "poisoned"),
            checkpoint_period=1,
            microbatches=2,
        )
    assert steps_in(tmp_path / "run") == []


def test_adapters_learn_on_a_frozen_model_and_resume_bit_for_bit(finished, run, config, tmp_path):
    """A model that copies learns to write 23 instead; only its adapters move."""
    folder, base, *_ = finished
    settings = {
        "model": dataclasses.replace(config, lora=lora.Lora(rank=2)),
        "initial_checkpoint_path": str(folder),
        "total_steps": 20,
        "optimizer": optimizers.adamw(optimizers.constant(1e-2)),
    }
    last = run(tmp_path / "whole", Constant(), **settings)
    adapters, frozen = lora.split(last.params)
    assert_same(frozen, base.params)
    assert jax.tree.structure(last.opt_state[0].mu) == jax.tree.structure(adapters)
    losses = [row["loss"] for row in rows_of(tmp_path / "whole")]
    assert losses[-1] < 0.8 * losses[0]
    run(tmp_path / "parts", Constant(), **settings | {"total_steps": 10})
    assert_same(run(tmp_path / "parts", Constant(), **settings), last)


def test_starts_from_files_of_hugging_face_with_scanned_layers(run, config, tmp_path):
    rng = np.random.default_rng(0)
    shapes = T5Student(config).parameter_shapes().items()
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes}
    tensors = {name: Tensor(a.shape, a.dtype, a.__getitem__) for name, a in arrays.items()}
    source = Source("arrays", T5Student(config), tensors)
    write_folder(source, tmp_path / "hf", dtype="float32", tokenizer=None, card="")
    last = run(
        tmp_path / "run",
        model=dataclasses.replace(config, scan_layers=True),
        initial_checkpoint_path=str(tmp_path / "hf"),
        optimizer=optimizers.adamw(optimizers.constant(0.0)),
        total_steps=1,
    )
    assert_same(unstack_layers(last.params), nest(arrays))
    assert (tmp_path / "run" / "spiece.model").read_bytes() == b"copied"


@pytest.mark.parametrize("last", [False, True])
def test_it_is_noticed_in_the_last_step_too(last, run, tmp_path):
    with pytest.raises(UserError, match="got loss inf at step 12"):
        run(tmp_path, Copying(spoilt=12), total_steps=12 if last else 13)
    assert steps_in(tmp_path) == [10]


def test_an_error_of_the_data_ends_the_run_with_its_own_words(run, tmp_path):
    with pytest.raises(OSError, match="batch 13 is broken"):
        run(tmp_path, Copying(broken=13))
    # What was due is saved, and no thread goes on reading.
    assert steps_in(tmp_path) == [10]
    assert not prefetchers()


def prefetchers():
    return [thread for thread in threading.enumerate() if "work" in thread.name]


class TestPrefetch:
    sharding = SingleDeviceSharding(jax.devices()[0])
    place = staticmethod(partial(jax.device_put, device=sharding))

    def test_gives_every_batch_in_order_on_the_device(self):
        batches = loop.prefetch(({"x": np.full(2, n)} for n in range(10)), self.place)
        for n in range(10):
            batch = next(batches)
            assert batch["x"].tolist() == [n, n]
            assert batch["x"].sharding == self.sharding
        batches.close()

    def test_reads_no_more_than_its_depth_ahead(self):
        made = []

        def endless():
            for n in itertools.count():
                made.append(n)
                yield {"x": np.zeros(1)}

        batches = loop.prefetch(endless(), self.place, depth=2)
        next(batches)
        wait_until(lambda: len(made) == 4)
        time.sleep(0.3)
        # One is used, two are ready, one waits for room.
        assert len(made) == 4
        batches.close()
        assert not prefetchers()

    def test_hands_over_an_error_after_the_batches_before_it(self):
        def failing():
            yield {"x": np.zeros(1)}
            raise RuntimeError("the disk is full")

        batches = loop.prefetch(failing(), self.place)
        next(batches)
        with pytest.raises(RuntimeError, match="the disk is full"):
            next(batches)
        assert not prefetchers()

    def test_data_that_end_are_an_error_not_a_silence(self):
        batches = loop.prefetch(iter([{"x": np.zeros(1)}]), self.place)
        next(batches)
        with pytest.raises(UserError, match="data that end"):
            next(batches)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_checkpointer_sees_what_the_loop_saved(finished):
    checkpointer = Checkpointer(str(finished[0]), period=1, keep=3)
    assert checkpointer.latest_step == STEPS
    checkpointer.close()
