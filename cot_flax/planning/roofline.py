"""How long a step takes at least, by arithmetic: products, bytes of memory, bytes between chips.

A model, not a measurement: it counts what matrix products, the optimizer and the collectives move,
and leaves norms, softmax and the host out. `ASSUMPTIONS` says what it takes for granted.
"""

import dataclasses

import jax

from cot_flax.objectives.head_loss import TILES
from cot_flax.planning import products
from cot_flax.planning.experiment import Experiment
from cot_flax.planning.targets import Chip, Target
from cot_flax.students import attention_kernels
from cot_flax.students.products import passes

OF_PEAK = 0.6
OF_BANDWIDTH = 0.8
ASSUMPTIONS = (
    f"{OF_PEAK:.0%} of the peak FLOP/s and {OF_BANDWIDTH:.0%} of the bandwidths are reached",
    "products and memory overlap with each other, collectives with neither",
    "every axis of a mesh is a ring with links of its own, wherever its chips stand",
    "padding costs what tokens cost; the host keeps up; no evaluation or checkpoint",
)


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


def estimate(work: Work, chip: Chip, dtype: str) -> Estimate:
    """Seconds of a step on a chip whose products are of `dtype`."""
    rate = chip.flops * (chip.float32_rate if dtype == "float32" else 1.0)
    compute, memory = work.flops / rate, work.memory / chip.bandwidth
    wire = work.wire / chip.interconnect
    step = max(compute / OF_PEAK, memory / OF_BANDWIDTH) + wire / OF_BANDWIDTH
    return Estimate(compute, memory, wire, step)


def work(experiment: Experiment, target: Target, state_bytes: int, wire: float) -> Work:
    """One chip's share of a step.

    Args:
        experiment: with its mesh spelt out.
        state_bytes: of a chip's parameters and optimizer state, which a step reads and writes.
        wire: bytes a chip sends, of the compiled program or of `modelled_wire`.
    """
    mesh, config = experiment.mesh, experiment.model
    shape = experiment.batch_size, experiment.inputs, experiment.targets
    flops = products.step_flops(config, *shape) / (mesh.data * mesh.model)
    fused = fused_kinds(experiment, target.chip.kind)
    moved = sum(
        _moved(product, experiment, fused)
        * passes(product, config.remat, adapters_only=config.lora is not None)
        for product in products.forward(config, *shape)
    )
    gradients = state_bytes  # written and read once: about as much as the state
    return Work(flops, moved + 2 * state_bytes + gradients, wire)


def fused_kinds(experiment: Experiment, platform: str) -> set[str]:
    """The attentions whose [T, S] weights never reach the memory: those of a fused kernel."""
    config = experiment.model
    if config.dropout_rate > 0:
        return set()

    def is_fused(queries, keys, position):
        dtype = jax.numpy.dtype(config.dtype)
        arrays = [
            jax.ShapeDtypeStruct((1, length, config.num_heads, config.head_dim), dtype)
            for length in (queries, keys)
        ]
        bias = attention_kernels.Bias(position, None, None)
        return attention_kernels.choose(config.attention, platform, *arrays, bias) != "xla"

    S, T = experiment.inputs, experiment.targets
    fused = {"cross": is_fused(T, S, None), "attention": is_fused(S, S, 0) and is_fused(T, T, 0)}
    return {kind for kind, yes in fused.items() if yes}


def modelled_wire(experiment: Experiment) -> float:
    """Bytes that a chip sends in a step, before there is a program to read them from.

    Rings: to gather or to scatter n bytes over g chips each sends n (g - 1) / g, to sum them twice
    that. FSDP gathers the layers' weights in every pass and scatters their gradients. Otherwise the
    gradients are summed: the layers' as each micro-batch makes them, in its type; the embedding's
    and the head's once. The model axis sums what every sublayer adds, there and back.
    """
    config, mesh = experiment.model, experiment.mesh
    data, model = _ring(mesh.data), _ring(mesh.model)
    shape = experiment.batch_size, experiment.inputs, experiment.targets
    listed = products.forward(config, *shape)
    layers = sum(_weight(p) for p in listed if p.kind == "dense") / mesh.model
    ends = 1 if config.logits_via_embedding else 2
    ends *= config.vocab_size * config.emb_dim / mesh.model
    rounds, trained, itemsize = (
        experiment.microbatches,
        config.lora is None,
        _itemsize(config.dtype),
    )
    if mesh.fsdp:
        passes = 2 + (config.remat == "full")
        across_data = (itemsize * passes + 4 * trained) * (layers + ends) * data * rounds
    else:
        across_data = 2 * (itemsize * layers * rounds + 4 * ends) * trained * data
    sums = 3 if config.remat == "full" else 2
    sublayers = 2 * config.num_encoder_layers * experiment.inputs
    sublayers += 3 * config.num_decoder_layers * experiment.targets
    rows = experiment.batch_size / mesh.data
    crossing = sublayers * rows * config.emb_dim * _itemsize(config.dtype) * sums
    crossing += rows * experiment.targets * config.emb_dim * 4  # the hidden states' gradient
    return across_data + 2 * crossing * model


def _moved(product, experiment, fused) -> float:
    """Bytes of a product's two operands and its result on one chip, in one pass."""
    mesh, config = experiment.mesh, experiment.model
    rows, inner, columns, copies = product[1:5]
    inner /= mesh.model if product.split == "inner" else 1
    columns /= mesh.model if product.split == "columns" else 1
    if product.kind in ("attention", "cross"):
        copies /= mesh.data * mesh.model
        sides = rows * inner + inner * columns + rows * columns
        if product.kind in fused:
            sides -= rows * max(inner, columns)
        return sides * copies * _itemsize(config.dtype)
    head = product.kind == "head"
    size = 4 if head else _itemsize(config.dtype)
    weights = inner * columns * experiment.microbatches * (TILES if head else 1)
    return (rows / mesh.data * (inner + columns) + weights) * copies * size


def _weight(product) -> int:
    return product.inner * product.columns * product.copies


def _ring(chips: int) -> float:
    return (chips - 1) / chips


def _itemsize(dtype: str) -> int:
    return jax.numpy.dtype(dtype).itemsize
