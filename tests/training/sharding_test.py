"""Tests of the mesh: what lies where, and that 8 devices compute what 1 does."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning
from jax.sharding import PartitionSpec as P

from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.students import lora
from cot_flax.students.parameters import stack_layers
from cot_flax.students.t5 import T5Student
from cot_flax.training import optimizers, sharding, state
from cot_flax.training.sharding import (
    MeshConfig,
    Rows,
    arrange,
    by_process,
    check_batch_size,
    make_mesh,
)
from cot_flax.training.step import make_train_step

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices"),
]

ADAFACTOR = optimizers.adafactor(optimizers.constant(0.05))


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1)),
        (MeshConfig(model=2), (4, 2)),
        (MeshConfig(data=2, model=2), (2, 2)),
        (MeshConfig(data=1), (1, 1)),
    ],
)
def test_mesh_shapes(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.shape == shape
    assert len(set(mesh.devices.ravel())) == mesh.devices.size


@pytest.mark.parametrize("config", [MeshConfig(data=9), MeshConfig(data=4, model=4)])
def test_refuses_a_mesh_that_is_too_large(config):
    with pytest.raises(UserError, match=f"data={config.data} x model={config.model}; .* most 8"):
        make_mesh(config)


@pytest.mark.parametrize("sizes", [{"data": -1}, {"model": 0}, {"model": -2}])
def test_refuses_sizes_that_are_none(sizes):
    with pytest.raises(UserError, match=f"{min(sizes.values())}.*correct MESH_DATA or MESH_MODEL"):
        MeshConfig(**sizes)


def test_refuses_more_model_parts_than_devices():
    with pytest.raises(UserError, match="model=16"):
        make_mesh(MeshConfig(model=16))


def test_several_processes_leave_no_device_out(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    make_mesh(MeshConfig(data=4, model=2))
    with pytest.raises(UserError, match=r"data=1 x model=1 over 2 .*all 8 devices.*MESH_DATA=0"):
        make_mesh(MeshConfig(data=1))


@pytest.mark.parametrize(("batch_size", "parts"), [(8, 4), (6, 1)])
def test_rows_lie_in_order_over_the_mesh_or_whole_where_it_does_not_divide_them(batch_size, parts):
    rows = Rows(make_mesh(MeshConfig(data=4, model=2)), batch_size, shards=2)
    assert rows.shards == [0, 1]
    array = np.arange(batch_size * 3).reshape(batch_size, 3)
    placed = rows.put({"x": array})["x"]
    np.testing.assert_array_equal(placed, array)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(batch_size // parts, 3)}


def test_rows_of_one_process_are_neighbours(monkeypatch):
    """A process whose devices lie apart along `data` reads no more shards for that."""
    mesh = make_mesh(MeshConfig(data=4, model=2))
    monkeypatch.setattr(sharding, "by_process", lambda devices: [2, 0, 3, 1])
    rows = Rows(mesh, 8, shards=2)
    placed = rows.put({"x": np.arange(8)})["x"]
    # Places 2 and 0 have the first rows, then come 3 and 1.
    np.testing.assert_array_equal(placed, [2, 3, 6, 7, 0, 1, 4, 5])


@pytest.mark.parametrize(
    ("owners", "places"),
    [
        ([[0], [1], [2]], [0, 1, 2]),
        ([[0], [1], [1], [0]], [0, 3, 1, 2]),
        ([[1, 0], [2, 3], [0, 1], [3, 2]], [0, 2, 1, 3]),
        ([[1], [0]], [1, 0]),
    ],
)
def test_places_of_the_same_processes_are_neighbours(owners, places):
    devices = [[SimpleNamespace(process_index=index) for index in row] for row in owners]
    assert by_process(devices) == places


def chips(width, slices=1):
    """What JAX tells of slices of TPUs, four chips a host; no test can hold real ones."""
    return [
        SimpleNamespace(
            platform="tpu",
            device_kind="TPU v5 lite",
            slice_index=index,
            coords=[left + x, low + y, 0],
            core_on_chip=0,
        )
        for index, low, left in itertools.product(
            range(slices), range(0, width, 2), range(0, width, 2)
        )
        for y, x in itertools.product(range(2), repeat=2)
    ]


def hops(ring):
    """Links between each chip and the next one."""
    return [
        sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))
        for one, other in zip(ring, [*ring[1:], ring[0]], strict=True)
    ]


def test_tpus_lie_so_that_the_next_along_data_is_the_next_by_link():
    found = arrange(chips(4), 16, 1)
    assert hops(found[:, 0]) == [1] * 16
    assert max(hops(chips(4))) == 6  # in their own order


def test_tpus_have_short_ways_along_both_axes():
    found, plain = arrange(chips(4), 4, 4), np.array(chips(4)).reshape(4, 4)
    for axis in (found, found.T):
        assert {sum(hops(list(ring))) for ring in axis} == {6}  # three links there, three back
    assert max(sum(hops(list(ring))) for ring in plain.T) > 6


def test_slices_lie_along_data():
    found = arrange(chips(4, slices=2), 16, 2)
    assert [{chip.slice_index for chip in row} for row in found] == [{0}] * 8 + [{1}] * 8
    assert all(hops(list(row)) == [1, 1] for row in found)
    with pytest.raises(UserError, match=r"model=32 over 2 slices; .*MESH_MODEL that divides 16"):
        arrange(chips(4, slices=2), 1, 32)


def test_a_part_of_a_slice_is_taken_in_its_own_order():
    every = chips(4)
    assert arrange(every, 3, 2).tolist() == [every[:2], every[2:4], every[4:6]]


def test_batch_size_must_be_a_multiple_of_devices_and_microbatches():
    mesh = make_mesh(MeshConfig(data=4, model=2))
    check_batch_size(24, 2, mesh)
    with pytest.raises(UserError, match=r"BATCH_SIZE 20; .* multiple of 8 .* to 24"):
        check_batch_size(20, 2, mesh)


@pytest.mark.parametrize("sizes", [(0, 1), (4, 0), (-8, 1)])
def test_nothing_of_a_batch_is_refused(sizes):
    with pytest.raises(UserError, match=r"1 or more of both; correct BATCH_SIZE or MICROBATCHES"):
        check_batch_size(*sizes, make_mesh(MeshConfig()))


def created(config, mesh_config):
    mesh, rules = make_mesh(mesh_config), mesh_config.rules()
    with jax.set_mesh(mesh), partitioning.axis_rules(rules):
        wanted = state.abstract(T5Student(config), ADAFACTOR, mesh, rules)
        return state.create(T5Student(config), ADAFACTOR, 0, wanted)


def abstract_state(config, optimizer):
    params = state.abstract_variables(T5Student(config))["params"]
    trainable, _ = state.split_trainable(T5Student(config), params)
    opt_state = jax.eval_shape(optimizer.transform.init, trainable)
    return state.TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), params, opt_state, jax.ShapeDtypeStruct((2,), "uint32")
    )


def placed(config, mesh_config, optimizer=ADAFACTOR):
    """The sharding of every leaf of a state."""
    return state.state_shardings(
        T5Student(config),
        optimizer,
        abstract_state(config, optimizer),
        make_mesh(mesh_config),
        mesh_config.rules(),
    )


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def specs(shardings):
    return {name: sharding.spec for name, sharding in by_path(shardings).items()}


WHOLLY_SPLIT = MeshConfig(data=4, model=2, fsdp=True)


@pytest.fixture(scope="module")
def split(config):
    return created(config, WHOLLY_SPLIT)


def test_parameters_are_split_by_their_logical_axes(config):
    found = specs(placed(config, WHOLLY_SPLIT).params)
    expected = {
        "token_embedder.embedding": P("model", "data"),
        "encoder.relpos_bias.rel_embedding": P("model", None),
        "encoder.encoder_norm.scale": P("data"),
        "encoder.layers_0.attention.query.kernel": P("data", "model"),
        "encoder.layers_0.attention.out.kernel": P("model", "data"),
        "decoder.layers_0.mlp.wi_1.kernel": P("data", "model"),
        "decoder.layers_0.mlp.wo.kernel": P("model", "data"),
        "decoder.logits_dense.kernel": P("data", "model"),
    }
    assert {name: found[name] for name in expected} == expected


def test_without_fsdp_the_width_is_whole(config):
    found = specs(placed(config, MeshConfig(data=4, model=2)).params)
    assert found["token_embedder.embedding"] == P("model", None)
    assert found["encoder.encoder_norm.scale"] == P(None)


def test_a_created_state_lies_where_its_shardings_say(split, config):
    found = specs(jax.tree.map(lambda leaf: leaf.sharding, split))
    assert found == specs(placed(config, WHOLLY_SPLIT))
    embedding = split.params["token_embedder"]["embedding"]
    assert embedding.shape == (24, 16)
    assert {shard.data.shape for shard in embedding.addressable_shards} == {(12, 4)}


def test_optimizer_slots_lie_where_their_parameters_do(config):
    shardings = placed(config, WHOLLY_SPLIT, optimizers.adamw(optimizers.constant(0.1)))
    moments = shardings.opt_state[0]
    assert specs(moments.mu) == specs(moments.nu) == specs(shardings.params)
    assert moments.count.spec == shardings.step.spec == shardings.rng.spec == P()


def test_so_do_the_unfactored_slots_of_adafactor(config):
    shardings = placed(config, WHOLLY_SPLIT)
    slots = {
        name.partition(".v.")[2]: spec
        for name, spec in specs(shardings.opt_state).items()
        if ".v." in name
    }
    assert slots == specs(shardings.params)


def test_factored_slots_of_scanned_layers_are_replicated(config):
    wide = dataclasses.replace(config, emb_dim=128, mlp_dim=128, scan_layers=True)
    shardings = placed(wide, WHOLLY_SPLIT).opt_state
    shapes = by_path(abstract_state(wide, ADAFACTOR).opt_state)
    assert by_path(shardings).keys() == shapes.keys()
    rows = [name for name in shapes if name.endswith("v_row.decoder.layers.mlp.wo.kernel")]
    assert [(shapes[name].shape, specs(shardings)[name]) for name in rows] == [((1, 128), P())]


ADAPTED = lora.Lora(rank=2, dropout=0.0)


def test_adapters_are_split_as_their_kernels_are(config):
    adapted = dataclasses.replace(config, lora=ADAPTED)
    shardings = placed(adapted, WHOLLY_SPLIT, optimizers.adamw(optimizers.constant(0.1)))
    found = specs(lora.split(shardings.params)[0])
    assert found["decoder.layers_0.self_attention.query.lora_a"] == P("data", None)
    assert found["decoder.layers_0.self_attention.query.lora_b"] == P(None, "model")
    assert specs(shardings.opt_state[0].mu) == found


def test_an_axis_that_does_not_divide_is_replicated(config):
    # 25 pieces by 2 devices; 18 of width by 4.
    odd = dataclasses.replace(config, vocab_size=25, emb_dim=18)
    found = specs(placed(odd, WHOLLY_SPLIT).params)
    assert found["token_embedder.embedding"] == P(None, None)
    assert found["decoder.layers_0.mlp.wo.kernel"] == P("model", None)


def test_initial_values_depend_on_the_seed_alone(split, config):
    one = created(config, MeshConfig(data=1))
    jax.tree.map(np.testing.assert_array_equal, split.params, one.params)
    np.testing.assert_array_equal(split.rng, one.rng)


@pytest.fixture(scope="module")
def start(split):
    return jax.device_get(split.params)


def trained(config, mesh_config, batch, params, microbatches=1):
    """Losses of three steps from `params`, and the parameters after them."""
    mesh, shardings = make_mesh(mesh_config), placed(config, mesh_config)
    place = sharding.batch_sharding(mesh)
    trainable, _ = state.split_trainable(T5Student(config), params)
    opt_state = jax.jit(ADAFACTOR.transform.init)(trainable)
    now = state.TrainState(jnp.int32(0), params, opt_state, jax.random.PRNGKey(0))
    now = jax.device_put(now, shardings)
    with jax.set_mesh(mesh), partitioning.axis_rules(mesh_config.rules()):
        step = jax.jit(
            make_train_step(T5Student(config), ADAFACTOR, Objective(kl_weight=0.5), microbatches),
            in_shardings=(shardings, place),
            out_shardings=(shardings, None),
        )
        losses = []
        for _ in range(3):
            now, metrics = step(now, jax.device_put(batch, place))
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(now.params)


@pytest.fixture(scope="module")
def on_one_device(config, batch, start):
    losses, params = trained(config, MeshConfig(data=1), batch, start)
    assert losses[2] < losses[0] - 1
    return losses, params


@pytest.mark.parametrize(
    "mesh_config",
    [MeshConfig(), MeshConfig(data=4, model=2)],
    ids=["data=8", "data=4,model=2"],
)
def test_eight_devices_train_as_one_does(mesh_config, config, batch, start, on_one_device):
    losses, params = trained(config, mesh_config, batch, start)
    assert losses == pytest.approx(on_one_device[0], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, on_one_device[1])


def test_so_do_scanned_layers_with_parameters_split_both_ways(config, batch, start, on_one_device):
    scanned = dataclasses.replace(config, scan_layers=True, remat="full")
    losses, params = trained(scanned, WHOLLY_SPLIT, batch, stack_layers(start), microbatches=2)
    assert losses == pytest.approx(on_one_device[0], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        params,
        stack_layers(on_one_device[1]),
    )


def test_so_do_adapters_with_everything_split_both_ways(config, batch):
    adapted = dataclasses.replace(config, lora=ADAPTED)
    start = jax.device_get(created(adapted, MeshConfig(data=1)).params)
    losses, params = trained(adapted, MeshConfig(data=1), batch, start)
    scanned = dataclasses.replace(adapted, scan_layers=True, remat="full")
    ours, split = trained(scanned, WHOLLY_SPLIT, batch, stack_layers(start), microbatches=2)
    assert ours == pytest.approx(losses, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split, stack_layers(params)
    )
    jax.tree.map(np.testing.assert_array_equal, lora.split(params)[1], lora.split(start)[1])
