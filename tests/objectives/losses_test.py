"""Tests of the objectives, against arithmetic by hand and NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_flax.errors import UserError
from cot_flax.objectives.losses import TAILS, Objective, cross_entropy, teacher_metrics, topk_kl
from cot_flax.objectives.statistics import statistics_of

SETTINGS = [(tail, 1.0) for tail in TAILS] + [("bucket", 2.0), ("renormalize", 2.0)]
every_setting = pytest.mark.parametrize(("tail", "temperature"), SETTINGS)

# One position by hand: the student's q over V = 5, the teacher's p on the ids 1 and 2.
Q = (0.05, 0.4, 0.3, 0.2, 0.05)
IDS, P = (1, 2), (0.5, 0.3)
BY_HAND = {
    ("bucket", 1.0): 0.5 * math.log(0.5 / 0.4) + 0.2 * math.log(0.2 / 0.3),
    ("ignore", 1.0): 0.5 * math.log(0.5 / 0.4),
    ("renormalize", 1.0): 0.625 * math.log(0.625 / 0.4) + 0.375 * math.log(0.375 / 0.3),
}

# A batch: V = 7, K = 3, B = 2, T = 2, with absent entries, a one-hot row and one without teacher;
# id 0 is as legal as any.
LOGITS = np.array(
    [
        [[0.5, -1.0, 2.0, 0.25, 1.5, -0.5, 0.0], [1.0, 3.0, -2.0, 0.5, 0.0, 0.75, -1.0]],
        [[-1.0, 0.5, 0.25, 4.0, 1.0, 0.0, 2.0], [0.0, 0.5, 1.0, 1.5, 2.0, -2.5, -3.0]],
    ]
)
TARGETS = np.array([[2, 1], [6, 0]])
TEACHER_IDS = np.array([[[2, 4, 6], [5, 0, -1]], [[3, -1, -1], [-1, -1, -1]]])
TEACHER_LOGPROBS = np.array(
    [[np.log([0.5, 0.25, 0.125]), [np.log(0.75), np.log(0.125), 0]], [[0, 0, 0], [0, 0, 0]]]
)
HAS_TEACHER = [[True, True], [True, False]]


def softmax(logits):
    exponentials = np.exp(logits - np.max(logits))
    return exponentials / exponentials.sum()


def tempered(probabilities, temperature):
    powers = np.asarray(probabilities) ** (1 / temperature)
    return powers / powers.sum()


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kl_of_position(logits, ids, logprobs, tail, temperature):
    """The definition of topk_kl, for one position that has a teacher."""
    present = [i for i in range(len(ids)) if ids[i] >= 0]
    p = np.exp([logprobs[i] for i in present])
    chosen = [ids[i] for i in present]
    q = softmax(logits)
    if tail == "ignore":
        return divergence(p, q[chosen])
    if tail == "renormalize":
        return divergence(tempered(p, temperature), tempered(q, temperature)[chosen])
    others = [v for v in range(len(q)) if v not in chosen]
    classes_p = [*p, max(1 - p.sum(), 0)]
    classes_q = [*q[chosen], q[others].sum()]
    return divergence(tempered(classes_p, temperature), tempered(classes_q, temperature))


def smoothed(target, size, smoothing):
    wanted = np.full(size, smoothing / (size - 1))
    wanted[target] = 1 - smoothing
    return wanted


def cross_entropy_of_position(logits, target, z_loss, smoothing):
    """T5X's compute_weighted_cross_entropy, for one position."""
    wanted = smoothed(target, len(logits), smoothing)
    log_z = math.log(np.exp(logits).sum())
    entropy = -sum(t * math.log(t) for t in wanted if t > 0)
    return -(wanted * (logits - log_z)).sum() + z_loss * log_z**2 - entropy


def position(q, ids, p):
    """Arrays [1, 1, ...] of one position, the logits shifted, since softmax ignores a shift."""
    with np.errstate(divide="ignore"):  # a probability of 0 has the logit -inf
        logits = np.log(q) + 1.75
    return np.array([[logits]]), np.array([[ids]]), np.log([[p]])


def soft_position(q, p, **kwargs):
    return float(topk_kl(*position(q, range(1, len(p) + 1), p), **kwargs)[0, 0])


def gradient_of(function, logits):
    return np.asarray(jax.grad(lambda z: jnp.sum(function(z)))(jnp.asarray(logits)))


def finite_differences(function, logits, step=1e-5):
    gradient = np.zeros_like(logits)
    for i in range(len(logits)):
        nudge = np.zeros_like(logits)
        nudge[i] = step
        gradient[i] = (function(logits + nudge) - function(logits - nudge)) / (2 * step)
    return gradient


class TestCrossEntropy:
    def test_scalar(self):
        logits = np.log([[[0.1, 0.2, 0.7]]]) + 3
        assert cross_entropy(logits, np.array([[2]])) == pytest.approx(-math.log(0.7), rel=1e-5)

    def test_z_loss_scalar(self):
        loss = cross_entropy(np.zeros((1, 1, 4)), np.array([[3]]), z_loss=0.5)
        assert loss == pytest.approx(math.log(4) + 0.5 * math.log(4) ** 2, rel=1e-6)

    @pytest.mark.parametrize("z_loss", [0.0, 0.25])
    @pytest.mark.parametrize("smoothing", [0.0, 0.125])
    def test_batched(self, z_loss, smoothing):
        loss = cross_entropy(LOGITS, TARGETS, z_loss=z_loss, label_smoothing=smoothing)
        expected = [
            [cross_entropy_of_position(z, t, z_loss, smoothing) for z, t in zip(*row, strict=True)]
            for row in zip(LOGITS, TARGETS, strict=True)
        ]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    def test_gradient(self):
        loss = lambda z: cross_entropy(z, np.array([[2]]), z_loss=0.25)  # noqa: E731
        logits = LOGITS[0, 0]
        q, log_z = softmax(logits), math.log(np.exp(logits).sum())
        expected = q - np.eye(7)[2] + 2 * 0.25 * log_z * q
        np.testing.assert_allclose(gradient_of(loss, [[logits]])[0, 0], expected, atol=1e-6)

    def test_gradient_with_smoothing(self):
        loss = lambda z: cross_entropy(z, np.array([[2]]), label_smoothing=0.1)  # noqa: E731
        expected = softmax(LOGITS[0, 0]) - smoothed(2, 7, 0.1)
        np.testing.assert_allclose(gradient_of(loss, LOGITS[:1, :1])[0, 0], expected, atol=1e-6)

    def test_smoothing_is_0_at_its_optimum(self):
        logits = np.log([[smoothed(2, 7, 0.1)]])
        assert cross_entropy(logits, np.array([[2]]), label_smoothing=0.1) == pytest.approx(
            0, abs=1e-6
        )

    @pytest.mark.parametrize(("target", "expected"), [(0, 0.0), (1, 2e4)])
    def test_limits(self, target, expected):
        logits = np.array([[[1e4, -1e4]]])
        assert cross_entropy(logits, np.array([[target]])) == expected


class TestTopkKl:
    @pytest.mark.parametrize(("setting", "expected"), BY_HAND.items())
    def test_scalar(self, setting, expected):
        tail, temperature = setting
        assert soft_position(Q, P, tail=tail, temperature=temperature) == pytest.approx(expected)

    def test_scalar_at_a_temperature(self):
        # At T = 2 probabilities become square roots, renormalised.
        p, q = np.array([0.49, 0.09, 0.42]), np.array([0.36, 0.16, 0.48])
        p, q = np.sqrt(p) / np.sqrt(p).sum(), np.sqrt(q) / np.sqrt(q).sum()
        value = soft_position((0.08, 0.36, 0.16, 0.4), (0.49, 0.09), temperature=2.0)
        assert value == pytest.approx((p * np.log(p / q)).sum(), abs=1e-6)
        # 0.32 and 0.18, renormalised 0.64 and 0.36, become 4/7 and 3/7; the student's roots are
        # taken over all of V.
        roots = np.array([0.1, 0.6, 0.2, 0.5, math.sqrt(0.34)])
        value = soft_position(roots**2, (0.32, 0.18), tail="renormalize", temperature=2.0)
        q = roots / roots.sum()
        expected = 4 / 7 * math.log(4 / 7 / q[1]) + 3 / 7 * math.log(3 / 7 / q[2])
        assert value == pytest.approx(expected, rel=1e-5)

    @every_setting
    def test_batched(self, tail, temperature):
        value = topk_kl(LOGITS, TEACHER_IDS, TEACHER_LOGPROBS, tail=tail, temperature=temperature)
        for place in [(0, 0), (0, 1), (1, 0)]:
            expected = kl_of_position(
                LOGITS[place], TEACHER_IDS[place], TEACHER_LOGPROBS[place], tail, temperature
            )
            assert value[place] == pytest.approx(expected, rel=1e-5), place

    @every_setting
    def test_mask(self, tail, temperature):
        """Absent entries count for nothing, whatever stands in their log-probabilities."""
        logits, ids, logprobs = position(Q, IDS, P)
        value = topk_kl(logits, ids, logprobs, tail=tail, temperature=temperature)
        ids = np.array([[[-1, 1, -1, 2, -1]]])
        logprobs = np.array([[[np.nan, np.log(0.5), 0.0, np.log(0.3), np.inf]]])
        padded = topk_kl(logits, ids, logprobs, tail=tail, temperature=temperature)
        np.testing.assert_allclose(padded, value, rtol=1e-6)

    @every_setting
    def test_mask_beside_a_forbidden_token(self, tail, temperature):
        """A token that nobody names may have the logit -inf."""
        logits, ids, logprobs = position((0.0, 0.4, 0.3, 0.3), (1, 2, -1, -1), (0.5, 0.3, 1.0, 1.0))

        def loss(z):
            return topk_kl(z, ids, logprobs, tail=tail, temperature=temperature)

        expected = kl_of_position(logits[0, 0], ids[0, 0], logprobs[0, 0], tail, temperature)
        assert loss(logits) == pytest.approx(expected, rel=1e-5)
        assert np.all(np.isfinite(gradient_of(loss, logits)))

    @every_setting
    def test_gradient(self, tail, temperature):
        for place in [(0, 0), (0, 1), (1, 0)]:
            ids, logprobs = TEACHER_IDS[place], TEACHER_LOGPROBS[place]
            gradient = gradient_of(
                lambda z, ids=ids, logprobs=logprobs: topk_kl(
                    z, ids[None, None], logprobs[None, None], tail=tail, temperature=temperature
                ),
                LOGITS[place][None, None],
            )
            expected = finite_differences(
                lambda z, ids=ids, logprobs=logprobs: kl_of_position(
                    z, ids, logprobs, tail, temperature
                ),
                LOGITS[place],
            )
            np.testing.assert_allclose(gradient[0, 0], expected, atol=2e-6)

    @pytest.mark.parametrize(
        ("tail", "temperature", "expected"),
        [
            # M q - p, with M = 0.8.
            ("ignore", 1.0, [0.04, 0.32 - 0.5, 0.24 - 0.3, 0.16, 0.04]),
            # q - p / M.
            ("renormalize", 1.0, [0.05, 0.4 - 0.625, 0.3 - 0.375, 0.2, 0.05]),
            # q - p on the k; elsewhere q less its share of 1 - M = 0.2 (q outside sums to 0.3).
            ("bucket", 1.0, [0.05 / 3, 0.4 - 0.5, 0.0, 0.2 / 3, 0.05 / 3]),
        ],
    )
    def test_closed_gradient(self, tail, temperature, expected):
        logits, ids, logprobs = position(Q, IDS, P)
        gradient = gradient_of(lambda z: topk_kl(z, ids, logprobs, tail=tail), logits)
        np.testing.assert_allclose(gradient[0, 0], expected, atol=1e-6)

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
    def test_bucket_is_0_at_a_match_with_no_gradient(self, temperature):
        # The rest, 0.2, lies elsewhere than a teacher's would: only k + 1 classes are compared.
        arrays = position((0.15, 0.5, 0.3, 0.01, 0.04), IDS, P)
        assert topk_kl(*arrays, temperature=temperature) == pytest.approx(0, abs=1e-6)
        gradient = gradient_of(
            lambda z: topk_kl(z, *arrays[1:], temperature=temperature), arrays[0]
        )
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_minimum_of_ignore_is_below_0(self):
        # At q = p / M: M log M, with M = 0.8.
        value = soft_position((0.0, 0.625, 0.375, 0.0, 0.0), P, tail="ignore")
        assert value == pytest.approx(0.8 * math.log(0.8))

    @pytest.mark.parametrize("tail", TAILS)
    def test_k_that_covers_the_vocabulary_gives_the_full_kl(self, tail):
        p, q = (0.4, 0.3, 0.2, 0.1), (0.1, 0.15, 0.25, 0.3, 0.2)
        full = divergence(p, q[1:])
        assert soft_position(q, p, tail=tail) == pytest.approx(full, rel=1e-5)
        arrays = position(q, (1, 2, 3, 4), p)
        gradient = gradient_of(lambda z: topk_kl(z, *arrays[1:], tail=tail), arrays[0])
        np.testing.assert_allclose(gradient[0, 0], np.array(q) - (0, *p), atol=1e-6)

    def test_whole_vocabulary_even_with_id_0_out_of_reach(self):
        # q(0) underflows: the student has no mass left for the class of the rest.
        logits = np.array([[[-200.0, math.log(0.5), math.log(0.5)]]])
        ids, logprobs = np.array([[[1, 2]]]), np.log([[[0.25, 0.75]]])
        for temperature in (1.0, 2.0):
            value = topk_kl(logits, ids, logprobs, temperature=temperature)
            expected = divergence(tempered((0.25, 0.75), temperature), (0.5, 0.5))
            assert value == pytest.approx(expected, rel=1e-5)
            gradient = gradient_of(
                lambda z, t=temperature: topk_kl(z, ids, logprobs, temperature=t), logits
            )
            assert np.all(np.isfinite(gradient))

    @pytest.mark.parametrize(
        ("temperature", "expected"),
        # Two classes: the token, 0.01, and the rest, 0.99.
        [(1.0, math.log(100)), (2.0, math.log(1 + math.sqrt(99)))],
    )
    def test_one_hot_rows_see_the_mass_elsewhere(self, temperature, expected):
        logits, ids, logprobs = position((0.49, 0.01, 0.25, 0.25), (1, -1), (1.0, 1.0))
        assert topk_kl(logits, ids, logprobs, temperature=temperature) == pytest.approx(
            expected, rel=1e-5
        )

    def test_one_hot_rows_have_the_gradient_of_cross_entropy(self):
        logits, ids, logprobs = position(Q, (1, -1), (1.0, 1.0))
        gradient = gradient_of(lambda z: topk_kl(z, ids, logprobs), logits)
        np.testing.assert_allclose(gradient[0, 0], Q - np.eye(5)[1], atol=1e-6)

    @pytest.mark.parametrize(
        ("tail", "temperature", "expected"),
        [
            ("bucket", 1.0, math.log(100)),
            ("ignore", 1.0, math.log(100)),
            ("renormalize", 1.0, math.log(100)),
            # Roots: (0.0775 + 0.0632) of (0.1407 + 0.9950) lie on the k.
            ("bucket", 2.0, math.log(1 + math.sqrt(0.99) / (math.sqrt(0.006) + math.sqrt(0.004)))),
        ],
    )
    def test_is_not_blind_to_mass_outside_the_k(self, tail, temperature, expected):
        # Renormalised over the k, 0.006 and 0.004 are the teacher's 0.6 and 0.4: a KL of 0.
        q, p = (0.0, 0.006, 0.004, 0.99), (0.6, 0.4)
        value = soft_position(q, p, tail=tail, temperature=temperature)
        assert value == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_a_sure_student_keeps_its_gradient(self, temperature):
        """1 - q rounds to 0 in float32, the logits of the others do not."""
        logits = np.array([[[0.0, 30.0, 0.0]]])
        ids, logprobs = np.array([[[1]]]), np.log([[[0.5]]])
        value = topk_kl(logits, ids, logprobs, temperature=temperature)
        log_q = np.array([-2 * math.exp(-30), math.log(2) - 30]) / temperature
        log_q -= math.log(np.exp(log_q).sum())
        p = tempered((0.5, 0.5), temperature)
        assert value == pytest.approx((p * (np.log(p) - log_q)).sum(), rel=1e-5)
        gradient = gradient_of(lambda z: topk_kl(z, ids, logprobs, temperature=temperature), logits)
        assert gradient[0, 0, 1] == pytest.approx(0.5 / temperature, rel=1e-4)

    def test_refuses_what_has_no_meaning(self):
        arrays = position(Q, IDS, P)
        with pytest.raises(ValueError, match="tail 'none'"):
            topk_kl(*arrays, tail="none")
        with pytest.raises(ValueError, match="'ignore' at temperature 2"):
            topk_kl(*arrays, tail="ignore", temperature=2.0)


numbers = st.floats(-6, 6, width=32)


@st.composite
def full_distributions(draw):
    """Logits of student and teacher over 6 tokens, and how many of the top the teacher gives."""
    student, teacher = (draw(st.lists(numbers, min_size=6, max_size=6)) for _ in range(2))
    return np.array(student), softmax(np.array(teacher)), draw(st.integers(1, 4))


jitted_kl = jax.jit(topk_kl, static_argnames=("tail", "temperature"))


@settings(deadline=None, max_examples=60)
@given(full_distributions())
def test_bucket_lies_between_0_and_the_full_kl(case):
    logits, p, k = case
    top = np.argsort(-p)[:k]
    ids = np.full(4, -1)
    ids[:k] = top
    logprobs = np.zeros(4)
    logprobs[:k] = np.log(p[top])
    arrays = logits[None, None], ids[None, None], logprobs[None, None]
    assert -1e-5 <= float(jitted_kl(*arrays)[0, 0]) <= divergence(p, softmax(logits)) + 1e-5
    assert float(jitted_kl(*arrays, temperature=2.0)[0, 0]) >= -1e-5


class TestObjective:
    @every_setting
    def test_positions_without_teacher_have_plain_cross_entropy(self, tail, temperature):
        def loss(logits):
            objective = Objective(1.0, tail, temperature)
            return objective(logits, TARGETS, TEACHER_IDS, TEACHER_LOGPROBS)

        plain = [
            [cross_entropy_of_position(z, t, 0, 0) for z, t in zip(*row, strict=True)]
            for row in zip(LOGITS, TARGETS, strict=True)
        ]
        value, gradient = loss(LOGITS), gradient_of(loss, LOGITS)
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))
        np.testing.assert_allclose(value[1, 1], plain[1][1], rtol=1e-5)
        expected = softmax(LOGITS[1, 1]) - np.eye(7)[0]
        np.testing.assert_allclose(gradient[1, 1], expected, atol=1e-6)
        assert not np.any(np.isclose(value, plain)[:1])

    @pytest.mark.parametrize("tail", ["bucket", "renormalize"])
    def test_temperature_squared_multiplies_loss_and_gradient(self, tail):
        logits, ids, logprobs = position(Q, IDS, P)
        teacher = (ids, logprobs)

        def tempered_kl(z):
            return topk_kl(z, *teacher, tail=tail, temperature=3.0)

        def loss(z):
            return Objective(1.0, tail, 3.0)(z, np.array([[3]]), *teacher)

        np.testing.assert_allclose(loss(logits), 9 * tempered_kl(logits), rtol=1e-5)
        np.testing.assert_allclose(
            gradient_of(loss, logits), 9 * gradient_of(tempered_kl, logits), atol=1e-6
        )

    def test_mixture_and_z_loss(self):
        """0.75 * 4 * KL_2 + 0.25 * CE + z_loss where there is a teacher, else CE + z_loss."""
        objective = Objective(0.75, temperature=2.0, z_loss=0.5, label_smoothing=0.125)
        loss = objective(LOGITS, TARGETS, TEACHER_IDS, TEACHER_LOGPROBS)
        for place in np.ndindex(2, 2):
            logits = LOGITS[place]
            expected = cross_entropy_of_position(logits, TARGETS[place], 0, 0.125)
            if HAS_TEACHER[place[0]][place[1]]:
                kl = kl_of_position(
                    logits, TEACHER_IDS[place], TEACHER_LOGPROBS[place], "bucket", 2.0
                )
                expected = 0.75 * 4 * kl + 0.25 * expected
            expected += 0.5 * math.log(np.exp(logits).sum()) ** 2
            assert loss[place] == pytest.approx(expected, rel=1e-5), place

    def test_cross_entropy_needs_no_teacher(self):
        objective = Objective(z_loss=0.25, label_smoothing=0.125)
        loss = objective(LOGITS[:1, :1], TARGETS[:1, :1], None, None)
        assert not objective.uses_teacher
        expected = cross_entropy_of_position(LOGITS[0, 0], 2, 0.25, 0.125)
        assert loss == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tail": "rest"}, "got tail 'rest'; expected one of"),
            ({"tail": "ignore", "temperature": 2.0}, "got tail 'ignore' at temperature 2.0"),
            ({"kl_weight": -0.1}, "got kl_weight -0.1; expected 0 to 1"),
            ({"kl_weight": 1.5}, "got kl_weight 1.5; expected 0 to 1"),
            ({"temperature": 0.0}, "got temperature 0.0; expected above 0"),
            ({"temperature": -1.0}, "got temperature -1.0; expected above 0"),
        ],
    )
    def test_refuses_values_out_of_range(self, change, message):
        with pytest.raises(UserError, match=message):
            Objective(**change)


def metrics_of(logits, ids, logprobs):
    return teacher_metrics(statistics_of(logits, None, ids), ids, logprobs)


class TestTeacherMetrics:
    def test_scalar(self):
        metrics = metrics_of(*position(Q, IDS, P))
        entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
        expected = {
            "kl": BY_HAND["bucket", 1.0],
            "teacher_entropy": entropy,
            "teacher_mass": 0.8,
            "student_mass": 0.7,
            "agreement": 1.0,
        }
        assert {k: float(v[0, 0]) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5)

    def test_batched(self):
        metrics = metrics_of(LOGITS, TEACHER_IDS, TEACHER_LOGPROBS)
        np.testing.assert_array_equal(metrics["agreement"].ravel()[:3], [1, 0, 1])
        np.testing.assert_allclose(metrics["teacher_mass"].ravel()[:3], [0.875, 0.875, 1])
        first, second, third = (softmax(z) for z in LOGITS.reshape(4, 7)[:3])
        student = [first[[2, 4, 6]].sum(), second[[5, 0]].sum(), third[3]]
        np.testing.assert_allclose(metrics["student_mass"].ravel()[:3], student, rtol=1e-5)
        assert metrics["teacher_entropy"][1, 0] == pytest.approx(0, abs=1e-6)
        assert all(np.all(np.isfinite(value)) for value in metrics.values())


@pytest.mark.parametrize(
    "function",
    [
        lambda z: cross_entropy(z, TARGETS, z_loss=0.1, label_smoothing=0.1),
        lambda z: topk_kl(z, TEACHER_IDS, TEACHER_LOGPROBS),
        lambda z: topk_kl(z, TEACHER_IDS, TEACHER_LOGPROBS, tail="renormalize", temperature=2.0),
        lambda z: Objective(0.5, z_loss=0.1)(z, TARGETS, TEACHER_IDS, TEACHER_LOGPROBS),
        lambda z: metrics_of(z, TEACHER_IDS, TEACHER_LOGPROBS)["student_mass"],
    ],
)
def test_bfloat16_logits_lose_nothing_more(function):
    """Every literal of LOGITS is a bfloat16 number, so the results must be the same."""
    result = function(jnp.asarray(LOGITS, jnp.bfloat16))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, function(jnp.asarray(LOGITS, jnp.float32)))
