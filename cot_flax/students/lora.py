"""Low-rank adapters beside frozen kernels (Hu et al. 2021); paper [4]'s step 2 trains them alone.

A projection `x W` becomes `x W + dropout(x) A B * alpha / r`. Its parameters `lora_a` and `lora_b`
stand beside its `kernel`; scanned layers add a leading axis to all three.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from flax.traverse_util import flatten_dict, unflatten_dict

from cot_flax.errors import UserError

PROJECTIONS = ("query", "key", "value", "out")
ADAPTERS = ("lora_a", "lora_b")
PROJECTION = "projection"
"""Of hidden states to a white-box teacher's width: in all but `merge` like an adapter."""
_ADDED = (*ADAPTERS, PROJECTION)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters of every attention; the defaults are paper [4]'s.

    Attributes:
        rank: r, columns of A and rows of B.
        alpha: the adapter's product is scaled by alpha / r.
        dropout: of the adapter's input, in training.
        targets: the projections that get an adapter, of PROJECTIONS.

    Raises:
        UserError: a value out of its range.
    """

    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"rank {self.rank}", "1 or more", "set LORA_RANK")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout {self.dropout}", "0 to below 1", "set LORA_DROPOUT")
        if not self.targets or not set(self.targets) <= set(PROJECTIONS):
            raise UserError(f"targets {self.targets}", f"some of {PROJECTIONS}", "set Lora.targets")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def adapt(x, features: int, axes: tuple[str, str], lora: Lora, dtype, deterministic):
    """Returns dropout(x) A B * alpha / r, [..., features] in `dtype`.

    Called within the module that holds the kernel. B starts at zero, so that a new adapter changes
    nothing; A as in PEFT (Kaiming uniform with a = sqrt 5: within +-1/sqrt(D)).
    """
    init_a = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    shape_a, shape_b = (x.shape[-1], lora.rank), (lora.rank, features)
    a = param_with_axes("lora_a", init_a, shape_a, jnp.float32, axes=(axes[0], "lora_rank"))
    zeros = nn.initializers.zeros
    b = param_with_axes("lora_b", zeros, shape_b, jnp.float32, axes=("lora_rank", axes[1]))
    x = nn.Dropout(lora.dropout)(x.astype(dtype), deterministic=deterministic)
    return x @ a.astype(dtype) @ b.astype(dtype) * lora.scale


def is_adapter(name: str) -> bool:
    """Whether a dotted name is that of a parameter which training adds to a model's own."""
    return name.rpartition(".")[2] in _ADDED


def split(params: dict) -> tuple[dict, dict]:
    """Returns the adapters and all other parameters, each a tree without the other's leaves."""
    flat = flatten_dict(params)
    adapters = {path: leaf for path, leaf in flat.items() if path[-1] in _ADDED}
    others = {path: leaf for path, leaf in flat.items() if path not in adapters}
    return unflatten_dict(adapters), unflatten_dict(others)


def join(one: dict, other: dict) -> dict:
    """The inverse of `split`."""
    return unflatten_dict(flatten_dict(one) | flatten_dict(other))


def merge(params: dict, lora: Lora) -> dict:
    """Returns parameters without adapters whose kernels are W + A B * alpha / r, in float32.

    Layers may be scanned or unrolled. The model of the result has `lora=None`.
    """
    adapters, merged = map(flatten_dict, split(params))
    for *module, name in adapters:
        if name == "lora_a":
            a, b = (adapters[*module, leaf].astype(jnp.float32) for leaf in ADAPTERS)
            kernel = merged[*module, "kernel"]
            delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * lora.scale
            merged[*module, "kernel"] = (kernel + delta).astype(kernel.dtype)
    return unflatten_dict(merged)
