"""Tests of the schedules and the optimizers, against literals and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cot_flax.errors import UserError
from cot_flax.students.parameters import stack_layers
from cot_flax.training import optimizers

pytestmark = pytest.mark.filterwarnings("error")


def values(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_constant():
    assert values(optimizers.constant(2.0), 0, 1, 10**6) == [2, 2, 2]
    warmed = optimizers.constant(2.0, warmup_steps=10)
    assert values(warmed, 0, 5, 10, 10**6) == pytest.approx([0, 1, 2, 2])


def test_warmup_cosine():
    schedule = optimizers.warmup_cosine(2.0, 110, warmup_steps=10, final_fraction=0.1)
    # A third of the way the cosine is 1/2, half-way 0, at the end and after it -1.
    expected = [0, 1, 2, 0.2 + 1.8 * 0.75, 1.1, 0.2, 0.2]
    steps = (0, 5, 10, 10 + 100 / 3, 60, 110, 500)
    assert values(schedule, *steps) == pytest.approx(expected, rel=1e-5)
    assert values(optimizers.warmup_cosine(2.0, 100), 0, 50, 100) == pytest.approx([2, 1, 0])


@pytest.mark.parametrize("warmup", [100, 101])
def test_a_warmup_that_never_ends_is_refused(warmup):
    with pytest.raises(UserError, match=f"got WARMUP_STEPS {warmup} of TRAIN_STEPS 100"):
        optimizers.warmup_cosine(1.0, 100, warmup_steps=warmup)
    optimizers.warmup_cosine(1.0, 100, warmup_steps=99)


def test_inverse_sqrt():
    schedule = optimizers.inverse_sqrt(0.01, warmup_steps=100)
    assert values(schedule, 0, 100, 400, 10**4) == pytest.approx([0.01, 0.01, 0.005, 0.001])


@pytest.mark.parametrize(
    ("accumulation", "factor"), [(30, 0.997), (20, 0.994), (6, 0.933), (3, 0.75), (1, 0.0)]
)
def test_fu2023_ends_where_the_papers_code_does(accumulation, factor):
    # 10 epochs of 800 optimizer steps; the factors are those of shared/methods.md.
    schedule = optimizers.fu2023_cosine(5e-4, 8000, accumulation)
    assert values(schedule, 8000) == [pytest.approx(5e-4 * factor, abs=5e-4 * 6e-4)]
    assert values(schedule, 0, 5, 10) == pytest.approx([0, 2.5e-4, 5e-4])


def train(optimizer, params, gradients):
    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.transform.init)(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


def clipped(gradient, norm):
    return gradient * min(1.0, norm / np.sqrt(np.sum(gradient**2)))


def rms(x):
    return np.sqrt(np.mean(x**2))


W = np.array([[1.0, -2.0], [0.5, 3.0]])
GRADIENTS = [np.array([[0.1, -0.2], [0.3, 0.0]]), np.array([[3.0, 4.0], [-12.0, 0.0]])]


@pytest.mark.parametrize("clip_norm", [None, 1.3])
def test_adamw_against_numpy(clip_norm):
    optimizer = optimizers.adamw(
        lambda step: 0.1 / (step + 1), b1=0.8, b2=0.9, weight_decay=0.05, clip_norm=clip_norm
    )
    w, m, v = W, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        g = gradient if clip_norm is None else clipped(gradient, clip_norm)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        update = m / (1 - 0.8**step) / (np.sqrt(v / (1 - 0.9**step)) + 1e-8)
        w = w - 0.1 / step * (update + 0.05 * w)
    result = train(optimizer, {"w": jnp.asarray(W)}, [{"w": jnp.asarray(g)} for g in GRADIENTS])
    np.testing.assert_allclose(result["w"], w, rtol=1e-5)


def adafactor_by_numpy(w, gradients, schedule, *, factored, weight_decay=0.0, scaled=True):
    """Shafer & Stern 2018, algorithms 4 and 5, with relative step sizes and decay 0.8."""
    rows, columns, moment = 0.0, 0.0, 0.0
    for step, g in enumerate(gradients, 1):
        kept = 1 - step**-0.8
        squares = g**2 + 1e-30
        if factored:
            rows = kept * rows + (1 - kept) * squares.mean(axis=1, keepdims=True)
            columns = kept * columns + (1 - kept) * squares.mean(axis=0, keepdims=True)
            moment = rows * columns / rows.mean()
        else:
            moment = kept * moment + (1 - kept) * squares
        update = g / np.sqrt(moment)
        update = update / max(1.0, rms(update))
        size = max(1e-3, rms(w)) if scaled else 1.0
        w = w - schedule(step - 1) * size * update - weight_decay * w
    return w


@pytest.mark.parametrize(
    ("shape", "factored"), [((128, 130), True), ((127, 130), False), ((256,), False)]
)
def test_adafactor_against_numpy(shape, factored):
    rng = np.random.default_rng(0)
    w = 3 * rng.normal(size=shape)
    # The later gradients are larger, so that the update is clipped.
    gradients = [scale * rng.normal(size=shape) for scale in (1, 5, 20)]
    schedule = lambda step: 0.1 / (step + 1)  # noqa: E731
    expected = adafactor_by_numpy(w, gradients, schedule, factored=factored, weight_decay=0.01)
    optimizer = optimizers.adafactor(schedule, weight_decay=0.01)
    result = train(optimizer, {"w": jnp.asarray(w)}, [{"w": jnp.asarray(g)} for g in gradients])
    np.testing.assert_allclose(result["w"], expected, rtol=1e-3, atol=1e-4)


def test_adafactor_without_parameter_scale_is_paper_4s():
    """lr 5e-5 constant, gradients clipped to a norm of 0.8, every matrix factored."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 5))
    gradients = [scale * rng.normal(size=w.shape) for scale in (0.01, 1, 5)]
    optimizer = optimizers.adafactor(
        optimizers.constant(5e-5), clip_norm=0.8, parameter_scale=False, smallest_factored=1
    )
    result = train(optimizer, {"w": jnp.asarray(w)}, [{"w": jnp.asarray(g)} for g in gradients])
    expected = adafactor_by_numpy(
        w, [clipped(g, 0.8) for g in gradients], lambda _: 5e-5, factored=True, scaled=False
    )
    moved = np.asarray(result["w"], np.float64) - w
    np.testing.assert_allclose(moved, expected - w, rtol=0.02, atol=1e-7)  # float32 of w
    scaled = adafactor_by_numpy(w, gradients, lambda _: 5e-5, factored=True)
    assert not np.allclose(scaled - w, expected - w, rtol=0.05)


def test_adafactor_with_momentum_means_its_updates():
    gradients = [np.array([1.0, -2.0]), np.array([3.0, 1.0])]
    optimizer = optimizers.adafactor(
        optax.constant_schedule(0.1), momentum=0.9, parameter_scale=False
    )
    result = train(optimizer, {"w": jnp.zeros(2)}, [{"w": jnp.asarray(g)} for g in gradients])
    first = np.sign(gradients[0])  # the moment is the square of the only gradient
    kept = 1 - 2**-0.8
    second = gradients[1] / np.sqrt(kept * gradients[0] ** 2 + (1 - kept) * gradients[1] ** 2)
    second /= max(1.0, rms(second))
    one = 0.1 * first
    two = 0.9 * one + 0.1 * second
    np.testing.assert_allclose(result["w"], -0.1 * (one + two), rtol=1e-4)


def test_adafactor_moves_a_parameter_of_zeros():
    # The scale's floor 1e-3, times the rate 0.5, times the sign of the gradient.
    result = train(
        optimizers.adafactor(optax.constant_schedule(0.5)),
        {"w": jnp.zeros(2)},
        [{"w": jnp.array([4.0, -0.1])}],
    )
    np.testing.assert_allclose(result["w"], [-5e-4, 5e-4], rtol=1e-5)


def test_adafactor_clips_the_global_norm():
    first, second = np.array([0.1, -0.2]), np.array([300.0, 400.0])
    params, schedule = {"w": jnp.ones(2)}, optax.constant_schedule(0.1)
    optimizer = optimizers.adafactor(schedule, clip_norm=1.0)
    result = train(optimizer, params, [{"w": jnp.asarray(g)} for g in (first, second)])
    gradients = [first, np.array([0.6, 0.8])]
    expected = adafactor_by_numpy(np.ones(2), gradients, schedule, factored=False)
    np.testing.assert_allclose(result["w"], expected, rtol=1e-5)
    unclipped = adafactor_by_numpy(np.ones(2), [first, second], schedule, factored=False)
    assert not np.allclose(unclipped, expected, rtol=1e-4)


def unrolled_tree(seed):
    """Stacks of 2 and 3 layers of very different scales, with a matrix that is factored."""
    rng = np.random.default_rng(seed)

    def layers(count):
        return {
            f"layers_{i}": {
                "wide": jnp.asarray(10.0**i * rng.normal(size=(128, 129))),
                "scale": jnp.asarray(10.0**-i * rng.normal(size=4)),
            }
            for i in range(count)
        }

    return {
        "encoder": layers(2) | {"norm": jnp.asarray(rng.normal(size=4))},
        "decoder": layers(3),
        "token_embedder": {"embedding": jnp.asarray(rng.normal(size=(130, 128)))},
    }


def test_adafactor_treats_scanned_layers_one_by_one():
    optimizer = optimizers.adafactor(lambda step: 0.1 / (step + 1), weight_decay=0.01)
    params, gradients = unrolled_tree(0), [unrolled_tree(1), unrolled_tree(2)]
    unrolled = train(optimizer, params, gradients)
    scanned = train(optimizer, stack_layers(params), [stack_layers(g) for g in gradients])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        scanned,
        stack_layers(unrolled),
    )


def test_so_it_does_where_layers_are_all_there_is():
    """As with LoRA, whose trainable tree has nothing outside the stacks."""
    optimizer = optimizers.adafactor(lambda step: 0.1 / (step + 1), clip_norm=1.0)
    params, *gradients = (
        {"encoder": {k: v for k, v in tree["encoder"].items() if k != "norm"}}
        | {"decoder": tree["decoder"]}
        for tree in map(unrolled_tree, range(3))
    )
    unrolled = train(optimizer, params, gradients)
    scanned = train(optimizer, stack_layers(params), [stack_layers(g) for g in gradients])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        scanned,
        stack_layers(unrolled),
    )
