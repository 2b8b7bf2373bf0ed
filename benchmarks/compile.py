"""Flan-T5-XL's training step compiled for 16 TPU v5e chips, on a machine without one.

    pip install libtpu==0.0.52    (the one that fits the installed jax: 0.10.2)
    python benchmarks/compile.py [--attention xla flash] [--batch 64] [--remat full]

Inputs 1,024, targets 256, bfloat16, Adafactor, top-5 KL, layers scanned and recomputed, parameters
and batch over a 4x4 mesh (data, model). Prints the seconds to trace and to compile, and the bytes a
chip. T5X's scalable_t5 took 41 s for its own step (cross entropy) on two cores, its unrolled layers
169 s for the base size; see design.md.
"""

import argparse
import os

TOPOLOGY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
INPUTS, TARGETS, K = 1024, 256, 5
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention", nargs="+", default=["auto"])
    parser.add_argument("--remat", default="full")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    os.environ.update(TOPOLOGY)
    from harness import record

    mesh = topology()
    result = {"what": f"T5 1.1 XL, batch {options.batch}, {INPUTS}/{TARGETS}, v5e 4x4, top-5 KL"}
    for attention in options.attention:
        result[f"attention {attention}, remat {options.remat}"] = measure(
            mesh, options.batch, attention=attention, remat=options.remat
        )
    record("compile", result)


def topology():
    """A mesh of 4 x 4 chips that are not there; ends the script where libtpu is absent."""
    from jax.experimental import topologies

    try:
        chips = topologies.get_topology_desc("v5e:4x4", platform="tpu")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f"skipped: no TPU compiler ({reason}); pip install libtpu") from error
    return topologies.make_mesh(chips, (4, 4), ("data", "model"))


def measure(mesh, batch_size: int, *, attention: str, remat: str) -> dict:
    """Seconds and bytes a chip of one compilation."""
    import time

    import jax
    from flax.linen import partitioning

    from cot_flax.training.sharding import MeshConfig, batch_sharding

    rules = MeshConfig(data=4, model=4, fsdp=True).rules()
    step, state = make_step(mesh, rules, attention=attention, remat=remat)
    with jax.set_mesh(mesh), partitioning.axis_rules(rules):
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
            for name, (shape, dtype) in features(batch_size).items()
        }
        start = time.perf_counter()
        lowered = step.lower(state, batch)
        traced = time.perf_counter()
        print(f"attention {attention}: traced in {traced - start:.1f} s", flush=True)
        compiled = lowered.compile()
        seconds = time.perf_counter() - traced
    print(f"attention {attention}: compiled in {seconds:.1f} s", flush=True)
    memory = compiled.memory_analysis()
    return {
        "seconds": traced - start + seconds,
        "of_which_compiling": seconds,
        "gib_a_chip": {
            "state": memory.argument_size_in_bytes / GIB,
            "temporaries": memory.temp_size_in_bytes / GIB,
        },
    }


def make_step(mesh, rules, *, attention: str, remat: str):
    """The trainer's step and an abstract state of its sharding."""
    import dataclasses

    import gin
    import jax

    from cot_flax import configuration
    from cot_flax.model.losses import Objective
    from cot_flax.model.t5 import T5
    from cot_flax.training import optimizers, sharding, state, step

    configuration.parse(["models/t5_1_1_xl.gin"], [f"REMAT={remat!r}"])
    config = gin.get_configurable("t5.T5Config")()
    model = T5(dataclasses.replace(config, attention=attention))
    optimizer = optimizers.adafactor(optimizers.constant(1e-3))
    abstract = state.abstract(model, optimizer, mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    train_step = jax.jit(
        step.make_train_step(model, optimizer, Objective(kl_weight=1.0)),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )
    return train_step, abstract


def features(batch_size: int) -> dict:
    """Shapes and types of a packed batch with teacher rows."""
    inputs, targets = (batch_size, INPUTS), (batch_size, TARGETS)
    return {
        "encoder_input_tokens": (inputs, "int32"),
        "encoder_segment_ids": (inputs, "int32"),
        "decoder_input_tokens": (targets, "int32"),
        "decoder_target_tokens": (targets, "int32"),
        "decoder_segment_ids": (targets, "int32"),
        "decoder_loss_weights": (targets, "float32"),
        "teacher_top_ids": ((*targets, K), "int32"),
        "teacher_top_logprobs": ((*targets, K), "float32"),
    }


if __name__ == "__main__":
    main()
