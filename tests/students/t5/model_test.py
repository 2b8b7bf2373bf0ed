"""Tests of the model: parity with T5X and Hugging Face, names, masks by exact zeros, variants."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import partitioning

from cot_flax.generation.decoding import empty_ring
from cot_flax.objectives.losses import cross_entropy
from cot_flax.students.parameters import stack_layers
from cot_flax.students.t5 import T5Student

INPUTS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
SEGMENTS = ("encoder_segment_ids", "decoder_segment_ids")


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


# Parity -------------------------------------------------------------------------------------------


def value_and_gradient(config, params, expected):
    """Loss, logits and gradient on the batch that T5X was given."""

    def total(params):
        logits = T5Student(config).module.apply(
            {"params": params}, *(expected[name] for name in INPUTS)
        )
        targets = expected["decoder_target_tokens"]
        return jnp.sum(cross_entropy(logits, targets) * (targets > 0)), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return loss, logits, gradient


@pytest.fixture(scope="module")
def plain(from_t5x):
    """Ours, without scan and remat."""
    return value_and_gradient(*from_t5x)


def check_parity(loss, logits, expected):
    real = expected["decoder_target_tokens"] > 0
    np.testing.assert_allclose(logits[real], expected["logits"][real], atol=1e-4)
    assert loss == pytest.approx(float(expected["loss"]), abs=1e-4)


def test_logits_and_loss_are_those_of_t5x(from_t5x, plain):
    check_parity(*plain[:2], from_t5x[2])


@pytest.mark.parametrize(
    ("scan_layers", "remat"), [(True, "none"), (False, "minimal"), (True, "full")]
)
def test_scan_and_remat_change_nothing(scan_layers, remat, from_t5x, plain):
    config, params, expected = from_t5x
    config = dataclasses.replace(config, scan_layers=scan_layers, remat=remat)
    stack = stack_layers if scan_layers else lambda tree: tree
    loss, logits, gradient = value_and_gradient(config, stack(params), expected)
    check_parity(loss, logits, expected)
    for (name, ours), unrolled in zip(
        flat(gradient).items(), flat(stack(plain[2])).values(), strict=True
    ):
        np.testing.assert_allclose(ours, unrolled, atol=1e-4, rtol=1e-4, err_msg=name)


def test_packed_logits_are_those_of_t5x(from_t5x, forward):
    config, params, expected = from_t5x
    arrays = (expected[f"packed_{name}"] for name in INPUTS + SEGMENTS)
    logits = forward(T5Student(config), params, *arrays)
    real = expected["packed_decoder_loss_weights"] > 0
    np.testing.assert_allclose(logits[real], expected["packed_logits"][real], atol=1e-4)


def test_logits_are_those_of_hugging_face(from_hugging_face, forward):
    config, params, expected = from_hugging_face
    tokens = expected["decoder_input_tokens"]
    # Hugging Face was given no decoder mask: every position is real.
    logits = forward(
        T5Student(config), params, expected["encoder_input_tokens"], tokens, np.ones_like(tokens)
    )
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


# Parameters ---------------------------------------------------------------------------------------

ENCODER_LAYER = {
    "pre_attention_layer_norm.scale": ((16,), ("embed",)),
    "attention.query.kernel": ((16, 8), ("embed", "joined_kv")),
    "attention.key.kernel": ((16, 8), ("embed", "joined_kv")),
    "attention.value.kernel": ((16, 8), ("embed", "joined_kv")),
    "attention.out.kernel": ((8, 16), ("joined_kv", "embed")),
    "pre_mlp_layer_norm.scale": ((16,), ("embed",)),
    "mlp.wi_0.kernel": ((16, 32), ("embed", "mlp")),
    "mlp.wi_1.kernel": ((16, 32), ("embed", "mlp")),
    "mlp.wo.kernel": ((32, 16), ("mlp", "embed")),
}
DECODER_LAYER = {
    "pre_self_attention_layer_norm.scale": ((16,), ("embed",)),
    "self_attention.query.kernel": ((16, 8), ("embed", "joined_kv")),
    "self_attention.key.kernel": ((16, 8), ("embed", "joined_kv")),
    "self_attention.value.kernel": ((16, 8), ("embed", "joined_kv")),
    "self_attention.out.kernel": ((8, 16), ("joined_kv", "embed")),
    "pre_cross_attention_layer_norm.scale": ((16,), ("embed",)),
    "encoder_decoder_attention.query.kernel": ((16, 8), ("embed", "joined_kv")),
    "encoder_decoder_attention.key.kernel": ((16, 8), ("embed", "joined_kv")),
    "encoder_decoder_attention.value.kernel": ((16, 8), ("embed", "joined_kv")),
    "encoder_decoder_attention.out.kernel": ((8, 16), ("joined_kv", "embed")),
    "pre_mlp_layer_norm.scale": ((16,), ("embed",)),
    "mlp.wi_0.kernel": ((16, 32), ("embed", "mlp")),
    "mlp.wi_1.kernel": ((16, 32), ("embed", "mlp")),
    "mlp.wo.kernel": ((32, 16), ("mlp", "embed")),
}
OUTSIDE = {
    "token_embedder.embedding": ((24, 16), ("vocab", "embed")),
    "encoder.relpos_bias.rel_embedding": ((2, 32), ("heads", "relpos_buckets")),
    "encoder.encoder_norm.scale": ((16,), ("embed",)),
    "decoder.relpos_bias.rel_embedding": ((2, 32), ("heads", "relpos_buckets")),
    "decoder.decoder_norm.scale": ((16,), ("embed",)),
    "decoder.logits_dense.kernel": ((16, 24), ("embed", "vocab")),
}


def parameters_of(config):
    """Every parameter's name with its shape and its logical axes."""
    variables = jax.eval_shape(T5Student(config).init, jax.random.key(0))
    shapes = flat(variables["params"])
    axes = flat(partitioning.get_axis_names(variables["params_axes"]))
    assert all(leaf.dtype == jnp.float32 for leaf in shapes.values())
    return {name: (leaf.shape, tuple(axes[name])) for name, leaf in shapes.items()}


def layers_of(prefix, layer):
    return {f"{prefix}.{name}": value for name, value in layer.items()}


def test_names_shapes_and_axes_of_the_parameters(tiny_config):
    assert parameters_of(tiny_config) == (
        OUTSIDE
        | layers_of("encoder.layers_0", ENCODER_LAYER)
        | layers_of("decoder.layers_0", DECODER_LAYER)
        | layers_of("decoder.layers_1", DECODER_LAYER)
    )


def test_scanned_layers_gain_a_leading_axis(tiny_config):
    def scanned(length, layer):
        return {
            name: ((length, *shape), ("layers", *axes)) for name, (shape, axes) in layer.items()
        }

    assert parameters_of(dataclasses.replace(tiny_config, scan_layers=True)) == (
        OUTSIDE
        | layers_of("encoder.layers", scanned(1, ENCODER_LAYER))
        | layers_of("decoder.layers", scanned(2, DECODER_LAYER))
    )


def test_t5_1_0_has_one_inner_projection_and_no_head_of_its_own(tiny_config):
    names = set(parameters_of(tiny_config))
    config = dataclasses.replace(tiny_config, mlp_activations=("relu",), logits_via_embedding=True)
    expected = {n.replace("wi_0", "wi") for n in names if "wi_1" not in n}
    assert set(parameters_of(config)) == expected - {"decoder.logits_dense.kernel"}


def test_t5_1_1_small_has_77_million_parameters(tiny_config):
    attention = 4 * 512 * 6 * 64
    mlp = 3 * 512 * 1024
    encoder = 8 * (attention + mlp + 2 * 512)
    decoder = 8 * (2 * attention + mlp + 3 * 512)
    outside = 2 * 32128 * 512 + 2 * 6 * 32 + 2 * 512
    assert encoder + decoder + outside == 76_961_152
    shapes = (shape for shape, _ in parameters_of(type(tiny_config)()).values())
    assert sum(int(np.prod(shape)) for shape in shapes) == 76_961_152


def test_initial_scales(tiny):
    """Standard deviations: 1 of the embedding, D^-1/2 of kernels, (D C)^-1/2 of queries."""
    params = flat(tiny[1])
    expected = {
        "token_embedder.embedding": 1.0,
        "encoder.layers_0.attention.key.kernel": 16**-0.5,
        "encoder.layers_0.attention.query.kernel": (16 * 4) ** -0.5,
        "encoder.layers_0.attention.out.kernel": (2 * 4) ** -0.5,
        "decoder.layers_1.mlp.wi_1.kernel": 16**-0.5,
        "decoder.layers_1.mlp.wo.kernel": 32**-0.5,
        "decoder.logits_dense.kernel": 16**-0.5,
    }
    # 128 to 512 draws each: 2 to 6 % of standard error.
    deviations = {name: float(np.std(params[name])) for name in expected}
    assert deviations == pytest.approx(expected, rel=0.2)
    assert np.all(params["encoder.encoder_norm.scale"] == 1)


def test_the_tied_head_is_the_embedding_over_the_root_of_its_width(tiny, tiny_config):
    config = dataclasses.replace(tiny_config, logits_via_embedding=True)
    x_BTD = np.linspace(-2, 2, 32).reshape(1, 2, 16)
    logits = T5Student(config).module.apply({"params": tiny[1]}, x_BTD, method="logits")
    expected = x_BTD @ np.asarray(tiny[1]["token_embedder"]["embedding"]).T / 4
    np.testing.assert_allclose(logits, expected, atol=1e-5)


# What may look at what: every token stands in one place only, so that the gradient with respect to
# its embedding is the gradient with respect to that place. Forbidden ones are 0, not small.


def influence(tiny, *arrays):
    """|d logits[b, t] / d embedding of token v|, summed: [T, V] for the one row."""
    model, params = tiny
    projection = np.random.default_rng(0).normal(size=model.config.vocab_size)

    def projected(embedding):
        changed = params | {"token_embedder": {"embedding": embedding}}
        return (model.module.apply({"params": changed}, *arrays) @ projection)[0]

    gradient = jax.jit(jax.jacrev(projected))(params["token_embedder"]["embedding"])
    return np.abs(gradient).sum(axis=-1)


def test_a_decoder_position_sees_the_past_alone(tiny):
    decoder = [2, 3, 4, 5]
    seen = influence(tiny, np.array([[10, 11]]), np.array([decoder]), np.array([[3, 4, 5, 1]]))
    np.testing.assert_array_equal(seen[:, decoder] > 0, np.tril(np.ones((4, 4), bool)))
    assert np.all(seen[:, [10, 11]] > 0)


def test_padding_is_never_looked_at(tiny):
    # Token 0 stands on padding alone; the decoder starts with token 2 here.
    encoder, decoder = np.array([[10, 11, 12, 0, 0]]), np.array([[2, 3, 4, 0, 0]])
    seen = influence(tiny, encoder, decoder, np.array([[3, 4, 1, 0, 0]]))
    assert np.all(seen[:3, 0] == 0)
    assert np.all(seen[2, [10, 11, 12, 2, 3, 4]] > 0)


def test_packed_examples_do_not_see_each_other(tiny):
    seen = influence(
        tiny,
        np.array([[10, 11, 12, 13, 0]]),
        np.array([[2, 3, 4, 5, 0]]),
        np.array([[3, 1, 5, 1, 0]]),
        np.array([[1, 1, 2, 2, 0]]),
        np.array([[1, 1, 2, 2, 0]]),
    )
    first, second = [10, 11, 2, 3], [12, 13, 4, 5]
    assert np.all(seen[:2, [*second, 0]] == 0) and np.all(seen[2:4, [*first, 0]] == 0)
    assert np.all(seen[1, first] > 0) and np.all(seen[3, second] > 0)


def test_packing_does_not_change_the_logits(tiny, forward):
    alone = forward(
        *tiny,
        np.array([[10, 11, 12, 0], [13, 14, 0, 0]]),
        np.array([[0, 3, 0], [0, 5, 6]]),
        np.array([[3, 1, 0], [5, 6, 1]]),
    )
    packed = forward(
        *tiny,
        np.array([[10, 11, 12, 13, 14, 0]]),
        np.array([[0, 3, 0, 5, 6, 0]]),
        np.array([[3, 1, 5, 6, 1, 0]]),
        np.array([[1, 1, 1, 2, 2, 0]]),
        np.array([[1, 1, 2, 2, 2, 0]]),
    )
    np.testing.assert_allclose(packed[0, :2], alone[0, :2], atol=1e-5)
    np.testing.assert_allclose(packed[0, 2:5], alone[1], atol=1e-5)


# Dropout and activations --------------------------------------------------------------------------

ARRAYS = [np.array([[10, 11, 12, 13]]), np.array([[0, 3, 4]]), np.array([[3, 4, 1]])]


def test_dropout_is_off_unless_asked_for(tiny, tiny_config, forward):
    config = dataclasses.replace(tiny_config, dropout_rate=0.5)
    np.testing.assert_array_equal(
        forward(T5Student(config), tiny[1], *ARRAYS), forward(*tiny, *ARRAYS)
    )


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_acts_everywhere_by_its_key(scan_layers, tiny, tiny_config, forward):
    params = stack_layers(tiny[1]) if scan_layers else tiny[1]
    config = dataclasses.replace(tiny_config, scan_layers=scan_layers, dropout_rate=0.5)

    @jax.jit
    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return T5Student(config).module.apply(
            {"params": params}, *ARRAYS, enable_dropout=True, rngs=rngs
        )

    assert np.all(np.abs(dropped(0) - forward(*tiny, *ARRAYS)).max(axis=-1) > 1e-2)
    assert np.all(np.abs(dropped(0) - dropped(1)).max(axis=-1) > 1e-2)
    np.testing.assert_array_equal(dropped(0), dropped(0))


def test_scanned_layers_drop_different_units(tiny_config):
    """Each of two layers adds its own positive number to every unit that it does not drop.

    With the embedding's mask that makes 7 sums above 0; with one mask for both layers 3.
    """
    config = dataclasses.replace(
        tiny_config, emb_dim=64, vocab_size=64, scan_layers=True, dropout_rate=0.5
    )
    shapes = jax.eval_shape(T5Student(config).init, jax.random.key(0))["params"]
    constants = {"scale": 1.0, "embedding": 1.0, "wi_0": 1 / 64, "wi_1": 1 / 64, "wo": 1 / 32}

    def fill(path, leaf):
        names = [key.key for key in path]
        if "logits_dense" in names:
            return np.eye(64)
        # Attention adds nothing.
        return np.full(leaf.shape, sum(constants.get(name, 0.0) for name in names))

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    rngs = {"dropout": jax.random.key(0)}
    apply = jax.jit(partial(T5Student(config).module.apply, enable_dropout=True, rngs=rngs))
    logits = apply({"params": params}, *ARRAYS)
    assert len(set(np.asarray(logits[0, 0]).round(4)) - {0.0}) > 3


def test_rematerialised_layers_drop_the_same_units(tiny, tiny_config):
    params, rngs = stack_layers(tiny[1]), {"dropout": jax.random.key(0)}

    def gradient(remat):
        config = dataclasses.replace(tiny_config, scan_layers=True, remat=remat, dropout_rate=0.5)
        apply = partial(T5Student(config).module.apply, enable_dropout=True, rngs=rngs)
        return jax.jit(jax.grad(lambda p: jnp.sum(apply({"params": p}, *ARRAYS) ** 2)))(params)

    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-3),
        gradient("full"),
        gradient("none"),
    )


# bfloat16 -----------------------------------------------------------------------------------------


def test_bfloat16_activations_give_float32_logits(tiny, tiny_config, forward):
    config = dataclasses.replace(tiny_config, dtype="bfloat16", scan_layers=True)
    logits = forward(T5Student(config), stack_layers(tiny[1]), *ARRAYS)
    plain = forward(*tiny, *ARRAYS)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits: rounding is seen, and no more than rounding.
    assert 1e-4 < np.abs(logits - plain).max() < 0.05 * np.abs(plain).max()


# XLA keeps sums that it fuses in float32, so a bfloat16 residual is rounded at other places.
@pytest.mark.parametrize(("residual_dtype", "atol"), [("float32", 1e-6), ("bfloat16", 0.05)])
def test_scan_changes_nothing_in_bfloat16(residual_dtype, atol, tiny, tiny_config, forward):
    config = dataclasses.replace(tiny_config, dtype="bfloat16", residual_dtype=residual_dtype)
    scanned = T5Student(dataclasses.replace(config, scan_layers=True, remat="full"))
    logits = forward(T5Student(config), tiny[1], *ARRAYS)
    np.testing.assert_allclose(forward(scanned, stack_layers(tiny[1]), *ARRAYS), logits, atol=atol)


def test_float32_activations_round_nothing_but_the_residual(tiny, tiny_config, forward):
    config = dataclasses.replace(tiny_config, residual_dtype="bfloat16")
    difference = np.abs(
        forward(T5Student(config), tiny[1], *ARRAYS) - forward(*tiny, *ARRAYS)
    ).max()
    assert 1e-4 < difference < 0.1


def test_a_cached_step_has_the_same_residual(tiny, tiny_config, forward):
    """With a residual in the thousands a token's logits are those of the whole row, in bfloat16."""
    config = dataclasses.replace(tiny_config, dtype="bfloat16")
    embedding = 2000 * tiny[1]["token_embedder"]["embedding"]
    params = tiny[1] | {"token_embedder": {"embedding": embedding}}
    model, (encoder, decoder, targets) = T5Student(config), ARRAYS
    expected = forward(model, params, encoder, decoder, targets)
    prompts = model.prefill(params, encoder)
    ring = empty_ring(model, 1, 1, 3)
    step = jax.jit(model.step)
    for t in range(3):
        ages = np.array([t])
        logits, ring = step(params, decoder[:, t : t + 1], ages, t, prompts, ring)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=1e-4)


@pytest.fixture(scope="module")
def deep(tiny_config):
    """12 + 12 layers whose residual starts in the thousands, where bfloat16 steps by 8 to 32."""
    config = dataclasses.replace(
        tiny_config, num_encoder_layers=12, num_decoder_layers=12, scan_layers=True
    )
    params = jax.jit(T5Student(config).init)(jax.random.key(0))["params"]
    embedding = 4000 * params["token_embedder"]["embedding"]
    assert 1e3 < np.median(np.abs(embedding)) < np.abs(embedding).max() < 2e4
    return config, params | {"token_embedder": {"embedding": embedding}}


@pytest.fixture(scope="module")
def copying():
    rows = np.random.default_rng(0).integers(2, 24, (8, 6)).astype(np.int32)
    return rows, np.pad(rows, ((0, 0), (1, 0)))[:, :-1], rows


def test_a_float32_residual_is_closer_to_float32(deep, copying, forward):
    config, params = deep

    def error(residual_dtype):
        half = dataclasses.replace(config, dtype="bfloat16", residual_dtype=residual_dtype)
        return np.sqrt(np.mean((forward(T5Student(half), params, *copying) - exact) ** 2))

    exact = forward(T5Student(config), params, *copying)
    assert error("float32") < 0.1 * error("bfloat16")


def test_a_deep_model_of_large_activations_trains_in_bfloat16(deep, copying):
    config, params = deep
    model = T5Student(dataclasses.replace(config, dtype="bfloat16", remat="full"))
    optimizer = optax.adam(1e-2)

    def loss_of(params):
        logits = model.module.apply({"params": params}, *copying)
        return jnp.mean(cross_entropy(logits, copying[2]))

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss, optax.tree.norm(gradient)

    state, history = optimizer.init(params), []
    for _ in range(30):
        params, state, *numbers = step(params, state)
        history.append(numbers)
    assert np.all(np.isfinite(history))
    losses = [float(loss) for loss, _ in history]
    assert losses[0] > 0.9 * np.log(24) and losses[-1] < 0.7 * losses[0]
