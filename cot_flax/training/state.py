"""What a run carries from step to step."""

import jax
import jax.numpy as jnp
from flax import struct

from cot_flax.model import lora
from cot_flax.model.t5 import T5
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


def abstract_variables(model: T5):
    """Shapes of the parameters, and their logical axes."""
    token = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), token, token, token))


def split_trainable(model: T5, params) -> tuple[dict, dict]:
    """Returns what the optimizer moves, and what stays; `lora.join` is the inverse."""
    return (params, {}) if model.config.lora is None else lora.split(params)


def create(model: T5, optimizer: Optimizer, seed: int, mesh, rules) -> tuple[TrainState, object]:
    """Initialises a state in its sharding; returns it and the tree of its shardings.

    The values depend on the seed alone, not on the mesh.
    """

    def init(rng):
        init_rng, dropout_rng = jax.random.split(rng)
        token = jnp.zeros((1, 1), jnp.int32)
        params = model.init(init_rng, token, token, token)["params"]
        opt_state = optimizer.transform.init(split_trainable(model, params)[0])
        return TrainState(jnp.int32(0), params, opt_state, dropout_rng)

    rng = jax.random.PRNGKey(seed)
    shardings = state_shardings(model, optimizer, jax.eval_shape(init, rng), mesh, rules)
    return jax.jit(init, out_shardings=shardings)(rng), shardings


def state_shardings(model, optimizer, abstract_state, mesh, rules) -> TrainState:
    """The sharding of every leaf of a state."""
    params = sharding.param_shardings(mesh, rules, abstract_variables(model))
    trainable, places = (split_trainable(model, p)[0] for p in (abstract_state.params, params))
    opt_state = sharding.optimizer_shardings(
        optimizer.transform, abstract_state.opt_state, trainable, places, mesh
    )
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return TrainState(replicated, params, opt_state, replicated)
