"""Where a step that is not finite broke: flags made on the device, names given on the host."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cot_flax.students.student import Student


def gradient_flags(student: Student, grads: dict) -> jax.Array:
    """Boolean, one for each of `names(student, grads)`: its square sum is not finite."""
    squares = [jnp.sum(jnp.square(leaf)) for _, leaf in _forward(student, grads)]
    return ~jnp.isfinite(jnp.stack(squares))


def names(student: Student, params: dict) -> list[str]:
    """Names of parameters in forward order."""
    return [name for name, _ in _forward(student, params)]


def locate_nonfinite(
    places: Sequence[str],
    trainable: Sequence[str],
    activations: np.ndarray,
    gradients: np.ndarray,
    loss: float,
) -> str:
    """Says where a step that is not finite broke.

    Args:
        places: of the student.
        trainable: `names` of the parameters that have a gradient.
        activations: float [P], above 0 where a place gave something that is not finite.
        gradients: `gradient_flags` of that step.
        loss: the loss of that step.
    """
    if np.any(activations > 0):
        return f"the first bad place is {places[int(np.argmax(activations > 0))]}"
    if not math.isfinite(loss):
        return "the logits are finite, the loss weights or the teacher's rows are not"
    # The backward pass reaches the last parameter first.
    last = [name for name, bad in zip(trainable, gradients, strict=True) if bad][-1]
    return f"the loss is finite, the gradient breaks at {last}"


def _forward(student: Student, tree: dict) -> list[tuple[str, jax.Array]]:
    order = {module: place for place, module in enumerate(student.forward_order)}

    def place(named):
        parts = [part.rpartition("_") for part in named[0].split(".")]
        split = [(head, i) if i.isdigit() else (head + _ + i, 0) for head, _, i in parts]
        return [(order.get(part, len(order)), int(i)) for part, i in split]

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sorted(((".".join(k.key for k in path), leaf) for path, leaf in leaves), key=place)
