"""The run that is planned: its mesh, its batch, its settings."""

import dataclasses

import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.planning import experiment as planned
from cot_flax.planning.experiment import resolve_mesh
from cot_flax.planning.targets import Chip, Target
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.text.tokenizers import T5_SPECIAL_IDS
from cot_flax.training.sharding import MeshConfig

FOUR = Target("four", Chip("cpu", 1e9, 1e12, 1e10, 1e9), 4)


def test_the_mesh_is_spelt_out(experiment):
    run = dataclasses.replace(experiment, mesh=MeshConfig(0, 2))
    assert resolve_mesh(run, FOUR).mesh == MeshConfig(2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": MeshConfig(4, 2)}, "data=4 x model=2; expected at most the 4 chips of four"),
        ({"mesh": MeshConfig(0, 8)}, "data=0 x model=8"),
        ({"batch_size": 6, "mesh": MeshConfig(0, 1)}, "BATCH_SIZE 6; .*multiple of 4.* to 8"),
        ({"microbatches": 3}, "BATCH_SIZE 16; expected a multiple of 6"),
    ],
)
def test_a_mesh_that_does_not_serve_is_one_line(changed, settings, message):
    with pytest.raises(UserError, match=message):
        resolve_mesh(changed(**settings), FOUR)


@pytest.mark.parametrize("packed", [True, False])
def test_the_batch_is_laid_out_as_the_data_lay_it_out(experiment, packed):
    teacher = {"teacher_top_ids": np.zeros((3, 5), int), "teacher_top_logprobs": np.zeros((3, 5))}
    example = {"inputs": np.ones(3, np.int32), "targets": np.ones(3, np.int32)} | teacher
    batch = EncoderDecoder().to_batch(
        [[example]] * 16, {"inputs": 64, "targets": 32}, T5_SPECIAL_IDS, top_k=5, packed=packed
    )
    found = {name: (value.shape, str(value.dtype)) for name, value in batch.items()}
    assert dataclasses.replace(experiment, packed=packed).batch_shapes == found


def test_a_model_axis_divides_heads_mlp_width_and_vocabulary(experiment):
    assert experiment.split_sizes == {4, 4 * 32, 256, 512}


def test_without_a_teacher_there_are_no_rows_of_it(experiment):
    plain = dataclasses.replace(experiment.objective, kl_weight=0.0)
    shapes = dataclasses.replace(experiment, objective=plain).batch_shapes
    assert shapes and not any(name.startswith("teacher") for name in shapes)


def test_a_run_is_what_its_trainer_is_given(experiment):
    trainer = {n: getattr(experiment, n) for n in ("model", "objective", "optimizer", "mesh")}
    data = {"feature_lengths": {"inputs": 64, "targets": 32}, "batch_size": 16, "pack": True}
    assert planned.of_run(trainer | {"total_steps": 1000}, data) == experiment
    with pytest.raises(UserError, match=r"without loop\.train; expected a training experiment"):
        planned.of_run({}, data)
    with pytest.raises(UserError, match=r"without loop\.train"):
        planned.of_run(trainer, {})
