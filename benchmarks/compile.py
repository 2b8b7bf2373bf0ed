"""Flan-T5-XL's training step compiled for 16 TPU v5e chips, on a machine without one.

    pip install libtpu==0.0.52    (the one that fits the installed jax: 0.10.2)
    python benchmarks/compile.py [--attention auto xla] [--batch 64]

Inputs 1,024, targets 256, bfloat16, Adafactor, top-5 KL, layers scanned and recomputed, batch and
parameters over a 4x4 mesh (data, model): along both axes ("FSDP"), and along model alone.
Prints the seconds to trace and to compile, and the bytes a chip. Where T5X can be imported, its
scalable_t5 is compiled too, with the same shape and sharding, and cross entropy.
"""

import argparse
import os
import time
from dataclasses import replace

from cot_flax.planning import targets

TARGET = targets.find("v5e-16")
os.environ.update(targets.environment(TARGET))  # before JAX and libtpu look

import jax  # noqa: E402
import t5x_peer  # noqa: E402
from flax.linen import partitioning  # noqa: E402
from harness import record  # noqa: E402

from cot_flax.errors import UserError  # noqa: E402
from cot_flax.objectives.losses import Objective  # noqa: E402
from cot_flax.planning import program  # noqa: E402
from cot_flax.planning.experiment import Experiment  # noqa: E402
from cot_flax.students.t5 import T5Config  # noqa: E402
from cot_flax.training import optimizers  # noqa: E402
from cot_flax.training.sharding import MeshConfig, batch_sharding  # noqa: E402

XL = T5Config(
    emb_dim=2048,
    num_heads=32,
    num_encoder_layers=24,
    num_decoder_layers=24,
    head_dim=64,
    mlp_dim=5120,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention", nargs="+", default=["auto"])
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    try:
        chips = program.devices(TARGET)
    except UserError as error:
        raise SystemExit(f"skipped: {error}") from error
    result: dict = {"what": f"T5 1.1 XL, batch {options.batch}, 1,024/256, v5e 4x4, top-5 KL"}
    for fsdp in (True, False):
        sharded = "FSDP" if fsdp else "model axis only"
        run = experiment(options.batch, fsdp)
        if t5x_peer.present():
            result[f"T5X scalable_t5, {sharded}"] = measure(lambda run=run: t5x(run, chips))
        for attention in options.attention:
            ours = replace(run, model=replace(XL, attention=attention))
            result[f"attention {attention}, {sharded}"] = measure(
                lambda ours=ours: program.lower_step(ours, chips)
            )
    record("compile", result)


def experiment(batch_size: int, fsdp: bool) -> Experiment:
    return Experiment(
        model=XL,
        objective=Objective(kl_weight=1.0),
        optimizer=optimizers.adafactor(optimizers.constant(1e-3)),
        batch_size=batch_size,
        inputs=1024,
        targets=256,
        steps=1,
        mesh=MeshConfig(data=4, model=4, fsdp=fsdp),
    )


def measure(lower) -> dict:
    """Seconds and bytes a chip of one compilation."""
    start = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    end = time.perf_counter()
    result = {
        "seconds": end - start,
        "of_which_compiling": end - traced,
        "gib_a_chip": {
            "state": memory.argument_size_in_bytes / targets.GIB,
            "temporaries": memory.temp_size_in_bytes / targets.GIB,
        },
    }
    print(result, flush=True)
    return result


def t5x(run: Experiment, chips):
    """T5X's step, traced: EncoderDecoderModel, scalable_t5, train_with_lr."""
    import numpy as np
    from t5x import train_state, trainer
    from t5x.partitioning import standard_logical_axis_rules

    mesh = jax.sharding.Mesh(np.array(chips).reshape(4, 4), ("data", "model"))
    by_rows = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_rows)
        for name, (shape, dtype) in run.batch_shapes.items()
        if not name.startswith("teacher")
    }
    shapes = {name: spec.shape for name, spec in batch.items()}
    model = t5x_peer.make(XL, "scalable_t5", remat_policy="full")
    rules = standard_logical_axis_rules(parameter_partitioning_dims=2 if run.mesh.fsdp else 1)

    def train_step(state, batch):
        return trainer.train_with_lr(state, batch, 1e-3, jax.random.PRNGKey(0), model, None)

    with partitioning.axis_rules(rules):  # not yet the mesh, on whose devices nothing can be put
        variables = jax.eval_shape(
            lambda key: model.get_initial_variables(key, shapes), jax.random.PRNGKey(0)
        )
        state = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
        shardings = jax.tree.map(
            lambda axes: jax.NamedSharding(mesh, partitioning.logical_to_mesh_axes(axes or ())),
            state.as_logical_axes(),
            is_leaf=lambda leaf: leaf is None or isinstance(leaf, jax.sharding.PartitionSpec),
        )
        step = jax.jit(
            train_step,
            in_shardings=(shardings, by_rows),
            out_shardings=(shardings, None),
            donate_argnums=0,
        )
        with jax.set_mesh(mesh):
            return step.lower(state, batch)


if __name__ == "__main__":
    main()
