"""By what one sees that a stage is done."""

import pytest

from cot_flax import run_folder
from cot_flax.distill import stages


@pytest.fixture
def run(tmp_path):
    """A run of 20 steps whose newest checkpoint is of step 8."""
    (tmp_path / run_folder.CHECKPOINTS / "8").mkdir(parents=True)

    def say(**facts):
        run_folder.write_facts(tmp_path, {"id": "x", "training": {"steps": 20}} | facts)
        return str(tmp_path)

    return say


def test_a_run_is_done_at_its_last_step(run):
    place = run()
    assert stages.fingerprint(place) == ""
    assert stages.fingerprint(run(training={"steps": 8})) == "x@8"


def test_a_run_that_stopped_early_is_done(run):
    stopped = {"step": 8, "reason": "4 evaluations without gain of loss, 1.2 at step 4"}
    assert stages.fingerprint(run(stopped=stopped)) == "x@8"
