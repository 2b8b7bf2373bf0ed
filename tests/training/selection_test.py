"""Tests of best checkpoints and early stopping: the rules, and whole runs that are killed."""

import json
import math
import os
import signal

import numpy as np
import pytest

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.training import selection
from cot_flax.training.checkpoints import Checkpointer
from cot_flax.training.selection import Best, Selection
from cot_flax.weights.native import read_metadata
from cot_flax.weights.opening import check_place, open_source

from .loop_test import assert_same, rows_of, run, steps_in  # noqa: F401 (fixtures)

GOALS = {"a/accuracy": "max", "loss": "min"}


def after(*measured, goals=GOALS):
    """The selection after evaluations at the steps 10, 20, ..., each of an accuracy and a loss."""
    found = Selection()
    for i, values in enumerate(measured, 1):
        found = found.after(10 * i, dict(zip(GOALS, values, strict=True)), goals)
    return found


def test_each_metric_has_its_own_best_step():
    found = after((0.1, 3.0), (0.4, 2.5), (0.4, 2.0), (0.3, 2.0))
    assert found.best == {"a/accuracy": Best("max", 20, 0.4), "loss": Best("min", 30, 2.0)}
    assert found.steps == {20, 30}
    assert found.evaluated == 40
    assert found.without_gain == 2  # of the first metric: an equal value is no gain


def test_what_is_not_finite_is_never_the_best():
    found = after((math.nan, 1.0), (0.1, math.nan))
    assert found.best == {"a/accuracy": Best("max", 20, 0.1), "loss": Best("min", 10, 1.0)}
    nothing = after((math.nan, math.nan), (math.inf, math.nan))
    assert nothing.best == {} and nothing.without_gain == 2
    assert nothing.standstill == "2 evaluations without gain, none of them finite"


def test_stops_after_so_many_evaluations_without_gain():
    found = after((0.4, 0), (0.3, 0), (0.2, 0))
    assert [found.stops(patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]
    assert found.standstill == "2 evaluations without gain of a/accuracy, 0.4 at step 10"


def test_it_goes_through_json_and_survives_other_goals():
    found = after((0.4, 2.0), (0.3, 1.0))
    stored = json.loads(json.dumps(found.to_json()))
    assert Selection.from_json(stored) == found
    assert Selection.from_json(None) == Selection()
    assert found.going_on(GOALS) == found
    turned = dict(reversed(GOALS.items()))
    assert found.going_on(turned).without_gain == 0
    assert found.going_on({"loss": "max"}).best == {}


class Scripted:
    """Gives the accuracies and losses of a list, one pair an evaluation; may kill the run."""

    goals, split = GOALS, "validation"

    def __init__(self, values, first=0, kill_at=None):
        self._values, self._count, self._kill_at = values, first, kill_at

    def __call__(self, student, params):
        if self._count == self._kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self._count += 1
        return dict(zip(GOALS, self._values[self._count - 1], strict=True))


VALUES = ((0.1, 5.0), (0.4, 4.0), (0.2, 4.5), (0.3, 4.0), (0.2, 4.2), (0.1, 4.1))
CHOOSING = {"eval_period": 10, "best_metrics": tuple(GOALS), "keep_checkpoints": 1}


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):  # noqa: F811
    """A run of 60 steps with evaluations at 10, 20, ...: folder and last state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, evaluators=[Scripted(VALUES)], **CHOOSING)


def test_the_best_of_each_metric_stays_beside_the_newest(whole):
    folder, _ = whole
    assert steps_in(folder) == [20, 60]
    stored = Selection.from_json(read_metadata(f"{folder}/checkpoints/60").selection)
    assert stored == after(*VALUES)
    facts = run_folder.read_facts(folder)["training"]
    assert facts["best_metrics"] == GOALS and facts["early_stopping"] is None


def test_a_path_names_the_best_of_a_metric(whole):
    folder, _ = whole
    for metric in GOALS:
        assert open_source(f"{folder}/best/{metric}").place == f"{folder}/checkpoints/20"
    assert open_source(str(folder)).place == f"{folder}/checkpoints/60"
    check_place(f"{folder}/best/loss")
    with pytest.raises(UserError, match=r"by accuracy in .*; expected one by a/accuracy, loss"):
        check_place(f"{folder}/best/accuracy")
    with pytest.raises(UserError, match="no folder"):
        check_place(f"{folder}/nothing/best/loss")


def test_a_run_that_chose_nothing_says_so(run, tmp_path):  # noqa: F811
    run(tmp_path, total_steps=1)
    with pytest.raises(UserError, match=r"best checkpoint by loss .* a run with BEST_METRICS"):
        open_source(f"{tmp_path}/best/loss")


def test_a_folder_that_is_called_so_is_itself(whole, tmp_path):
    folder = tmp_path / "best" / "loss"
    folder.parent.mkdir()
    folder.symlink_to(whole[0])
    assert open_source(str(folder)).place == f"{folder}/checkpoints/60"


def others_slow(fast, kills):
    """As parameters: the kills that are not among the fast ones wait for --slow."""
    return [pytest.param(n, marks=[] if n in fast else [pytest.mark.slow]) for n in kills]


@pytest.mark.parametrize("kill_at", others_slow((0, 3, 5), range(6)))
def test_a_run_killed_in_any_evaluation_keeps_its_best(whole, run, tmp_path, kill_at):  # noqa: F811
    with pytest.raises(SystemExit):
        run(tmp_path, evaluators=[Scripted(VALUES, kill_at=kill_at)], **CHOOSING)
    last = run(tmp_path, evaluators=[Scripted(VALUES, first=kill_at)], **CHOOSING)
    assert_same(last, whole[1])
    assert steps_in(tmp_path) == steps_in(whole[0])
    assert rows_of(tmp_path, "eval") == rows_of(whole[0], "eval")
    one, other = (read_metadata(f"{folder}/checkpoints/60") for folder in (tmp_path, whole[0]))
    assert one == other


def test_a_kill_before_the_old_best_is_deleted_leaves_none_too_many(whole, run, tmp_path):  # noqa: F811
    """As if the process had died when a new best step was whole and the old one still there."""
    run(tmp_path, total_steps=20, evaluators=[Scripted(VALUES)], **CHOOSING)
    assert steps_in(tmp_path) == [20]
    (tmp_path / "checkpoints" / "10").mkdir()
    for path in (tmp_path / "checkpoints" / "20").iterdir():
        if path.is_dir():
            os.system(f"cp -r {path} {tmp_path}/checkpoints/10/")
        else:
            (tmp_path / "checkpoints" / "10" / path.name).write_bytes(path.read_bytes())
    run(tmp_path, evaluators=[Scripted(VALUES, first=2)], **CHOOSING)
    assert steps_in(tmp_path) == steps_in(whole[0])


def test_stopping_early_is_said_kept_and_lasting(run, tmp_path, capsys):  # noqa: F811
    stopping = CHOOSING | {"early_stopping": 3}
    state = run(tmp_path, evaluators=[Scripted(VALUES)], **stopping)
    reason = "3 evaluations without gain of a/accuracy, 0.4 at step 20"
    assert f"stopped after step 50 of 60: {reason}" in capsys.readouterr().err
    assert int(state.step) == 50 and steps_in(tmp_path) == [20, 50]
    assert run_folder.read_facts(tmp_path)["stopped"] == {"step": 50, "reason": reason}
    before = (tmp_path / run_folder.METRICS).read_bytes()
    assert_same(run(tmp_path, evaluators=[Scripted(VALUES)], **stopping), state)
    printed = capsys.readouterr().err
    assert f"has done 50 steps, and stopped there: {reason}" in printed
    assert (tmp_path / run_folder.METRICS).read_bytes() == before
    more = run(tmp_path, evaluators=[Scripted(VALUES, first=5)], **stopping | {"early_stopping": 9})
    assert int(more.step) == 60
    assert "EARLY_STOPPING 3, not 9" in capsys.readouterr().err
    assert "stopped" not in run_folder.read_facts(tmp_path)


@pytest.mark.parametrize("kill_at", others_slow((3,), (1, 3, 4)))
def test_the_evaluations_without_gain_are_counted_across_kills(run, tmp_path, kill_at):  # noqa: F811
    stopping = CHOOSING | {"early_stopping": 3}
    with pytest.raises(SystemExit):
        run(tmp_path, evaluators=[Scripted(VALUES, kill_at=kill_at)], **stopping)
    state = run(tmp_path, evaluators=[Scripted(VALUES, first=kill_at)], **stopping)
    assert int(state.step) == 50 and steps_in(tmp_path) == [20, 50]


class OnATest(Scripted):
    split = "test[:10]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_metrics": ("accuracy",)}, "accuracy; expected some of a/accuracy, loss"),
        ({"evaluators": ()}, "BEST_METRICS a/accuracy, loss; expected metrics of EVALUATORS"),
        ({"evaluators": [OnATest(VALUES)]}, r"a/accuracy of split test\[:10\].*that are no test"),
        ({"evaluators": [Scripted(VALUES)] * 2}, "two EVALUATORS that measure a/accuracy"),
        ({"eval_period": 0}, "with EVAL_PERIOD 0, which evaluates at the end alone"),
        ({"best_metrics": (), "early_stopping": 2}, "EARLY_STOPPING 2 without BEST_METRICS"),
        ({"early_stopping": 0}, "EARLY_STOPPING 0; expected 1 or more"),
    ],
)
def test_what_cannot_choose_is_refused_before_anything_is_done(run, tmp_path, changes, message):  # noqa: F811
    settings = CHOOSING | {"evaluators": [Scripted(VALUES)]} | changes
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_evaluators_without_goals_choose_nothing():
    assert selection.goals_of((), [lambda student, params: {"x": 1.0}]) == {}


def test_a_step_that_is_there_takes_new_metadata(whole, tmp_path):
    """What a run writes that makes up for an evaluation after its last step."""
    folder, _ = whole
    before = read_metadata(f"{folder}/checkpoints/60")
    assert before.rows == 60 * 8
    checkpointer = Checkpointer(str(folder), period=1, keep=1)
    checkpointer.save({"other": np.ones(3)}, before, step=60)
    checkpointer.close()
    assert read_metadata(f"{folder}/checkpoints/60") == before
