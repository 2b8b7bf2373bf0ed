"""Optimizers and schedules. A schedule counts optimizer steps, never micro-batches."""

from typing import NamedTuple

import jax
import optax

from cot_flax.errors import UserError

MOST_STACKS = 2
"""Of a student: an encoder's and a decoder's. The optimizer's state has a place for each."""


class Optimizer(NamedTuple):
    """An optax transformation and the schedule inside it, which the loop logs."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule


def constant(peak: float, warmup_steps: int = 0) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then `peak` for ever."""
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup_steps), optax.constant_schedule(peak)],
        [warmup_steps],
    )


def warmup_cosine(
    peak: float, total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0
) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to `final_fraction * peak` at `total_steps`.

    Raises:
        UserError: no step is left after the warm-up.
    """
    if warmup_steps >= total_steps:
        raise UserError(
            f"WARMUP_STEPS {warmup_steps} of TRAIN_STEPS {total_steps}",
            "fewer steps of warm-up than of training",
            "lower WARMUP_STEPS",
        )
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else peak, peak, warmup_steps, total_steps, final_fraction * peak
    )


def inverse_sqrt(peak: float, warmup_steps: int) -> optax.Schedule:
    """`peak` during the warm-up, then peak * sqrt(warmup_steps / step): T5's pre-training."""
    return lambda step: peak * (warmup_steps / jax.numpy.maximum(step, warmup_steps)) ** 0.5


def fu2023_cosine(
    peak: float, total_steps: int, accumulation: int, warmup_steps: int = 10
) -> optax.Schedule:
    """Paper [1]'s schedule as its code runs: a cosine over micro-batches read at optimizer steps.

    So a run of `total_steps` covers 1/accumulation of it and ends at 0.997 of the peak for 30
    micro-batches a step, 0.75 for 3 (FlanT5-CoT-Specialization, train_distill_simple.py).
    """
    return warmup_cosine(peak, total_steps * accumulation, warmup_steps)


def adafactor(
    schedule: optax.Schedule,
    clip_norm: float | None = None,
    weight_decay: float | None = None,
    parameter_scale: bool = True,
    momentum: float | None = None,
    smallest_factored: int = 128,
) -> Optimizer:
    """Adafactor (Shazeer & Stern 2018); by default with T5X's settings.

    decay 0.8, epsilons 1e-30 and 1e-3, updates clipped to root mean square 1. The layers of a
    scanned stack are treated one by one, as they are when the stack is unrolled.

    Args:
        clip_norm: of all gradients together; None clips none.
        weight_decay: a share of each parameter that a step takes away, whatever the schedule.
        parameter_scale: a step is the schedule's number times the parameter's root mean square;
            without it the number alone, as in paper [4] (transformers' `scale_parameter=False,
            relative_step=False`, lr 5e-5, clip_norm 0.8).
        momentum: decay of a mean of updates; None keeps none.
        smallest_factored: matrices of which a side is smaller keep their whole second moment;
            1 factors all, as transformers' Adafactor does.
    """
    transform = _per_layer(
        optax.adafactor(
            schedule,
            min_dim_size_to_factor=smallest_factored,
            decay_rate=0.8,
            multiply_by_parameter_scale=parameter_scale,
            momentum=momentum,
            clipping_threshold=1.0,
            eps=1e-30,
            weight_decay_rate=weight_decay,
        )
    )
    return Optimizer(_clipped(transform, clip_norm), schedule)


def adamw(
    schedule: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with PyTorch's defaults, as papers [1] and [3] use it."""
    return Optimizer(
        _clipped(optax.adamw(schedule, b1, b2, eps, 0.0, weight_decay=weight_decay), clip_norm),
        schedule,
    )


def _clipped(transform, clip_norm):
    if clip_norm is None:
        return transform
    return optax.chain(optax.clip_by_global_norm(clip_norm), transform)


def _per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Maps `transform` over the leading axis of scanned stacks (the `layers` of a stack).

    Adafactor takes root mean squares over whole parameters; one stacked parameter holds many.
    """
    stacked = optax.GradientTransformation(
        _over_layers(transform.init), _over_layers(transform.update)
    )
    # Every stack apart, since they may differ in depth.
    names = [str(i) for i in range(MOST_STACKS)]
    return optax.partition({"": transform} | dict.fromkeys(names, stacked), _stacks)


def _over_layers(function):
    # A model without scanned stacks leaves nothing to map over.
    return lambda *trees: (jax.vmap(function) if jax.tree.leaves(trees[0]) else function)(*trees)


def _stacks(params):
    """The number of every parameter's scanned stack, by name; "" for all others."""

    def name(path):
        names = [str(getattr(key, "key", key)) for key in path]
        return ".".join(names[: names.index("layers")]) if "layers" in names else None

    found = {name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)} - {None}
    numbers = {stack: str(i) for i, stack in enumerate(sorted(found))} | {None: ""}
    return jax.tree_util.tree_map_with_path(lambda path, _: numbers[name(path)], params)
