"""Objectives: token cross entropy, and the KL divergence from a teacher's stored top-k.

Every function is pure and unreduced: one float32 value in nats a position. Padding is not masked
here; whoever sums multiplies by the loss weights. A teacher entry with a negative id is absent
(every id of a vocabulary is legal); a position whose entries are all absent has no teacher.
`cross_entropy` and `topk_kl` read whole logits; what they compute, they compute from `Statistics`,
which head_loss.py has without holding the logits of more than a tile of positions.

A teacher of the same vocabulary may also run beside the student: `softmax_kl`, `logit_mse` and
`hidden_mse` read what it computes of the same positions.

Letters: B batch, T target tokens, V vocabulary, K entries of a teacher's row, D width of the
student, E width of the teacher.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_softmax, logsumexp

from cot_flax.errors import UserError
from cot_flax.objectives.statistics import ABSENT, Statistics, statistics_of

Tail = Literal["bucket", "ignore", "renormalize"]
TAILS = get_args(Tail)
WhiteBoxLoss = Literal["softmax_kl", "logit_mse", "hidden_mse"]
WHITE_BOX_LOSSES = get_args(WhiteBoxLoss)
ROUNDING = 1e-6
"""Tail masses below this are float32 rounding of a sum of probabilities, and count as none."""


def cross_entropy(logits_BTV, targets_BT, *, z_loss: float = 0.0, label_smoothing: float = 0.0):
    """-sum_v t_v log q_v + z_loss * (log Z)^2, less the entropy of the smoothed targets.

    With smoothing s the target has 1 - s and every other token s / (V - 1); subtracting the
    entropy makes 0 the minimum, as in T5X (losses.compute_weighted_cross_entropy).

    Args:
        logits_BTV: float, unnormalised.
        targets_BT: int32 ids.

    Returns:
        float32 [B, T], nats.
    """
    settings = Objective(z_loss=z_loss, label_smoothing=label_smoothing)
    return settings(logits_BTV, targets_BT, None, None)


def topk_kl(
    logits_BTV,
    teacher_ids_BTK,
    teacher_logprobs_BTK,
    *,
    tail: str = "bucket",
    temperature: float = 1.0,
):
    """KL(teacher || student) from the teacher's k stored entries.

    With p the teacher's k probabilities, M their sum, q the student's softmax over all of V:

    - "bucket": sum_i p_i log(p_i/q_i) + (1-M) log((1-M)/(1-sum_i q_i)): the k ids and one class
      for the rest. A lower bound of the KL over V (data processing inequality), 0 only where
      those k+1 classes match. At temperature T both sides' k+1 classes become p^(1/T),
      renormalised.
    - "ignore": sum_i p_i log(p_i/q_i), M not renormalised; its minimum is M log M, below 0
      (paper [1], src/utils.py kl_divergence).
    - "renormalize": p_i / M against q over all of V; at temperature T, softmax(log p / T) against
      softmax(z / T).

    The student is never renormalised over the k: that would hide the mass it puts elsewhere.

    Args:
        logits_BTV: float, unnormalised.
        teacher_ids_BTK: int32; below 0 where an entry is absent. Those of a position are distinct.
        teacher_logprobs_BTK: float32 natural logs; ignored where the entry is absent.
        tail: one of TAILS.
        temperature: T > 0. Not multiplied by T^2 here; `Objective` does that.

    Returns:
        float32 [B, T], nats. Meaningless where a position has no teacher entry.

    Raises:
        ValueError: an unknown tail, or "ignore" at a temperature other than 1.
    """
    if tail not in TAILS:
        raise ValueError(f"got tail {tail!r}; expected one of {TAILS}")
    if tail == "ignore" and temperature != 1.0:
        raise ValueError(f"got tail 'ignore' at temperature {temperature}; expected 1.0")
    student = statistics_of(logits_BTV, None, teacher_ids_BTK, temperature=temperature)
    return _topk_kl(student, teacher_ids_BTK, teacher_logprobs_BTK, tail, temperature)


def softmax_kl(logits_BTV, teacher_logits_BTV, *, temperature: float = 1.0):
    """KL(teacher || student) of the whole softmax, sum_v p_v (log p_v - log q_v).

    p = softmax(teacher / T), q = softmax(student / T) (Hinton et al. 2015); 0 only where they
    match. The gradient of the student's logits is (q - p) / T.

    Args:
        logits_BTV: float, unnormalised.
        teacher_logits_BTV: float, likewise; -inf is a probability of 0.
        temperature: T > 0. Not multiplied by T^2 here; `Objective` does that.

    Returns:
        float32 [B, T], nats.
    """
    return softmax_kl_and_gradient(logits_BTV, teacher_logits_BTV, temperature)[0]


def logit_mse(logits_BTV, teacher_logits_BTV):
    """Mean over the vocabulary of (z_v - t_v)^2 (Ba & Caruana 2014; Kim et al. 2021).

    Unlike a softmax it sees a shift of all logits.

    Returns:
        float32 [B, T], in squared logits.
    """
    return logit_mse_and_gradient(logits_BTV, teacher_logits_BTV)[0]


def hidden_mse(hidden_BTD, teacher_hidden_BTE, projection_DE):
    """Mean over the teacher's width of (h W - g)^2 (Romero et al. 2015; Jiao et al. 2020).

    Args:
        hidden_BTD: float, the student's hidden states h, those that the head reads.
        teacher_hidden_BTE: float, the teacher's, g.
        projection_DE: float, W, which is learned.

    Returns:
        float32 [B, T], in squared units of the teacher's hidden states.
    """
    projected_BTE = hidden_BTD.astype(jnp.float32) @ projection_DE.astype(jnp.float32)
    return jnp.mean(jnp.square(projected_BTE - teacher_hidden_BTE.astype(jnp.float32)), axis=-1)


def softmax_kl_and_gradient(logits, teacher_logits, temperature: float, axis=()):
    """`softmax_kl`, [...], and its gradient with respect to the logits, [..., V].

    Args:
        axis: mesh axes over which the vocabulary's columns lie split.
    """
    log_q, log_p = (_split_log_softmax(z, temperature, axis) for z in (logits, teacher_logits))
    p = jnp.exp(log_p)
    terms = jnp.where(p > 0, p * (jnp.where(p > 0, log_p, 0.0) - log_q), 0.0)
    return lax.psum(jnp.sum(terms, axis=-1), axis), (jnp.exp(log_q) - p) / temperature


def logit_mse_and_gradient(logits, teacher_logits, axis=()):
    """`logit_mse`, [...], and its gradient with respect to the logits, [..., V]."""
    difference = logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)
    size = logits.shape[-1] * lax.psum(1, axis)
    return lax.psum(jnp.sum(jnp.square(difference), axis=-1), axis) / size, 2 * difference / size


def _split_log_softmax(logits, temperature, axis):
    logits = logits.astype(jnp.float32) / temperature
    top = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)), axis)
    total = lax.psum(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True), axis)
    return logits - top - jnp.log(total)


@dataclasses.dataclass(frozen=True)
class WhiteBox:
    """What a student learns from a teacher of its vocabulary that runs beside it.

    Attributes:
        loss: "softmax_kl", "logit_mse" or "hidden_mse".
        weight: its share of the loss; the rest is what the objective is without it.
        temperature: of `softmax_kl`.

    Raises:
        UserError: a value out of its range.
    """

    loss: WhiteBoxLoss
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        if self.loss not in WHITE_BOX_LOSSES:
            raise UserError(
                f"white-box loss {self.loss!r}", f"one of {WHITE_BOX_LOSSES}", "set WhiteBox.loss"
            )
        if not 0.0 < self.weight <= 1.0:
            raise UserError(
                f"white-box weight {self.weight}", "above 0, at most 1", "set WHITE_BOX_WEIGHT"
            )
        if self.temperature <= 0.0:
            raise UserError(f"temperature {self.temperature}", "above 0", "set KL_TEMPERATURE")

    @property
    def reads_logits(self) -> bool:
        return self.loss != "hidden_mse"

    def of_logits(self, logits, teacher_logits, axis=()):
        """The unweighted loss, [...], its part of the objective, and that part's gradient."""
        if self.loss == "logit_mse":
            value, gradient = logit_mse_and_gradient(logits, teacher_logits, axis)
            return value, self.weight * value, self.weight * gradient
        scale = self.weight * self.temperature**2
        value, gradient = softmax_kl_and_gradient(logits, teacher_logits, self.temperature, axis)
        return value, scale * value, scale * gradient


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run minimises: cross entropy, the teacher's top-k KL, or a mixture of both.

    kl_weight * T^2 * KL_T + (1 - kl_weight) * CE; plain CE where a position has no teacher. T^2
    multiplies the loss itself, hence its gradient, which keeps the gradient's size about the same
    at every temperature (Hinton et al. 2015, section 2). With a white-box teacher all that has the
    share 1 - weight of it. z_loss applies to every position.

    Attributes:
        kl_weight: 0 is plain cross entropy, 1 the KL alone wherever a position has a teacher.
        tail: see `topk_kl`.
        temperature: see `topk_kl`.
        z_loss: weight of (log Z)^2, 1e-4 in T5X's pre-training, 0 in papers [1]-[4].
        label_smoothing: of the cross entropy.
        white_box: what is learned from a teacher that runs beside the student; None is nothing.

    Raises:
        UserError: a value out of its range.
    """

    kl_weight: float = 0.0
    tail: Tail = "bucket"
    temperature: float = 1.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    white_box: WhiteBox | None = None

    def __post_init__(self):
        if self.tail not in TAILS:
            raise UserError(f"tail {self.tail!r}", f"one of {TAILS}", "set Objective.tail")
        if self.tail == "ignore" and self.temperature != 1.0:
            raise UserError(
                f"tail 'ignore' at temperature {self.temperature}",
                "temperature 1.0, since un-normalised masses cannot be tempered",
                "set Objective.temperature = 1.0 or another tail",
            )
        if not 0.0 <= self.kl_weight <= 1.0:
            raise UserError(f"kl_weight {self.kl_weight}", "0 to 1", "set Objective.kl_weight")
        if self.temperature <= 0.0:
            raise UserError(
                f"temperature {self.temperature}", "above 0", "set Objective.temperature"
            )

    @property
    def uses_teacher(self) -> bool:
        return self.kl_weight > 0.0

    def without_teacher(self) -> "Objective":
        """The same with cross entropy alone, for data without a teacher's rows."""
        return dataclasses.replace(self, kl_weight=0.0)

    def without_white_box(self) -> "Objective":
        """The same where no teacher runs beside the student."""
        return dataclasses.replace(self, white_box=None)

    @property
    def vocabulary_temperature(self) -> float:
        """Of the student's whole softmax; "bucket" tempers its k + 1 classes alone."""
        return self.temperature if self.uses_teacher and self.tail == "renormalize" else 1.0

    def __call__(
        self,
        logits_BTV,
        targets_BT,
        teacher_ids_BTK,
        teacher_logprobs_BTK,
        white_box_logits_BTV=None,
    ):
        """Returns the float32 loss of every position, [B, T], nats; no teacher is None, None.

        Args:
            white_box_logits_BTV: where a white-box loss reads logits. One of hidden states is not
                part of it.
        """
        ids_BTK = teacher_ids_BTK if self.uses_teacher else None
        temperature = self.vocabulary_temperature
        student = statistics_of(logits_BTV, targets_BT, ids_BTK, temperature=temperature)
        loss = self.of(student, logits_BTV.shape[-1], ids_BTK, teacher_logprobs_BTK)
        if self.white_box is None or not self.white_box.reads_logits:
            return loss
        return loss + self.white_box.of_logits(logits_BTV, white_box_logits_BTV)[1]

    def of(self, student: Statistics, vocab_size: int, ids, logprobs):
        """The same from the statistics of the logits, [...], without a white-box teacher's part."""
        log_z = logsumexp(student.classes(), axis=-1)
        loss = _cross_entropy(student, log_z, vocab_size, self.label_smoothing)
        if self.uses_teacher:
            kl = _topk_kl(student, ids, logprobs, self.tail, self.temperature)
            mixed = self.kl_weight * self.temperature**2 * kl + (1.0 - self.kl_weight) * loss
            loss = jnp.where(jnp.any(ids >= 0, axis=-1), mixed, loss)
        if self.white_box is not None:
            loss = (1.0 - self.white_box.weight) * loss
        return loss + self.z_loss * jnp.square(log_z)

    def metrics(self, student: Statistics, targets, ids, logprobs) -> dict[str, jax.Array]:
        """What a run logs, float32 [...] each; names that begin with "soft/" mean something only
        where a position has a teacher.

        `cross_entropy` and `token_accuracy` of the targets, `z_loss` (its part of the loss) where
        it has a weight, `soft/kl_at_temperature` of this objective's tail, and `teacher_metrics`.
        """
        log_z = logsumexp(student.classes(), axis=-1)
        hard = {
            # Never None where targets were given.
            "cross_entropy": log_z - student.target,  # type: ignore[operator]
            "token_accuracy": (student.best == targets).astype(jnp.float32),
        }
        if self.z_loss:
            hard["z_loss"] = self.z_loss * jnp.square(log_z)
        if not self.uses_teacher:
            return hard
        soft = teacher_metrics(student, ids, logprobs)
        soft["kl_at_temperature"] = _topk_kl(student, ids, logprobs, self.tail, self.temperature)
        return hard | {f"soft/{name}": value for name, value in soft.items()}


def teacher_metrics(student: Statistics, ids, logprobs) -> dict[str, jax.Array]:
    """What a run logs about teacher and student at temperature 1.

    Args:
        ids: int32 [..., K].
        logprobs: float32 [..., K].

    Returns:
        float32 [...] each, meaningful where a position has a teacher:
        `kl` (bucket, nats), `teacher_entropy` (of the k+1 classes, nats), `teacher_mass` and
        `student_mass` (probability on the k ids), `agreement` (1.0 where the student's most
        probable token is the teacher's).
    """
    log_p = jnp.where(ids >= 0, logprobs, ABSENT)
    classes = _with_rest(log_p)
    best_teacher = jnp.take_along_axis(ids, jnp.argmax(log_p, axis=-1)[..., None], axis=-1)[..., 0]
    return {
        "kl": _topk_kl(student, ids, logprobs, "bucket", 1.0),
        "teacher_entropy": -jnp.sum(jnp.exp(classes) * classes, axis=-1),
        "teacher_mass": jnp.sum(jnp.exp(log_p), axis=-1),
        "student_mass": jnp.sum(jnp.exp(log_softmax(student.classes())[..., :-1]), axis=-1),
        "agreement": (student.best == best_teacher).astype(jnp.float32),
    }


def _cross_entropy(student, log_z, vocab_size, label_smoothing):
    if not label_smoothing:
        return log_z - student.target
    others = vocab_size - 1
    on, off = 1.0 - label_smoothing, label_smoothing / others
    loss = log_z - on * student.target - off * (student.total - student.target)
    return loss + on * jnp.log(on) + others * off * jnp.log(off)


def _topk_kl(student, ids, logprobs, tail, temperature):
    log_p = jnp.where(ids >= 0, logprobs, ABSENT)
    if tail == "bucket":
        log_p, log_q = _with_rest(log_p), log_softmax(student.classes())
        if temperature != 1.0:
            log_p, log_q = log_softmax(log_p / temperature), log_softmax(log_q / temperature)
        return _kl(log_p, log_q)
    if tail == "renormalize":
        log_p = log_softmax(log_p / temperature)
    return _kl(log_p, log_softmax(student.classes(temperature))[..., :-1])


def _with_rest(log_p):
    """Appends the log of the mass outside the k as class K, [..., K + 1]."""
    rest = 1.0 - jnp.sum(jnp.exp(log_p), axis=-1, keepdims=True)
    some = rest > ROUNDING
    log_rest = jnp.where(some, jnp.log(jnp.where(some, rest, 1.0)), ABSENT)
    return jnp.concatenate([log_p, log_rest], axis=-1)


def _kl(log_p, log_q):
    """Sums p (log p - log q) over the last axis; classes with p = 0 add nothing, nor a gradient."""
    present = jnp.exp(log_p) > 0
    difference = jnp.where(present, log_p - log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)
