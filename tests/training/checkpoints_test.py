"""Tests of saving, restoring and refusing checkpoints, on states of a few numbers."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cot_flax.errors import UserError
from cot_flax.students.t5 import T5Config
from cot_flax.training.checkpoints import (
    Checkpointer,
    Metadata,
    check_fits,
    load_initial,
    save_vocabulary,
)
from cot_flax.training.sharding import MeshConfig, make_mesh
from cot_flax.training.state import TrainState
from cot_flax.weights.source import Access

pytestmark = pytest.mark.filterwarnings("error")

CONFIG = T5Config(vocab_size=24, mlp_activations=("relu",))
METADATA = Metadata(dataclasses.asdict(CONFIG), "abc", 0)


def state_at(step):
    return TrainState(
        step=jnp.int32(step),
        params={"decoder": {"w": jnp.arange(16.0).reshape(8, 2) / 3 + step}},
        opt_state=({"mu": jnp.full((8, 2), 1e-20 * step)}, jnp.int32(step)),
        rng=jax.random.PRNGKey(step),
    )


def assert_equal(ours, theirs):
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), ours, theirs)


@pytest.fixture
def checkpointer(tmp_path):
    made = Checkpointer(str(tmp_path), period=5, keep=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model directory with the steps 9 and 10."""
    folder = tmp_path_factory.mktemp("saved")
    checkpointer = Checkpointer(str(folder), period=1, keep=None)
    for step in (9, 10):
        metadata = dataclasses.replace(METADATA, rows=step)
        checkpointer.save(state_at(step), metadata, step=step)
    checkpointer.close()
    return folder


def test_every_period_is_due_and_nothing_else(checkpointer):
    assert [step for step in range(1, 17) if checkpointer.is_due(step)] == [5, 10, 15]


def test_keeps_the_latest(checkpointer, tmp_path):
    assert checkpointer.latest_step is None
    for step in (5, 10, 12):
        checkpointer.save(state_at(step), METADATA, step=step)
        assert checkpointer.latest_step == step
    checkpointer.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"10", "12"}


def test_a_step_that_is_there_stays_as_it_is(checkpointer):
    checkpointer.save(state_at(5), METADATA, step=5)
    checkpointer.save(state_at(6), METADATA, step=5)
    assert_equal(checkpointer.restore(state_at(0), METADATA)[0], state_at(5))


def test_restores_the_latest_bit_for_bit(saved):
    checkpointer = Checkpointer(str(saved), period=1, keep=None)
    restored, metadata = checkpointer.restore(state_at(0), METADATA)
    checkpointer.close()
    assert_equal(restored, state_at(10))
    assert isinstance(restored, TrainState)
    assert metadata.rows == 10
    assert metadata.vocabulary == "abc"


def place(tree, shardings):
    return jax.tree.map(jax.device_put, tree, shardings)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")
def test_restores_and_loads_into_the_sharding_of_the_run(saved):
    split = NamedSharding(make_mesh(MeshConfig()), P("data"))
    whole = NamedSharding(split.mesh, P())
    shardings = TrainState(whole, {"decoder": {"w": split}}, ({"mu": split}, whole), whole)
    wanted = place(state_at(0), shardings)
    checkpointer = Checkpointer(str(saved), period=1, keep=None)
    restored, _ = checkpointer.restore(wanted, METADATA)
    checkpointer.close()
    assert_equal(restored, state_at(10))
    assert jax.tree.map(lambda x: x.sharding, restored) == shardings
    loaded = load_initial(str(saved), wanted.params, METADATA, Access())
    assert_equal(loaded, state_at(10).params)
    assert loaded["decoder"]["w"].sharding == split


def test_load_initial_takes_one_step_or_the_latest(saved):
    params = state_at(0).params
    assert_equal(load_initial(str(saved), params, METADATA, Access()), state_at(10).params)
    step = str(saved / "checkpoints" / "9")
    assert_equal(load_initial(step, params, METADATA, Access()), state_at(9).params)


def test_a_run_may_start_from_parameters_of_the_other_form(saved):
    wanted = changed(scan_layers=True, lora={"rank": 4}, residual_dtype="bfloat16")
    params = state_at(0).params
    assert_equal(load_initial(str(saved), params, wanted, Access()), state_at(10).params)


def test_a_model_directory_keeps_its_vocabulary(tmp_path):
    save_vocabulary(str(tmp_path / "run"), {"spiece.model": b"pieces"})
    assert (tmp_path / "run" / "spiece.model").read_bytes() == b"pieces"
    save_vocabulary(str(tmp_path / "other"), {})
    assert not (tmp_path / "other").exists()


def changed(**fields):
    return Metadata(METADATA.model | fields, METADATA.vocabulary, 0)


def test_check_fits_names_every_difference():
    wanted = changed(emb_dim=768, scan_layers=True)
    with pytest.raises(UserError, match="at here: emb_dim 512, not 768, scan_layers False, not T"):
        check_fits(METADATA, wanted, "here")


@pytest.mark.parametrize(
    "same", [{}, {"dropout_rate": 0.1}, {"dtype": "bfloat16"}, {"remat": "full"}]
)
def test_what_changes_no_parameter_fits(same):
    check_fits(METADATA, changed(**same), "here")
    check_fits(changed(mlp_activations=["relu"]), changed(**same), "here")


def test_the_vocabulary_must_be_the_same_where_it_is_known():
    other = dataclasses.replace(METADATA, vocabulary="xyz")
    with pytest.raises(UserError, match=r"vocabulary abc at here; expected .* vocabulary xyz"):
        check_fits(METADATA, other, "here")
    check_fits(METADATA, dataclasses.replace(METADATA, vocabulary=""), "here")
    check_fits(dataclasses.replace(METADATA, vocabulary=""), METADATA, "here")


@pytest.mark.parametrize(
    "wanted", [changed(vocab_size=25), dataclasses.replace(METADATA, vocabulary="xyz")]
)
def test_neither_restores_nor_loads_what_does_not_fit(wanted, saved):
    checkpointer = Checkpointer(str(saved), period=1, keep=None)
    with pytest.raises(UserError, match="checkpoints/10"):
        checkpointer.restore(state_at(0), wanted)
    checkpointer.close()
    with pytest.raises(UserError, match="checkpoints/10"):
        load_initial(str(saved), state_at(0).params, wanted, Access())
