"""Bytes of one chip by kind: of a compiled program, and by a formula where there is none."""

import dataclasses
import math

import jax

from cot_flax.objectives.head_loss import TILES
from cot_flax.planning import products, roofline
from cot_flax.planning.experiment import Experiment, abstract_mesh, abstract_state
from cot_flax.students.student import build
from cot_flax.training.state import split_trainable

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip.

    Attributes:
        parameters, optimizer, batch: exact, from the shardings.
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


def modelled(experiment: Experiment, capacity: float, platform: str) -> Memory:
    """The formula, for what is not compiled.

    Args:
        experiment: with its mesh spelt out.
        capacity: bytes that a program may use.
        platform: "tpu", "gpu" or "cpu": which attention there is.
    """
    fused = roofline.fused_kinds(experiment, platform)
    state = abstract_state(experiment, abstract_mesh(experiment))
    return Memory(
        parameters=local_bytes(state.params),
        optimizer=local_bytes(state.opt_state),
        batch=_batch_bytes(experiment),
        gradients=_gradient_bytes(experiment, state),
        activations=_kept(experiment, fused),
        temporaries=_layer(experiment, fused) + _tile(experiment),
        capacity=int(capacity),
        compiled=False,
    )


def counted(experiment: Experiment, capacity: float, platform: str, used: int) -> Memory:
    """The same where the compiler says how much a program uses: `used` bytes in all."""
    formula = modelled(experiment, capacity, platform)
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


def parameter_count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _batch_bytes(experiment) -> int:
    total = sum(
        math.prod(shape) * jax.numpy.dtype(dtype).itemsize
        for shape, dtype in experiment.features().values()
    )
    return total // experiment.mesh.data


def _gradient_bytes(experiment, state) -> int:
    return local_bytes(split_trainable(build(experiment.model), state.params)[0])


def _rows(experiment) -> int:
    """Examples that a chip has in work at a time."""
    return experiment.batch_size // experiment.mesh.data // experiment.microbatches


def _kept(experiment: Experiment, fused) -> int:
    """What the layers keep: their inputs; "minimal" the products too; "none" everything."""
    config = experiment.model
    residual = jax.numpy.dtype(config.residual_dtype).itemsize
    S, T = _rows(experiment) * experiment.inputs, _rows(experiment) * experiment.targets
    inputs = S * config.num_encoder_layers + T * config.num_decoder_layers
    kept = inputs * config.emb_dim * residual
    if config.remat == "full":
        return kept
    # Beside every product: what a norm, an activation or a dropout made of it.
    beside = 1 if config.remat == "minimal" else 2
    kinds = {"dense"} if config.remat == "minimal" else {"dense", "attention", "cross"}
    return kept + beside * _results(experiment, kinds, fused)


def _results(experiment, kinds, fused) -> int:
    """Bytes of the results of one forward pass's products, on one chip."""
    config, model = experiment.model, experiment.mesh.model
    size = jax.numpy.dtype(config.dtype).itemsize
    total = 0
    shape = _rows(experiment), experiment.inputs, experiment.targets
    for product in products.forward(config, *shape):
        if product.kind in kinds and not _never_stored(product, fused):
            shared = model if product.split in ("columns", "copies") else 1
            total += product.rows * product.columns * product.copies * size // shared
    return total


def _never_stored(product, fused) -> bool:
    """Whether a fused attention keeps a product, queries by keys, to itself."""
    return product.kind in fused and product.columns > product.inner


def _layer(experiment, fused) -> int:
    """What one layer works on in its backward pass: all its results, in the softmax's float32."""
    config = experiment.model
    layers = max(config.num_encoder_layers, config.num_decoder_layers)
    scale = FLOAT32 // jax.numpy.dtype(config.dtype).itemsize
    return scale * _results(experiment, {"dense", "attention", "cross"}, fused) // layers


def _tile(experiment) -> int:
    """A tile's logits and their gradient, and the whole gradient of the head, in float32."""
    config, mesh = experiment.model, experiment.mesh
    columns = config.vocab_size // mesh.model
    positions = _rows(experiment) * experiment.targets
    return FLOAT32 * columns * (2 * -(-positions // TILES) + config.emb_dim)
