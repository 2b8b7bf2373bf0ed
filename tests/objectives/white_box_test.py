"""Tests of the losses against a teacher that runs beside the student, by NumPy in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_flax.errors import UserError
from cot_flax.objectives.head_loss import distillation_loss
from cot_flax.objectives.losses import (
    Objective,
    WhiteBox,
    hidden_mse,
    logit_mse,
    softmax_kl,
    topk_kl,
)

from .head_loss_test import RULES, assert_close, case

B, T, V, D, E = 2, 3, 7, 4, 5
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, B, T, V)) * 2
HIDDEN, THEIRS = RNG.normal(size=(B, T, D)), RNG.normal(size=(B, T, E))
PROJECTION = RNG.normal(size=(D, E))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def gradient_of(function, *arguments):
    return np.asarray(jax.grad(lambda x: jnp.sum(function(x)))(jnp.asarray(arguments[0])))


def differences(function, x, step=1e-5):
    """The gradient of the sum of a float64 function, by central differences."""
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[place] = step
        found[place] = (function(x + nudge).sum() - function(x - nudge).sum()) / (2 * step)
    return found


def kl_by_numpy(student, teacher, temperature=1.0):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (p * np.log(p / q)).sum(axis=-1)


class TestSoftmaxKl:
    def test_scalar(self):
        """p = (1/2, 1/4, 1/4) against q = (1/4, 1/4, 1/2): 1/2 log 2 - 1/4 log 2."""
        student, teacher = np.log([0.25, 0.25, 0.5]) + 3, np.log([0.5, 0.25, 0.25]) - 1
        found = softmax_kl(student[None, None], teacher[None, None])
        assert found.shape == (1, 1) and found.dtype == jnp.float32
        assert float(found[0, 0]) == pytest.approx(0.25 * math.log(2), rel=1e-5)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    def test_batched(self, temperature):
        found = softmax_kl(STUDENT, TEACHER, temperature=temperature)
        np.testing.assert_allclose(found, kl_by_numpy(STUDENT, TEACHER, temperature), rtol=1e-4)

    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_gradient(self, temperature):
        def loss(z):
            return softmax_kl(z, TEACHER, temperature=temperature)

        p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
        np.testing.assert_allclose(gradient_of(loss, STUDENT), (q - p) / temperature, atol=1e-6)
        by_steps = differences(lambda z: kl_by_numpy(z, TEACHER, temperature), STUDENT)
        np.testing.assert_allclose(gradient_of(loss, STUDENT), by_steps, atol=1e-5)

    def test_mask(self):
        """A token that the teacher gives no probability adds nothing, nor anything not finite."""
        teacher = TEACHER.copy()
        teacher[..., 2] = -np.inf
        found = softmax_kl(STUDENT, teacher)
        p, q = softmax(np.delete(teacher, 2, -1)), np.delete(softmax(STUDENT), 2, -1)
        np.testing.assert_allclose(found, (p * np.log(p / q)).sum(axis=-1), rtol=1e-4)
        assert np.all(np.isfinite(gradient_of(lambda z: softmax_kl(z, teacher), STUDENT)))

    def test_limits(self):
        """0 at a match, whatever the shift; the top-k KL of all ids; half the MSE when hot."""
        np.testing.assert_allclose(softmax_kl(TEACHER + 5, TEACHER), 0, atol=1e-6)
        ids = np.broadcast_to(np.arange(V), TEACHER.shape)
        whole = topk_kl(STUDENT, ids, np.log(softmax(TEACHER)))
        np.testing.assert_allclose(softmax_kl(STUDENT, TEACHER), whole, rtol=1e-4)
        # Of centred logits T^2 KL becomes half their mean square difference (Hinton et al. 2015).
        student, teacher = (z - z.mean(axis=-1, keepdims=True) for z in (STUDENT, TEACHER))
        hot = 1e2**2 * kl_by_numpy(student, teacher, 1e2)
        np.testing.assert_allclose(hot, np.mean((student - teacher) ** 2, axis=-1) / 2, rtol=0.05)


class TestLogitMse:
    def test_scalar(self):
        found = logit_mse(np.array([[[1.0, -2.0]]]), np.array([[[4.0, -3.0]]]))
        assert found.shape == (1, 1) and float(found[0, 0]) == (9 + 1) / 2

    def test_batched_and_gradient(self):
        mean = np.mean((STUDENT - TEACHER) ** 2, axis=-1)
        np.testing.assert_allclose(logit_mse(STUDENT, TEACHER), mean, rtol=1e-5)
        found = gradient_of(lambda z: logit_mse(z, TEACHER), STUDENT)
        np.testing.assert_allclose(found, 2 * (STUDENT - TEACHER) / V, rtol=1e-5)

    def test_limits(self):
        np.testing.assert_array_equal(logit_mse(TEACHER, TEACHER), 0)
        np.testing.assert_allclose(logit_mse(TEACHER + 2, TEACHER), 4, rtol=1e-4)  # sees a shift


class TestHiddenMse:
    def test_scalar(self):
        """(1, 2) W = (1, 2, 3) against (0, 2, 1): (1 + 0 + 4) / 3."""
        projection = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        found = hidden_mse(np.array([[[1.0, 2.0]]]), np.array([[[0.0, 2.0, 1.0]]]), projection)
        assert found.shape == (1, 1) and float(found[0, 0]) == pytest.approx(5 / 3)

    def test_batched(self):
        expected = np.mean((HIDDEN @ PROJECTION - THEIRS) ** 2, axis=-1)
        found = hidden_mse(HIDDEN, THEIRS, PROJECTION)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_gradients_of_hidden_states_and_projection(self):
        error = 2 * (HIDDEN @ PROJECTION - THEIRS) / E
        found = gradient_of(lambda h: hidden_mse(h, THEIRS, PROJECTION), HIDDEN)
        np.testing.assert_allclose(found, error @ PROJECTION.T, rtol=1e-4, atol=1e-6)
        found = gradient_of(lambda w: hidden_mse(HIDDEN, THEIRS, w), PROJECTION)
        by_hand = np.einsum("btd,bte->de", HIDDEN, error)
        np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)

    def test_limits(self):
        np.testing.assert_allclose(
            hidden_mse(HIDDEN, HIDDEN @ PROJECTION, PROJECTION), 0, atol=1e-10
        )
        low = hidden_mse(jnp.asarray(HIDDEN, jnp.bfloat16), THEIRS, PROJECTION)
        assert low.dtype == jnp.float32


# The objective, and through the head --------------------------------------------------------------

OBJECTIVES = {
    "kl": Objective(white_box=WhiteBox("softmax_kl")),
    "kl, warm, mixed": Objective(
        z_loss=0.01, label_smoothing=0.1, white_box=WhiteBox("softmax_kl", 0.7, 2.0)
    ),
    "kl beside rows": Objective(kl_weight=0.5, white_box=WhiteBox("softmax_kl", 0.25)),
    "mse": Objective(white_box=WhiteBox("logit_mse", 0.5)),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def teacher_of(batch=4, length=7, vocab=48, width=11):
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((batch, length, width)).astype(np.float32)
    return hidden, rng.standard_normal((width, vocab)).astype(np.float32) / math.sqrt(width)


@every_objective
def test_the_tiled_loss_equals_the_dense_one(objective):
    hidden, head, labels = case()
    white_box = teacher_of()
    targets, weights, ids, logprobs = labels
    theirs = white_box[0] @ white_box[1]

    def dense(hidden, head):
        return jnp.sum(objective(hidden @ head, targets, ids, logprobs, theirs) * weights)

    def tiled(hidden, head):
        return distillation_loss(
            hidden, head, *labels, objective=objective, white_box=white_box, tiles=5
        )

    whole = jax.jit(jax.value_and_grad(dense, (0, 1)))(hidden, head)
    (value, sums), gradients = jax.jit(jax.value_and_grad(tiled, (0, 1), has_aux=True))(
        hidden, head
    )
    assert_close((value, gradients), whole)
    loss = softmax_kl if objective.white_box.loss == "softmax_kl" else logit_mse
    settings = {"temperature": objective.white_box.temperature} if loss is softmax_kl else {}
    alone = jnp.sum(loss(hidden @ head, theirs, **settings) * weights)
    assert float(sums[objective.white_box.loss]) == pytest.approx(float(alone), rel=1e-4)
    log_p = jax.nn.log_softmax(theirs)
    expected = -np.sum(np.take_along_axis(log_p, targets[..., None], 2)[..., 0] * weights)
    assert float(sums["teacher_cross_entropy"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_objective_is_the_share_that_it_says():
    """0.7 * T^2 KL + 0.3 * (what it is without the teacher), and z_loss whole."""
    objective = OBJECTIVES["kl, warm, mixed"]
    targets = np.zeros((B, T), np.int32)
    rest = dataclasses.replace(objective, white_box=None, z_loss=0.0)
    without = rest(STUDENT, targets, None, None)
    log_z = np.log(np.exp(STUDENT).sum(axis=-1))
    expected = 0.7 * 4 * kl_by_numpy(STUDENT, TEACHER, 2.0) + 0.3 * without + 0.01 * log_z**2
    np.testing.assert_allclose(
        objective(STUDENT, targets, None, None, TEACHER), expected, rtol=1e-4
    )


def test_no_more_than_a_tile_of_both_logits_is_held():
    hidden, head, labels = case(batch=8, length=64, width=8, vocab=4096)
    white_box = teacher_of(batch=8, length=64, vocab=4096, width=8)

    def loss(hidden, head):
        return distillation_loss(
            hidden, head, *labels, objective=OBJECTIVES["kl"], white_box=white_box
        )[0]

    program = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head).compile()
    assert program.memory_analysis().temp_size_in_bytes < 8 * 64 * 4096 * 4


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")
@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("name", ["kl, warm, mixed", "mse"])
def test_eight_devices_give_the_numbers_of_one(data, model, name):
    hidden, head, labels = case(batch=8)
    white_box, objective = teacher_of(batch=8), OBJECTIVES[name]

    def loss(hidden, head, labels, white_box):
        return distillation_loss(hidden, head, *labels, objective=objective, white_box=white_box)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    expected = jax.jit(gradient)(hidden, head, labels, white_box)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(data, model), ("data", "model"))
    rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "model"))
    with jax.set_mesh(mesh), partitioning.axis_rules(RULES):
        places = (rows, columns, rows, (rows, columns))
        arrays = jax.device_put((hidden, head, labels, white_box), places)
        assert_close(jax.jit(gradient)(*arrays), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "cosine"}, "white-box loss 'cosine'; expected one of"),
        ({"loss": "softmax_kl", "weight": 0.0}, r"weight 0\.0; expected above 0"),
        ({"loss": "softmax_kl", "weight": 1.5}, r"weight 1\.5"),
        ({"loss": "softmax_kl", "temperature": 0.0}, r"temperature 0\.0"),
    ],
)
def test_refuses_values_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        WhiteBox(**settings)
