"""The trainer's step, lowered and compiled for chips that need not be there."""

import dataclasses
import importlib.util
import re

import jax
from flax.linen import partitioning

from cot_flax.errors import UserError
from cot_flax.objectives.head_loss import TILES
from cot_flax.planning import collectives
from cot_flax.planning.experiment import (
    AXES,
    Experiment,
    abstract_mesh,
    abstract_state,
    abstract_teacher,
)
from cot_flax.planning.formula import local_bytes
from cot_flax.planning.targets import GIB, Target
from cot_flax.training import sharding, step

LIBTPU = "0.0.52"
"""Of the jax that setup.py pins."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler said of a step.

    Attributes:
        used: bytes of a chip's memory, in all.
        text: the compiled program; "" where it was too large for the compiler, or cannot be read.
        collectives: how often a step runs each.
    """

    used: int
    text: str
    collectives: dict


def devices(target: Target) -> list:
    """The devices to compile for.

    Raises:
        UserError: libtpu is absent, or does not know the slice.
    """
    if target.chip.kind != "tpu":
        return jax.devices()[: target.chips]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"no libtpu to compile for {target.name}",
            "the TPU compiler (no TPU is needed)",
            f'pip install "cot-flax[tpu]", or libtpu=={LIBTPU}',
        )
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(target.topology, platform="tpu")
    except Exception as error:
        raise UserError(
            f"libtpu: {str(error).splitlines()[0]}",
            f"a compiler for {target.topology}",
            f"install libtpu=={LIBTPU}, which fits jax 0.10.2, or take another target",
        ) from error
    return list(found.devices)


def compile_step(experiment: Experiment, chips: list) -> Program:
    """Compiles the step that `loop.train` would run.

    Args:
        experiment: with its mesh spelt out.
        chips: of `devices`.
    """
    try:
        compiled = lower_step(experiment, chips).compile()
    except jax.errors.JaxRuntimeError as error:
        own = local_bytes(abstract_state(experiment, abstract_mesh(experiment)))
        return Program(_used_when_too_large(error, own), "", {})
    counted = compiled.memory_analysis()
    used = counted.argument_size_in_bytes + counted.temp_size_in_bytes
    used += counted.output_size_in_bytes - counted.alias_size_in_bytes
    used += counted.generated_code_size_in_bytes
    text = _text(compiled)
    size = experiment.mesh.data * experiment.mesh.model
    found = collectives.read(text, devices=size, unknown_trips=TILES)
    return Program(used, text, found)


def _text(compiled) -> str:
    """The program's text; jaxlib 0.10.2 cannot read most of those of v5p and v6e (async-update)."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return ""


def lower_step(experiment: Experiment, chips: list) -> jax.stages.Lowered:
    """Traces that step for the experiment's mesh of some of the chips."""
    config = experiment.mesh
    mesh = jax.sharding.Mesh(sharding.arrange(chips, config.data, config.model), AXES)
    state = abstract_state(experiment, mesh)  # makes a key, on a device that is there
    with jax.set_mesh(mesh), partitioning.axis_rules(config.rules()):
        beside = abstract_teacher(experiment, mesh)
        program = _step(experiment, mesh, state, beside)
        return program.lower(state, _batch(experiment, mesh), *beside)


def _step(experiment, mesh, state, beside):
    shardings, theirs = jax.tree.map(lambda leaf: leaf.sharding, (state, beside))
    function = step.make_train_step(
        experiment.student,
        experiment.optimizer,
        experiment.objective,
        experiment.microbatches,
        experiment.their_student,
    )
    return jax.jit(
        function,
        in_shardings=(shardings, sharding.batch_sharding(mesh), *theirs),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )


def _batch(experiment, mesh) -> dict:
    sharded = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharded)
        for name, (shape, dtype) in experiment.batch_shapes.items()
    }


def _used_when_too_large(error: Exception, own: int) -> int:
    """The bytes that the compiler of TPUs asked for in vain; another error goes on.

    Args:
        own: of the arguments, which it leaves out where the temporaries alone are too large.
    """
    whole = re.search(r"Used ([\d.]+)([KMGT])", str(error))
    found = whole or re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", str(error))
    if not found:
        raise error
    scale = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found[2]]
    return int(float(found[1]) * scale) + (0 if whole else own)
