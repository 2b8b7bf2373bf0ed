"""What T5X itself makes of our files and our model, and we of its; where T5X is importable."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.core import freeze, unfreeze
from support.t5x import LEAVES_LOOPS, _beside_t5x  # noqa: F401

from cot_flax.errors import UserError
from cot_flax.generation.decoding import decode
from cot_flax.students.parameters import Tensor, flatten
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.attention import relative_position_bucket
from cot_flax.students.t5.config import T5Config
from cot_flax.students.t5.t5x import config_of
from cot_flax.weights import t5x
from cot_flax.weights.files.tensorstore import listing
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Source

reason = "T5X is not on PyPI: bash launch/setup_t5x.sh makes it importable"
checkpoints = pytest.importorskip("t5x.checkpoints", reason=reason)
from t5x import adafactor, decoding, models, partitioning, utils  # noqa: E402
from t5x.examples.scalable_t5 import network as scalable_network  # noqa: E402
from t5x.examples.t5 import layers, network  # noqa: E402

pytestmark = LEAVES_LOOPS

seqio = pytest.importorskip("seqio", reason="T5X needs it")

CONFIGS = {
    "T5 1.1": T5Config(
        vocab_size=40,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=3,
        head_dim=8,
        mlp_dim=32,
    ),
    "T5 1.0": T5Config(
        vocab_size=56,
        emb_dim=24,
        num_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=2,
        head_dim=4,
        mlp_dim=16,
        mlp_activations=("relu",),
        logits_via_embedding=True,
    ),
    # From 128 on Adafactor's statistics are factored.
    "wide": T5Config(
        vocab_size=144,
        emb_dim=128,
        num_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=40,
        mlp_dim=192,
    ),
}
B, S, T = 8, 150, 6
PARTS = 2 if jax.device_count() > 1 else 1


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def partitioner():
    return partitioning.PjitPartitioner(
        model_parallel_submesh=(1, PARTS),
        logical_axis_rules=partitioning.standard_logical_axis_rules(),
    )


def their_model(config, package=network):
    shared = {name: getattr(config, name) for name in SHARED}
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size, eos_id=1)
    return models.EncoderDecoderModel(
        module=package.Transformer(config=package.T5Config(**shared)),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        # As in T5X's t5_1_1 gin files.
        optimizer_def=adafactor.Adafactor(
            decay_rate=0.8,
            step_offset=0,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        ),
        decode_fn=decoding.temperature_sample,  # of the most likely token alone
    )


SHARED = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "head_dim",
    "mlp_dim",
    "mlp_activations",
    "logits_via_embedding",
    "dropout_rate",
)


def initializer(model, partitioner, *, training):
    shape = (B, 8)
    return utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def if training else None,
        init_fn=model.get_initial_variables,
        input_shapes={"encoder_input_tokens": shape, "decoder_input_tokens": shape},
        partitioner=partitioner,
    )


@pytest.fixture(scope="module", params=CONFIGS)
def drawn(request, partitioner):
    """Our config, T5X's model, and a fresh state of it but for norms, which are not all ones."""
    config = CONFIGS[request.param]
    model = their_model(config)
    state = initializer(model, partitioner, training=True).from_scratch(jax.random.PRNGKey(3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf * rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32),
        unfreeze(jax.device_get(state.params)),
    )
    # Small beside what the layers add: a tied head would repeat its input for ever.
    params["token_embedder"]["embedding"] *= 0.1
    return config, model, state.replace_params(freeze(params))


@pytest.fixture(scope="module")
def params(drawn):
    return unfreeze(jax.device_get(drawn[2].params))


@pytest.fixture(scope="module")
def source(drawn, params):
    tensors = {
        name: Tensor(array.shape, array.dtype, array.__getitem__)
        for name, array in flatten(params).items()
    }
    return Source("memory", T5Student(drawn[0]), tensors)


def tokens(config):
    """Rows of all lengths, and one as long as T5's farthest distances (beyond 128)."""
    rng = np.random.default_rng(1)
    batch = {
        "encoder_input_tokens": rng.integers(2, config.vocab_size, (B, S)),
        "decoder_input_tokens": rng.integers(2, config.vocab_size, (B, T)),
        "decoder_target_tokens": rng.integers(2, config.vocab_size, (B, T)),
    }
    for i in range(1, B):
        batch["encoder_input_tokens"][i, 5 * i :] = 0
        batch["decoder_target_tokens"][i, T - i % T :] = 0
    batch["decoder_input_tokens"][:, 0] = 0
    return {name: array.astype(np.int32) for name, array in batch.items()}


# The model ----------------------------------------------------------------------------------------


def test_logits_are_those_of_t5x(drawn, params):
    config, model, _ = drawn
    batch = tokens(config)
    apply = jax.jit(partial(model.module.apply, enable_dropout=False))
    theirs = apply({"params": params}, **batch)
    ours = jax.jit(T5Student(config).module.apply)({"params": params}, *batch.values())
    real = batch["decoder_target_tokens"] > 0
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=1e-5)


def test_greedy_tokens_are_those_of_t5x(drawn, params):
    config, model, _ = drawn
    batch = tokens(config) | {"decoder_input_tokens": np.zeros((B, 12), np.int32)}
    theirs = jax.jit(model.predict_batch)(freeze(params), batch)
    ours = decode(T5Student(config), params, batch["encoder_input_tokens"], max_tokens=12)[:, 0]
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) > 2


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_t5x_at_all_distances(bidirectional):
    distance = np.arange(-4096, 4097)
    theirs = layers.RelativePositionBiases._relative_position_bucket(
        distance, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    ours = relative_position_bucket(distance, bidirectional=bidirectional)
    np.testing.assert_array_equal(ours, theirs)


# Its files, read by us ----------------------------------------------------------------------------


def write_legacy(state, partitioner, folder):
    checkpoints.Checkpointer(state, partitioner, str(folder)).save(state)


def write_orbax(state, partitioner, folder):
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, partitioner)
    manager.save(state)
    manager.wait_until_finished()
    manager.close()


@pytest.mark.parametrize("write", [write_legacy, write_orbax])
def test_we_read_what_t5x_writes(write, drawn, params, partitioner, tmp_path):
    config, _, state = drawn
    write(state.replace_step(jnp.int32(7)), partitioner, tmp_path)
    found = listing(str(tmp_path))
    assert (t5x.find_legacy(found) is not None) == (write is write_legacy)
    assert (t5x.find_orbax(found) is not None) == (write is write_orbax)
    source = open_source(str(tmp_path))
    assert source.place.startswith(str(tmp_path / "checkpoint_7"))
    assert source.student.config == config
    assert source.tensors.keys() == flatten(params).keys()
    for name, array in flatten(params).items():
        np.testing.assert_array_equal(source.tensors[name].whole(), array, strict=True)
    part = source.tensors["token_embedder.embedding"].read((slice(3, 9), slice(1, 4)))
    np.testing.assert_array_equal(part, params["token_embedder"]["embedding"][3:9, 1:4])


def test_scalable_t5_is_another_model(partitioner):
    """It has a position bias in every layer, which no T5 has."""
    model = their_model(CONFIGS["T5 1.1"], scalable_network)
    made = initializer(model, partitioner, training=False)
    params = flatten(unfreeze(made.global_train_state_shape.params))
    with pytest.raises(UserError, match="a position bias in every layer"):
        config_of({name: leaf.shape for name, leaf in params.items()}, "here")


# Our files, restored by it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """Two model directories: float32 and bfloat16."""
    folder = tmp_path_factory.mktemp("written")
    for dtype in ("float32", "bfloat16"):
        t5x.write(source, folder / dtype, dtype=dtype, step=11)
    return folder


def restore(path, drawn, partitioner, *, training, use_orbax=False):
    """As `t5x.train` and `t5x.infer` restore an initial checkpoint."""
    config = utils.RestoreCheckpointConfig(path=str(path), mode="specific", dtype="float32")
    made = initializer(drawn[1], partitioner, training=training)
    if use_orbax:
        shape = made.global_train_state_shape
        manager = checkpoints.OrbaxCheckpointManagerInterface(
            str(path.parent), shape, partitioner, restore_dtype=jnp.float32
        )
        return manager.restore(path=str(path))
    return made.from_checkpoint([config], init_rng=jax.random.PRNGKey(0))


@pytest.mark.parametrize(
    ("dtype", "training", "use_orbax"),
    [
        ("float32", True, False),
        ("float32", False, True),
        ("bfloat16", True, True),
        ("bfloat16", False, False),
    ],
)
def test_t5x_restores_what_we_write(
    dtype, training, use_orbax, drawn, params, written, partitioner
):
    path = written / dtype / "checkpoint_11"
    state = restore(path, drawn, partitioner, training=training, use_orbax=use_orbax)
    assert int(state.step) == 11
    restored = flatten(unfreeze(state.params))
    for name, array in flatten(params).items():
        rounded = array.astype(jnp.dtype(dtype)).astype(np.float32)
        np.testing.assert_array_equal(restored[name], rounded, strict=True)


def test_t5x_fine_tunes_from_what_we_write(drawn, written, partitioner):
    """The state that it restores is a fresh one of these parameters, its slots included."""
    path = written / "float32" / "checkpoint_11"
    restored = restore(path, drawn, partitioner, training=True).replace_step(jnp.int32(0))
    fresh = drawn[2]
    assert jax.tree.structure(restored.state_dict()) == jax.tree.structure(fresh.state_dict())
    jax.tree.map(
        partial(np.testing.assert_array_equal, strict=True),
        jax.device_get(restored.state_dict()),
        jax.device_get(fresh.state_dict()),
    )


def test_t5x_trains_on_with_the_optimizer_s_state_alone(drawn, written, partitioner, tmp_path):
    """Why `write` adds fresh slots."""
    bare = tmp_path / "checkpoint_11"
    shutil.copytree(written / "float32" / "checkpoint_11", bare)
    index = serialization.msgpack_restore((bare / "checkpoint").read_bytes())
    del index["optimizer"]["state"]["param_states"]
    (bare / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    restore(bare, drawn, partitioner, training=False)
    with pytest.raises(ValueError, match="param_states"):
        restore(bare, drawn, partitioner, training=True)
