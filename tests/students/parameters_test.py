import jax
import jax.numpy as jnp
import numpy as np

from cot_flax.students.parameters import stack_layers, unstack_layers


def test_stacking_keeps_the_order_of_many_layers():
    stack = {f"layers_{i}": {"w": jnp.full((2,), i)} for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    tree = {"encoder": stack | {"norm": jnp.ones(1)}, "decoder": stack, "other": jnp.zeros(1)}
    stacked = stack_layers(tree)
    assert set(stacked["encoder"]) == {"layers", "norm"}
    np.testing.assert_array_equal(stacked["decoder"]["layers"]["w"][:, 0], np.arange(11))


def test_unstacking_is_the_inverse_of_stacking(tiny):
    params = tiny[1]
    back = unstack_layers(stack_layers(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert unstack_layers(params) == params
