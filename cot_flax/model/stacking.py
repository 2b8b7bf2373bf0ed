"""Parameters of a T5 whose layers are scanned, and of one whose layers are unrolled.

Scanned, a stack holds its layers as one `layers` with a leading axis; unrolled, as `layers_0`,
`layers_1`, ...
"""

import jax
import jax.numpy as jnp


def stack_layers(params: dict) -> dict:
    """Turns `layers_0`, `layers_1`, ... of both stacks into one `layers` with a leading axis."""
    return _map_stacks(params, _stack)


def unstack_layers(params: dict) -> dict:
    """The inverse of `stack_layers`; parameters without a scanned stack come back unchanged."""
    return _map_stacks(params, _unstack)


def _map_stacks(params, convert):
    return params | {name: convert(params[name]) for name in ("encoder", "decoder")}


def _stack(stack):
    names = sorted((n for n in stack if n.startswith("layers_")), key=lambda n: int(n[7:]))
    rest = {n: v for n, v in stack.items() if n not in names}
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[stack[n] for n in names])
    return rest | {"layers": layers}


def _unstack(stack):
    if "layers" not in stack:
        return stack
    rest = {n: v for n, v in stack.items() if n != "layers"}
    length = jax.tree.leaves(stack["layers"])[0].shape[0]
    take = lambda i: jax.tree.map(lambda leaf: leaf[i], stack["layers"])  # noqa: E731
    return rest | {f"layers_{i}": take(i) for i in range(length)}
