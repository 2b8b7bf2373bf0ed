"""The loss through the LM head, a tile of positions at a time: never [B, T, V].

A tile's logits are made, reduced to `Statistics`, turned into their gradient and multiplied into
the gradients of the hidden states and the head before the next tile is made: the backward pass has
nothing left to do but scale. Positions without weight are left out. On a mesh every device runs its
own positions against its own columns of the head; what crosses the vocabulary's axis is a few
numbers a position and its hidden state's gradient.

A teacher that runs beside the student comes with its hidden states and its head, and its logits,
too, are made a tile at a time.

Letters: B batch, T targets, D width, E width of such a teacher, V vocabulary (this device's columns
of it), K teacher entries; N all positions of a device, P those of one tile.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from cot_flax.axes import axis_size, mesh_axes
from cot_flax.objectives.losses import Objective
from cot_flax.objectives.statistics import logits_gradient, statistics_of

TILES = 8
"""Parts that a device's positions are cut into. So the logits of a tile shrink with the mesh, and
the head's gradient is read and written eight times, however many positions there are
(benchmarks/loss.py compares)."""


class Labels(NamedTuple):
    """What the positions are to give.

    Targets and weights are [B, T], a teacher's stored ids and log-probabilities [B, T, K], the
    hidden states of one that runs beside the student [B, T, E]; None without.
    """

    targets: jax.Array
    weights: jax.Array
    ids: jax.Array | None
    logprobs: jax.Array | None
    hidden: jax.Array | None


def distillation_loss(
    hidden_BTD,
    head_DV,
    targets_BT,
    weights_BT,
    teacher_ids_BTK=None,
    teacher_logprobs_BTK=None,
    *,
    objective: Objective,
    white_box: tuple[jax.Array, jax.Array] | None = None,
    tiles: int = TILES,
):
    """The objective of the logits hidden_BTD @ head_DV, summed, and what a run logs of them.

    Equal to `sum(objective(logits) * weights)` to float32 rounding, its gradients too; those of
    anything but `hidden_BTD` and `head_DV` are zero, and so are those of the metrics. Without a
    gradient asked for (of both, or of the head, as with LoRA) none is formed. Splits over the mesh
    of `jax.set_mesh` where flax's axis rules say how: "batch" and "vocab".

    Args:
        hidden_BTD: float.
        head_DV: float.
        targets_BT: int32.
        weights_BT: float; a position of weight 0 is not looked at.
        teacher_ids_BTK: int32, below 0 where absent; None where the objective uses no teacher.
        teacher_logprobs_BTK: float32 natural logs.
        objective: what each position costs, but for a white-box loss of hidden states.
        white_box: of the teacher of a white-box loss of logits its hidden states, float [B, T, E],
            and its head, float [E, V].
        tiles: parts of a device's positions; the logits of one exist at a time.

    Returns:
        The float32 loss in nats, and float32 sums over the weighted positions: `tokens` (of the
        weights), `cross_entropy`, `token_accuracy`, `nonfinite` (positions whose logits are not
        finite, a count), `z_loss` where it has a weight; with a teacher `soft_tokens` and the
        "soft/..." of `Objective.metrics`; with a white-box teacher the loss by its name and the
        teacher's own "teacher_cross_entropy".
    """
    if not objective.uses_teacher:
        teacher_ids_BTK = teacher_logprobs_BTK = None
    weights_BT = weights_BT.astype(jnp.float32)
    theirs_BTE, their_head_EV = white_box or (None, None)
    labels = Labels(targets_BT, weights_BT, teacher_ids_BTK, teacher_logprobs_BTK, theirs_BTE)
    job = _Job(objective, tiles, *_mesh_axes(hidden_BTD.shape[0], head_DV.shape[1]))
    return _loss(job, hidden_BTD, head_DV, labels, their_head_EV)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What to compute and which mesh axes split it, if any."""

    objective: Objective
    tiles: int
    batch_axis: tuple[str, ...]
    vocab_axis: tuple[str, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(job, hidden_BTD, head_DV, labels, their_head_EV):
    sums, _ = _split(job, (False, False), hidden_BTD, head_DV, labels, their_head_EV)
    return sums["loss"], {name: sums[name] for name in sums if name != "loss"}


def _loss_and_gradients(job, *arguments):
    # `perturbed` says which gradients anyone asked for: with LoRA the head is frozen, and its
    # gradient [D, V] would be the largest array of the step.
    values = jax.tree.map(lambda leaf: leaf.value, arguments)
    wanted = (arguments[0].perturbed, arguments[1].perturbed)
    sums, gradients = _split(job, wanted, *values)
    return (sums.pop("loss"), sums), gradients


def _scale_gradients(job, gradients, cotangents):
    # The loss is a sum, so its cotangent is one number; the metrics are logged, never minimised.
    return *jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients), None, None


_loss.defvjp(_loss_and_gradients, _scale_gradients, symbolic_zeros=True)


def _mesh_axes(batch: int, vocab: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes of batch and vocabulary; an axis that does not divide splits nothing."""

    def fitting(name, size):
        axes = mesh_axes(name)
        return axes if size % axis_size(*axes) == 0 else ()

    return fitting("batch", batch), fitting("vocab", vocab)


def _split(job, wanted, hidden_BTD, head_DV, labels, their_head_EV):
    """Runs `_tiles` on every device's part; returns sums over all and whole gradients."""
    run = partial(_tiles, job, wanted)
    # By shard_map and not by constraints: the partitioner would gather the logits of a tile over
    # the vocabulary's axis to take their maximum.
    if job.batch_axis or job.vocab_axis:
        rows, columns = P(job.batch_axis or None), P(None, job.vocab_axis or None)
        run = jax.shard_map(
            run,
            in_specs=(rows, columns, rows, columns),
            out_specs=(P(), (rows, columns)),
            check_vma=False,
        )
    return run(hidden_BTD, head_DV, labels, their_head_EV)


def _tiles(job, wanted, hidden_BTD, head_DV, labels, their_head_EV):
    """Sums over this device's positions, and the wanted of both gradients; None for the others."""
    # Logits are float32 whatever the model computes in: bfloat16 has eight bits for numbers whose
    # differences are the log-probabilities.
    head_DV_32 = head_DV.astype(jnp.float32)
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    labels = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), labels)
    positions = hidden_ND.shape[0]
    tile = -(-positions // job.tiles)
    # Positions of any weight, in order; then places past the end, which read 0 and write nowhere.
    (order,) = jnp.nonzero(labels.weights, size=tile * job.tiles, fill_value=positions)
    weighted = lax.pmax(jnp.count_nonzero(labels.weights), job.batch_axis)  # all devices in step

    def body(i, carry):
        sums, d_hidden_ND, d_head_DV = carry
        rows = lax.dynamic_slice_in_dim(order, i * tile, tile)
        hidden_PD, some = jax.tree.map(
            lambda x: jnp.take(x, rows, axis=0, mode="fill", fill_value=0), (hidden_ND, labels)
        )
        # Rows past the end read zeros and have weight 0, so that every tile has one shape.
        hidden_PD = hidden_PD.astype(jnp.float32)
        theirs_PV = None
        if their_head_EV is not None:
            theirs_PV = some.hidden.astype(jnp.float32) @ their_head_EV.astype(jnp.float32)
        more, d_logits_PV = _tile(job, hidden_PD @ head_DV_32, theirs_PV, some)
        if wanted[0]:
            # Each device has its columns' share of a position's gradient.
            d_hidden_PD = lax.psum(d_logits_PV @ head_DV_32.T, job.vocab_axis)
            d_hidden_ND = d_hidden_ND.at[rows].set(d_hidden_PD, mode="drop")
        if wanted[1]:
            # Turned over first: within the product it costs a CPU another third of its time.
            d_head_DV += lax.optimization_barrier(hidden_PD.T) @ d_logits_PV
        return jax.tree.map(jnp.add, sums, more), d_hidden_ND, d_head_DV

    logits = jax.ShapeDtypeStruct((positions, head_DV.shape[1]), jnp.float32)
    theirs = None if their_head_EV is None else logits
    sums = jax.eval_shape(lambda z, t: _tile(job, z, t, labels)[0], logits, theirs)
    zeros = [
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums),
        jnp.zeros(hidden_ND.shape, jnp.float32) if wanted[0] else None,
        jnp.zeros(head_DV.shape, jnp.float32) if wanted[1] else None,
    ]
    used = (weighted + tile - 1) // tile  # padding costs nothing: its tiles are not run
    sums, d_hidden_ND, d_head_DV = lax.fori_loop(0, used, body, tuple(zeros))
    if wanted[0]:
        d_hidden_ND = d_hidden_ND.reshape(hidden_BTD.shape).astype(hidden_BTD.dtype)
    if wanted[1]:
        # Once at the end: a sum over the batch's axis in every tile would send it eight times.
        d_head_DV = lax.psum(d_head_DV, job.batch_axis).astype(head_DV.dtype)
    return lax.psum(sums, job.batch_axis), (d_hidden_ND, d_head_DV)


def _tile(job, logits_PV, theirs_PV, labels):
    """The sums of a tile and the gradient of its logits (dead code where nobody wants it)."""
    objective, axis = job.objective, job.vocab_axis
    targets, weights, ids, logprobs, _ = labels
    vocab_size = logits_PV.shape[-1] * lax.psum(1, axis)
    settings = {"temperature": objective.vocabulary_temperature, "axis": axis}
    student = statistics_of(logits_PV, targets, ids, **settings)

    def loss(student):
        return jnp.sum(objective.of(student, vocab_size, ids, logprobs) * weights)

    # Differentiated by JAX in the few numbers of `Statistics`, by hand in the logits alone.
    total, d_student = jax.value_and_grad(loss)(student)
    sums = {"loss": total} | _metric_sums(
        objective.metrics(student, targets, ids, logprobs), labels
    )
    gradient_PV = logits_gradient(logits_PV, targets, ids, student, d_student, **settings)
    if theirs_PV is None:
        return sums, gradient_PV
    white_box = objective.white_box
    value_P, part_P, d_logits_PV = white_box.of_logits(logits_PV, theirs_PV, axis)
    teacher = statistics_of(theirs_PV, targets, None, axis=axis)  # its rest is log Z
    sums["loss"] += jnp.sum(part_P * weights)
    sums[white_box.loss] = jnp.sum(value_P * weights)
    sums["teacher_cross_entropy"] = jnp.sum(
        (teacher.rest - teacher.target) * weights  # type: ignore[operator]
    )
    return sums, gradient_PV + d_logits_PV * weights[:, None]


def _metric_sums(metrics, labels) -> dict[str, jax.Array]:
    weights = labels.weights
    broken = ~jnp.isfinite(metrics["cross_entropy"]) & (weights != 0)
    sums = {"tokens": jnp.sum(weights), "nonfinite": jnp.sum(broken, dtype=jnp.float32)}
    soft = weights
    if labels.ids is not None:
        soft = weights * jnp.any(labels.ids >= 0, axis=-1)
        sums["soft_tokens"] = jnp.sum(soft)
    for name, values in metrics.items():
        if name.startswith("soft/"):
            # A product with 0 would let what means nothing through where it is not finite.
            sums[name] = jnp.sum(jnp.where(soft > 0, values * soft, 0.0))
        else:
            sums[name] = jnp.sum(values * weights)
    return sums
