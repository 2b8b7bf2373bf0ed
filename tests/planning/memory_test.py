"""Bytes of a chip, counted by hand on a small student."""

import dataclasses

import pytest

from cot_flax.errors import UserError
from cot_flax.planning import memory
from cot_flax.planning.experiment import resolve_mesh
from cot_flax.planning.targets import Chip, Target
from cot_flax.students.lora import Lora
from cot_flax.training.sharding import MeshConfig

D, X, F, V = 128, 128, 256, 512
NORMS = 3 * 2 * D + 2 * 3 * D + 2 * D
POSITIONS = 2 * 4 * 32
MATRICES = 3 * (4 * D * X + 3 * D * F) + 2 * (8 * D * X + 3 * D * F) + 2 * D * V
PARAMETERS = MATRICES + NORMS + POSITIONS
FOUR = Target("four", Chip("cpu", 1e9, 1e12, 1e10, 1e9), 4)


def modelled(run):
    return memory.modelled(run, 1e9, "cpu")


def test_one_chip_holds_everything(changed):
    found = modelled(changed(mesh=MeshConfig(1, 1)))
    assert found.parameters == 4 * PARAMETERS
    assert found.optimizer == pytest.approx(2 * found.parameters, abs=16)  # AdamW: two moments
    assert found.gradients == found.parameters
    tokens = 16 * (
        3 * 64 + 5 * 32 + 2 * 5 * 32
    )  # 3 features of inputs, 5 of targets, the teacher's
    assert found.batch == 4 * tokens


def test_fsdp_and_the_model_axis_split_the_matrices(changed):
    found = modelled(changed(mesh=MeshConfig(2, 2, fsdp=True)))
    # Norms are as wide as the model, so that "data" splits them; the position bias has heads.
    assert found.parameters == 4 * (MATRICES // 4 + NORMS // 2 + POSITIONS // 2)
    without = modelled(changed(mesh=MeshConfig(2, 2)))
    assert without.parameters == 4 * (MATRICES // 2 + NORMS + POSITIONS // 2)


def test_full_recomputation_keeps_the_inputs_of_the_layers_alone(changed):
    found = modelled(changed(mesh=MeshConfig(1, 1)))
    assert found.activations == 16 * (3 * 64 + 2 * 32) * D * 4
    halved = modelled(changed(mesh=MeshConfig(1, 1), microbatches=2))
    assert halved.activations == found.activations // 2
    assert halved.parameters == found.parameters


def test_less_recomputation_keeps_more(changed):
    kept = [modelled(changed(remat=remat)).activations for remat in ("full", "minimal", "none")]
    assert kept == sorted(kept) and len(set(kept)) == 3


def test_adapters_alone_have_gradients_and_moments(changed):
    found = modelled(changed(mesh=MeshConfig(1, 1), lora=Lora(rank=4)))
    adapters = 4 * (3 + 2 * 2) * 2 * (D * 4 + 4 * X)
    assert found.gradients == adapters
    assert found.parameters == 4 * PARAMETERS + adapters


def test_what_the_compiler_counts_beyond_the_formula_is_temporary(experiment):
    formula = modelled(experiment)
    own = formula.state + formula.batch
    found = memory.counted(experiment, 1e9, "cpu", own + formula.gradients + 1000)
    assert (found.gradients, found.activations, found.temporaries) == (formula.gradients, 1000, 0)
    found = memory.counted(experiment, 1e6, "cpu", formula.total + 10**6)
    assert found.total == formula.total + 10**6
    assert found.headroom == 10**6 - found.total and not found.fits


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
