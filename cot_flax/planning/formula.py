"""What a step takes, by arithmetic: FLOPs, bytes of memory and between chips, seconds, money.

A model, not a measurement: it lists the matrix products of one forward pass and counts what they,
the optimizer and the collectives do; norms, softmax and the host are left out. `ASSUMPTIONS` says
what it takes for granted. XLA's own count of FLOPs does not serve: it takes the body of a loop
once, whatever its length, and most of a step happens in loops (scanned layers, micro-batches, the
tiles of the loss).
"""

import dataclasses
import math
from collections.abc import Iterable

import jax

from cot_flax.objectives.head_loss import TILES
from cot_flax.planning.experiment import (
    Experiment,
    abstract_mesh,
    abstract_state,
    abstract_teacher,
)
from cot_flax.planning.targets import Chip
from cot_flax.students.products import Product, passes
from cot_flax.training.state import split_trainable

OF_PEAK = {"tpu": 0.6, "gpu": 0.22, "cpu": 0.6}
"""The share of the peak FLOP/s that products reach. That of GPUs was measured: training T5 1.1
base, large and XL on one H100 took 0.79 to 1.14 times the estimated seconds (docs/performance.md).
"""
OF_BANDWIDTH = 0.8
ASSUMPTIONS = (
    "products and memory overlap with each other, collectives with neither",
    "every axis of a mesh is a ring with links of its own, wherever its chips stand",
    "padding costs what tokens cost; the host keeps up; no evaluation or checkpoint",
)
FLOAT32 = 4
"""Bytes of a number: parameters, gradients and the head are float32 whatever the model's dtype."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip.

    Attributes:
        parameters, optimizer, batch: exact, from the shardings; those of a teacher that runs
            beside the student are among the parameters.
        gradients, activations: by formula: a float32 gradient of every trained parameter, and what
            the forward pass keeps for the backward pass.
        temporaries: all else: of a compiled program what the compiler counts beyond those two, by
            formula one layer's work and a tile of the loss.
        capacity: what a program may use.
        compiled: whether the compiler counted, or the formula did.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporaries: int
    capacity: int
    compiled: bool

    @property
    def total(self) -> int:
        own = self.parameters + self.optimizer + self.batch
        return own + self.gradients + self.activations + self.temporaries

    @property
    def state(self) -> int:
        return self.parameters + self.optimizer

    @property
    def headroom(self) -> int:
        """Negative where the program is too large."""
        return self.capacity - self.total

    @property
    def fits(self) -> bool:
        return self.headroom >= 0


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in one optimizer step.

    Attributes:
        flops: of its share of all products.
        memory: bytes between its memory and itself.
        wire: bytes that it sends to other chips.
    """

    flops: float
    memory: float
    wire: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step: each part alone at its peak, and all of it as `ASSUMPTIONS` say."""

    compute: float
    memory: float
    wire: float
    step: float

    @property
    def best(self) -> float:
        """With every peak reached and everything at once."""
        return max(self.compute, self.memory, self.wire)

    @property
    def bound(self) -> str:
        parts = {"products": self.compute, "memory": self.memory, "collectives": self.wire}
        return max(parts, key=parts.__getitem__)


@dataclasses.dataclass(frozen=True)
class Bill:
    """Totals of a run.

    Attributes:
        tokens_per_second: positions of all sides, padding included.
        cost: in the currency of the price; None without a price.
        teacher_bytes: of the rows that the run reads if it reads none twice.
    """

    tokens_per_second: float
    hours: float
    chip_hours: float
    cost: float | None
    teacher_bytes: int


# FLOPs and seconds.


def step_flops(experiment: Experiment) -> float:
    """Multiplications and additions of one optimizer step, those of matrix products alone."""
    own = sum(
        product.flops * _passes(product, experiment) for product in experiment.products("cpu")
    )
    teacher = experiment.their_student
    if teacher is None:
        return own
    sides = experiment.batch_size, experiment.inputs, experiment.targets
    return own + sum(product.flops for product in teacher.products(*sides, "cpu"))  # forward alone


def work(experiment: Experiment, platform: str, state_bytes: int, wire: float) -> Work:
    """One chip's share of a step.

    Args:
        experiment: with its mesh spelt out.
        platform: "tpu", "gpu" or "cpu": which attention there is.
        state_bytes: of a chip's parameters and optimizer state, which a step reads and writes.
        wire: bytes a chip sends, of the compiled program or of `wire_bytes`.
    """
    mesh = experiment.mesh
    moved = sum(
        _moved(product, experiment) * _passes(product, experiment)
        for product in experiment.products(platform)
    )
    gradients = state_bytes  # written and read once: about as much as the state
    flops = step_flops(experiment) / (mesh.data * mesh.model)
    return Work(flops, moved + 2 * state_bytes + gradients, wire)


def estimate(work: Work, chip: Chip, dtype: str) -> Estimate:
    """Seconds of a step on a chip whose products are of `dtype`."""
    rate = chip.flops * (chip.float32_rate if dtype == "float32" else 1.0)
    compute, memory = work.flops / rate, work.memory / chip.bandwidth
    wire = work.wire / chip.interconnect
    step = max(compute / OF_PEAK[chip.kind], memory / OF_BANDWIDTH) + wire / OF_BANDWIDTH
    return Estimate(compute, memory, wire, step)


def bill(experiment: Experiment, chips: int, step_seconds: float, price: float | None) -> Bill:
    """What a whole run comes to.

    Args:
        chips: all that are paid for, used by the mesh or not.
        step_seconds: of one optimizer step.
        price: of a chip for an hour.
    """
    hours = experiment.steps * step_seconds / 3600
    shape, _ = experiment.batch_shapes.get("teacher_top_ids", ((0,), ""))
    entries = experiment.steps * math.prod(shape)
    return Bill(
        tokens_per_second=experiment.tokens / step_seconds,
        hours=hours,
        chip_hours=hours * chips,
        cost=None if price is None else hours * chips * price,
        teacher_bytes=entries * entry_bytes(experiment.model.vocab_size),
    )


def entry_bytes(vocab_size: int) -> int:
    """Of one entry of a teacher's row in the store: an id of 16 or 32 bits, a probability of 16."""
    return 4 if vocab_size <= 1 << 16 else 6


def _passes(product: Product, experiment: Experiment) -> float:
    adapters_only = experiment.student.lora is not None
    return passes(product, experiment.model.remat, adapters_only=adapters_only)


def _moved(product: Product, experiment: Experiment) -> float:
    """Bytes of a product's two operands and its result on one chip, in one pass."""
    mesh, size = experiment.mesh, _itemsize(experiment.model.dtype)
    rows, inner, columns, copies = product.rows, product.inner, product.columns, product.copies
    inner /= mesh.model if product.split == "inner" else 1
    columns /= mesh.model if product.split == "columns" else 1
    if product.kind == "attention":
        copies /= mesh.data * mesh.model
        sides = rows * inner + inner * columns + rows * columns
        if product.fused:
            sides -= rows * max(inner, columns)
        return sides * copies * size
    # The weights are read again by every micro-batch, those of the head by every tile of the loss.
    is_head = product.kind == "head"
    weights = inner * columns * experiment.microbatches * (TILES if is_head else 1)
    sides = rows / mesh.data * (inner + columns) + weights
    return sides * copies * (FLOAT32 if is_head else size)


# Bytes between chips.


def wire_bytes(experiment: Experiment) -> float:
    """Bytes that a chip sends in a step, before there is a program to read them from.

    Rings: to gather or to scatter n bytes over g chips each sends n (g - 1) / g, to sum them twice
    that. FSDP gathers the layers' weights in every pass and scatters their gradients. Otherwise the
    gradients are summed: the layers' as each micro-batch makes them, in its type; the embedding's
    and the head's once. The model axis sums what every sublayer adds, there and back.
    """
    student, config, mesh = experiment.student, experiment.model, experiment.mesh
    data, model = _ring(mesh.data), _ring(mesh.model)
    listed, size = experiment.products("cpu"), _itemsize(config.dtype)
    layers = sum(p.weights for p in listed if p.kind == "dense") / mesh.model
    ends = student.vocabulary_weights / mesh.model
    rounds, trained = experiment.microbatches, student.lora is None
    if mesh.fsdp:
        gathers = 2 + (config.remat == "full")
        across_data = (size * gathers + FLOAT32 * trained) * (layers + ends) * data * rounds
    else:
        across_data = 2 * (size * layers * rounds + FLOAT32 * ends) * trained * data
    sums = 3 if config.remat == "full" else 2
    crossing = sum(p.results for p in listed if p.split == "inner") / mesh.data * size * sums
    head = _head(listed)
    crossing += head.rows / mesh.data * head.inner * FLOAT32  # the hidden states' gradient
    return across_data + 2 * crossing * model


def _ring(chips: int) -> float:
    return (chips - 1) / chips


# Bytes of memory.


def memory(experiment: Experiment, capacity: float, platform: str) -> Memory:
    """What an uncompiled step takes, by formula.

    Args:
        experiment: with its mesh spelt out.
        capacity: bytes that a program may use.
        platform: "tpu", "gpu" or "cpu": which attention there is.
    """
    state = abstract_state(experiment, abstract_mesh(experiment))
    beside = abstract_teacher(experiment, abstract_mesh(experiment))
    listed = experiment.chip_products(platform)
    return Memory(
        parameters=local_bytes((state.params, beside)),
        optimizer=local_bytes(state.opt_state),
        batch=_batch_bytes(experiment),
        gradients=local_bytes(split_trainable(experiment.student, state.params)[0]),
        activations=_kept(experiment, listed),
        temporaries=_layer(experiment, listed) + _tile(experiment, listed),
        capacity=int(capacity),
        compiled=False,
    )


def compiled_memory(experiment: Experiment, capacity: float, platform: str, used: int) -> Memory:
    """The same where the compiler says how much a program uses: `used` bytes in all."""
    formula = memory(experiment, capacity, platform)
    rest = used - formula.state - formula.batch
    gradients = min(formula.gradients, max(rest, 0))
    activations = min(formula.activations, max(rest - gradients, 0))
    return dataclasses.replace(
        formula,
        gradients=gradients,
        activations=activations,
        temporaries=rest - gradients - activations,
        compiled=True,
    )


def local_bytes(tree) -> int:
    """Bytes of one device's part of `ShapeDtypeStruct`s with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _batch_bytes(experiment) -> int:
    shapes = experiment.batch_shapes.values()
    total = sum(math.prod(shape) * _itemsize(dtype) for shape, dtype in shapes)
    return total // experiment.mesh.data


def _kept(experiment: Experiment, listed: list[Product]) -> int:
    """What the layers keep: their inputs; "minimal" the products too; "none" everything."""
    config = experiment.model
    tokens = sum(stack.tokens * stack.layers for stack in _stacks(experiment))
    kept = tokens * config.emb_dim * _itemsize(config.residual_dtype)
    if config.remat == "full":
        return kept
    # Beside every product: what a norm, an activation or a dropout made of it.
    if config.remat == "minimal":
        return kept + _results(experiment, (p for p in listed if p.kind == "dense"))
    return kept + 2 * _results(experiment, (p for p in listed if p.kind != "head"))


def _layer(experiment: Experiment, listed: list[Product]) -> int:
    """What one layer works on in its backward pass: all its results, in the softmax's float32."""
    layers = max(stack.layers for stack in _stacks(experiment))
    scale = FLOAT32 // _itemsize(experiment.model.dtype)
    return scale * _results(experiment, (p for p in listed if p.kind != "head")) // layers


def _results(experiment: Experiment, listed: Iterable[Product]) -> int:
    """Bytes of the results of products on one chip, without what fused attention never stores."""
    model, total = experiment.mesh.model, 0
    for product in listed:
        if not (product.fused and product.columns > product.inner):
            parts = 1 if product.split == "inner" else model
            total += product.results * _itemsize(experiment.model.dtype) // parts
    return total


def _tile(experiment: Experiment, listed: list[Product]) -> int:
    """A tile's logits and their gradient, and the whole gradient of the head, in float32."""
    head = _head(listed)
    columns = head.columns // experiment.mesh.model
    return FLOAT32 * columns * (2 * -(-head.rows // TILES) + head.inner)


def _stacks(experiment):
    return experiment.student.stacks(experiment.rows, experiment.inputs, experiment.targets)


def _head(listed: list[Product]) -> Product:
    (head,) = (product for product in listed if product.kind == "head")
    return head


def _itemsize(dtype: str) -> int:
    return jax.numpy.dtype(dtype).itemsize
