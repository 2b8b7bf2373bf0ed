"""Objectives: token cross entropy, and the KL divergence from a teacher's stored top-k.

Every function is pure and unreduced: one float32 value in nats a position. Padding is not masked
here; whoever sums multiplies by the loss weights. A teacher entry with id 0 is absent (0 is the
padding token, which no teacher emits); a position whose entries are all absent has no teacher.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, logsumexp

from cot_flax.errors import UserError

TAILS = ("bucket", "ignore", "renormalize")
ABSENT = -1e9
"""Stands for log 0 where arithmetic must stay finite."""
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
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    loss_BT = log_z_BT - target_BT
    if label_smoothing:
        others = logits_BTV.shape[-1] - 1
        on, off = 1.0 - label_smoothing, label_smoothing / others
        sum_BT = jnp.sum(logits_BTV, axis=-1)
        loss_BT = log_z_BT - on * target_BT - off * (sum_BT - target_BT)
        loss_BT += on * jnp.log(on) + others * off * jnp.log(off)
    return loss_BT + z_loss * jnp.square(log_z_BT)


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
        teacher_ids_BTK: int32; 0 marks an absent entry. The ids of a position are distinct.
        teacher_logprobs_BTK: float32 natural logs; ignored where the id is 0.
        tail: one of TAILS.
        temperature: T > 0. Not multiplied by T^2 here; `soft_loss` does that.

    Returns:
        float32 [B, T], nats. Meaningless where a position has no teacher entry.

    Raises:
        ValueError: an unknown tail, or "ignore" at a temperature other than 1.
    """
    if tail not in TAILS:
        raise ValueError(f"got tail {tail!r}; expected one of {TAILS}")
    if tail == "ignore" and temperature != 1.0:
        raise ValueError(f"got tail 'ignore' at temperature {temperature}; expected 1.0")
    teacher_logprobs_BTK = jnp.where(teacher_ids_BTK > 0, teacher_logprobs_BTK, ABSENT)
    if tail == "bucket":
        teacher_log_p = _with_rest(teacher_logprobs_BTK)
        student_log_q = _student_classes(logits_BTV, teacher_ids_BTK)
        if temperature != 1.0:
            teacher_log_p = log_softmax(teacher_log_p / temperature)
            student_log_q = log_softmax(student_log_q / temperature)
        return _kl(teacher_log_p, student_log_q)
    if tail == "renormalize":
        teacher_logprobs_BTK = log_softmax(teacher_logprobs_BTK / temperature)
    log_q_BTV = log_softmax(logits_BTV.astype(jnp.float32) / temperature)
    return _kl(teacher_logprobs_BTK, jnp.take_along_axis(log_q_BTV, teacher_ids_BTK, axis=-1))


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run minimises: cross entropy, the teacher's top-k KL, or a mixture of both.

    Attributes:
        kl_weight: 0 is plain cross entropy, 1 the KL alone wherever a position has a teacher.
        tail: see `topk_kl`.
        temperature: see `topk_kl`.
        z_loss: weight of (log Z)^2, 1e-4 in T5X's pre-training, 0 in papers [1]-[4].
        label_smoothing: of the cross entropy.

    Raises:
        UserError: a value out of its range.
    """

    kl_weight: float = 0.0
    tail: str = "bucket"
    temperature: float = 1.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0

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

    def __call__(self, logits_BTV, targets_BT, teacher_ids_BTK, teacher_logprobs_BTK):
        """Returns the float32 loss of every position, [B, T], nats."""
        if not self.uses_teacher:
            return cross_entropy(
                logits_BTV, targets_BT, z_loss=self.z_loss, label_smoothing=self.label_smoothing
            )
        settings = dataclasses.asdict(self)
        return soft_loss(logits_BTV, targets_BT, teacher_ids_BTK, teacher_logprobs_BTK, **settings)


def soft_loss(
    logits_BTV,
    targets_BT,
    teacher_ids_BTK,
    teacher_logprobs_BTK,
    *,
    tail: str = "bucket",
    temperature: float = 1.0,
    kl_weight: float = 1.0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
):
    """kl_weight * T^2 * KL_T + (1 - kl_weight) * CE; plain CE where a position has no teacher.

    T^2 multiplies the loss itself, hence its gradient, which keeps the gradient's size about the
    same at every temperature (Hinton et al. 2015, section 2). z_loss applies to every position.

    Returns:
        float32 [B, T], nats.
    """
    plain_BT = cross_entropy(logits_BTV, targets_BT, label_smoothing=label_smoothing)
    soft_BT = jnp.any(teacher_ids_BTK > 0, axis=-1)
    kl_BT = topk_kl(
        logits_BTV, teacher_ids_BTK, teacher_logprobs_BTK, tail=tail, temperature=temperature
    )
    mixed_BT = kl_weight * temperature**2 * kl_BT + (1.0 - kl_weight) * plain_BT
    loss_BT = jnp.where(soft_BT, mixed_BT, plain_BT)
    if z_loss:
        loss_BT += z_loss * jnp.square(logsumexp(logits_BTV.astype(jnp.float32), axis=-1))
    return loss_BT


def teacher_metrics(logits_BTV, teacher_ids_BTK, teacher_logprobs_BTK) -> dict[str, jax.Array]:
    """What a run logs about teacher and student at temperature 1.

    Returns:
        float32 [B, T] each, meaningful where a position has a teacher:
        `kl` (bucket, nats), `teacher_entropy` (of the k+1 classes, nats), `teacher_mass` and
        `student_mass` (probability on the k ids), `agreement` (1.0 where the student's most
        probable token is the teacher's).
    """
    log_p = jnp.where(teacher_ids_BTK > 0, teacher_logprobs_BTK, ABSENT)
    classes = _with_rest(log_p)
    log_q_BTV = log_softmax(logits_BTV.astype(jnp.float32))
    log_q = jnp.take_along_axis(log_q_BTV, teacher_ids_BTK, axis=-1)
    best_teacher = jnp.take_along_axis(
        teacher_ids_BTK, jnp.argmax(log_p, axis=-1)[..., None], axis=-1
    )[..., 0]
    return {
        "kl": topk_kl(logits_BTV, teacher_ids_BTK, teacher_logprobs_BTK),
        "teacher_entropy": -jnp.sum(jnp.exp(classes) * classes, axis=-1),
        "teacher_mass": jnp.sum(jnp.exp(log_p), axis=-1),
        "student_mass": jnp.sum(jnp.exp(log_q) * (teacher_ids_BTK > 0), axis=-1),
        "agreement": (jnp.argmax(logits_BTV, axis=-1) == best_teacher).astype(jnp.float32),
    }


def _with_rest(log_p_BTK):
    """Appends the log of the mass outside the k as class K: [B, T, K+1]."""
    rest = 1.0 - jnp.sum(jnp.exp(log_p_BTK), axis=-1, keepdims=True)
    some = rest > ROUNDING
    log_rest = jnp.where(some, jnp.log(jnp.where(some, rest, 1.0)), ABSENT)
    return jnp.concatenate([log_p_BTK, log_rest], axis=-1)


def _student_classes(logits_BTV, ids_BTK):
    """The student's log-probabilities of the k ids and of all other tokens: [B, T, K+1].

    The rest is summed over the other logits themselves: 1 - sum_i q_i would lose it to rounding
    exactly where the student is sure. Absent entries have no class of their own.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z = logsumexp(logits_BTV, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits_BTV, ids_BTK, axis=-1)
    chosen = jnp.where(ids_BTK > 0, chosen, ABSENT)
    vocab = jnp.arange(logits_BTV.shape[-1])
    stored = jnp.any((ids_BTK[..., None] == vocab) & (ids_BTK[..., None] > 0), axis=-2)
    rest = logsumexp(jnp.where(stored, ABSENT, logits_BTV), axis=-1, keepdims=True)
    return jnp.concatenate([chosen, rest], axis=-1) - log_z


def _kl(log_p, log_q):
    """Sums p (log p - log q) over the last axis; classes with p = 0 add nothing, nor a gradient."""
    present = jnp.exp(log_p) > 0
    difference = jnp.where(present, log_p - log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)
