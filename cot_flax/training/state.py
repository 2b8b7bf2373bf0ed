"""What a run carries from step to step."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from cot_flax.students import lora
from cot_flax.students.student import Student
from cot_flax.training import sharding
from cot_flax.training.optimizers import Optimizer


@struct.dataclass
class TrainState:
    """Step (optimizer steps done), parameters, optimizer state and the dropout key (uint32 [2]).

    With LoRA the optimizer's state is that of the adapters alone.
    """

    step: jax.Array
    params: dict
    opt_state: tuple
    rng: jax.Array


def abstract_variables(student: Student):
    """Shapes of the parameters, and their logical axes."""
    return jax.eval_shape(lambda: student.init(jax.random.PRNGKey(0)))


def abstract_params(student: Student, mesh, rules):
    """Parameters as `ShapeDtypeStruct`s with their shardings."""
    variables = abstract_variables(student)
    places = sharding.param_shardings(mesh, rules, variables)
    return _with_shardings(variables["params"], places)


def split_trainable(student: Student, params) -> tuple[dict, dict]:
    """Returns what the optimizer moves, and what stays; `lora.join` is the inverse."""
    return (params, {}) if student.lora is None else lora.split(params)


def abstract(student: Student, optimizer: Optimizer, mesh, rules) -> TrainState:
    """A state of `ShapeDtypeStruct`s with their shardings, for what fills one."""
    shapes = jax.eval_shape(partial(_init, student, optimizer), jax.random.PRNGKey(0), {})
    shardings = state_shardings(student, optimizer, shapes, mesh, rules)
    return _with_shardings(shapes, shardings)


def create(
    student: Student,
    optimizer: Optimizer,
    seed: int,
    abstract: TrainState,
    loaded: dict | None = None,
) -> TrainState:
    """Initialises a state in the sharding of `abstract`.

    The values depend on the seed alone, not on the mesh.

    Args:
        loaded: parameters that are not drawn; donated. Those that are missing in it are drawn.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(partial(_init, student, optimizer), out_shardings=shardings, donate_argnums=1)
    return init(jax.random.PRNGKey(seed), loaded or {})


def state_shardings(student, optimizer, abstract_state, mesh, rules) -> TrainState:
    """The sharding of every leaf of a state."""
    params = sharding.param_shardings(mesh, rules, abstract_variables(student))
    trainable, places = (split_trainable(student, p)[0] for p in (abstract_state.params, params))
    opt_state = sharding.optimizer_shardings(
        optimizer.transform, abstract_state.opt_state, trainable, places, mesh
    )
    whole = sharding.replicated(mesh)
    # Shardings where a state has arrays.
    return TrainState(whole, params, opt_state, whole)  # type: ignore[arg-type]


def _with_shardings(shapes, shardings):
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def _init(student, optimizer, rng, loaded):
    init_rng, dropout_rng = jax.random.split(rng)
    drawn = student.init(init_rng)["params"]
    params = lora.join(drawn, loaded)
    opt_state = optimizer.transform.init(split_trainable(student, params)[0])
    return TrainState(jnp.int32(0), params, opt_state, dropout_rng)
