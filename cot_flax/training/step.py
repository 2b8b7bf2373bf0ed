"""One optimizer step: float32 sums over real target tokens, divided once at the end."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cot_flax.objectives.head_loss import distillation_loss
from cot_flax.objectives.losses import WHITE_BOX_LOSSES, Objective, hidden_mse
from cot_flax.students import lora
from cot_flax.students.student import Params, Student
from cot_flax.training import guard
from cot_flax.training.optimizers import Optimizer
from cot_flax.training.state import TrainState, split_trainable

Sums = dict[str, jax.Array]


def loss_sums(
    student: Student,
    objective: Objective,
    params,
    batch,
    dropout_key=None,
    *,
    watch: bool = False,
    teacher: tuple[Student, Params] | None = None,
) -> tuple[jax.Array, Sums]:
    """Returns the summed loss of a batch (nats) and the sums behind every metric.

    Args:
        batch: the keys of `student.layout`; `teacher_top_ids` and `teacher_top_logprobs` [B, T, K]
            where the run uses a teacher. `decoder_loss_weights` is 1 on what is learned, else 0.
        dropout_key: None switches dropout off.
        watch: adds `nonfinite/activations`, float32 [P]: above 0 where one of `student.places`
            gave something that is not finite.
        teacher: the one of a white-box objective, with its parameters.
    """
    white_box = objective.white_box
    heads = None
    if white_box:
        # `white_box.beside` has seen to it that there is one.
        their_student, their_params = teacher  # type: ignore[misc]
        theirs_BTE = jax.lax.stop_gradient(their_student.hidden(their_params, batch))
        if white_box.reads_logits:
            heads = theirs_BTE, jax.lax.stop_gradient(their_student.head(their_params))
    if watch:
        hidden_BTD, bad_places = student.hidden_watched(params, batch, dropout_key=dropout_key)
    else:
        hidden_BTD = student.hidden(params, batch, dropout_key=dropout_key)
    total, sums = distillation_loss(
        hidden_BTD,
        student.head(params),
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        batch.get("teacher_top_ids"),
        batch.get("teacher_top_logprobs"),
        objective=objective,
        white_box=heads,
    )
    if white_box and not white_box.reads_logits:
        projection_DE = params[lora.PROJECTION][lora.PROJECTION]
        values_BT = hidden_mse(hidden_BTD, theirs_BTE, projection_DE)
        sums[white_box.loss] = jnp.sum(values_BT * batch["decoder_loss_weights"])
        total += white_box.weight * sums[white_box.loss]
    bad_logits = sums.pop("nonfinite") > 0
    if watch:
        sums["nonfinite/activations"] = jnp.append(bad_places, bad_logits).astype(jnp.float32)
    return total, jax.lax.stop_gradient({"loss": total} | sums)


def make_train_step(
    student: Student,
    optimizer: Optimizer,
    objective: Objective,
    microbatches: int = 1,
    teacher: Student | None = None,
    *,
    equal: bool = False,
) -> Callable[..., tuple[TrainState, Sums]]:
    """Returns a pure function of (state, batch); jit it with the state donated.

    With a white-box teacher it is one of (state, batch, the teacher's parameters).

    With several micro-batches the gradient is the sum of their summed gradients divided by all
    their tokens: the same step as with the whole batch at once. With LoRA the gradients of frozen
    parameters are never formed.

    Args:
        equal: every micro-batch counts as much, however many tokens it has: the gradient is the
            mean of those of their means, as Fu et al. 2023 accumulate theirs.
    """

    def train_step(state, batch, their_params=None):
        # From the step, not from a chain of splits: a resumed run drops the same units.
        rng = jax.random.fold_in(state.rng, state.step) if student.uses_dropout else None
        trainable, frozen = split_trainable(student, state.params)

        def total(trainable, batch, rng):
            params = lora.join(trainable, frozen)
            beside = None if teacher is None else (teacher, their_params)
            return loss_sums(student, objective, params, batch, rng, watch=True, teacher=beside)

        gradient = jax.grad(total, has_aux=True)
        grads, sums = _accumulate(gradient, trainable, batch, rng, microbatches, equal)
        # Divided once, by the tokens of the whole batch: a mean of micro-batches' means would
        # weigh a token more where its micro-batch has fewer.
        count = microbatches if equal else jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, trainable)
        metrics = sums | {
            "learning_rate": jnp.asarray(optimizer.schedule(state.step), jnp.float32),
            "gradient_norm": optax.tree.norm(grads),
            "nonfinite/gradients": guard.gradient_flags(student, grads),
        }
        params = lora.join(optax.apply_updates(trainable, updates), frozen)
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return train_step


def summarize(sums: dict[str, float]) -> dict[str, float]:
    """Turns sums into means: a token for the loss, a position with a teacher for what compares."""
    # Over a window these are sums of sums, so that every token counts once.
    tokens, soft = max(sums["tokens"], 1.0), sums.get("soft_tokens", 0.0)
    hard = ("loss", "cross_entropy", "token_accuracy", "z_loss", "teacher_cross_entropy")
    hard += WHITE_BOX_LOSSES
    means = {name: sums[name] / tokens for name in hard if name in sums}
    if soft:
        means |= {name[5:]: value / soft for name, value in sums.items() if name[:5] == "soft/"}
        means["teacher_fraction"] = soft / tokens
    kept = ("learning_rate", "gradient_norm")
    return means | {name: sums[name] for name in kept if name in sums}


def _accumulate(summed, params, batch, rng, microbatches, equal):
    """Sums of gradients over micro-batches, of their means where all count as much."""

    def mean(params, rows, key):
        grads, sums = summed(params, rows, key)
        return jax.tree.map(lambda g: g / jnp.maximum(sums["tokens"], 1.0), grads), sums

    gradient = mean if equal else summed
    if microbatches == 1:
        return gradient(params, batch, rng)

    # Every micro-batch takes one row in `microbatches`, so that each device keeps its own rows.
    def split(x):
        return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)

    def body(total, part):
        index, rows = part
        key = None if rng is None else jax.random.fold_in(rng, index)
        return jax.tree.map(jnp.add, total, gradient(params, rows, key)), None

    rows = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], rows)
    shapes = jax.eval_shape(gradient, params, first, rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zeros, (jnp.arange(microbatches), rows))[0]
