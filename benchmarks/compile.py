"""Flan-T5-XL's training step compiled for 16 TPU v5e chips, on a machine without one.

    pip install libtpu==0.0.52    (the one that fits the installed jax: 0.10.2)
    python benchmarks/compile.py [--attention xla flash] [--batch 64] [--remat full]

Inputs 1,024, targets 256, bfloat16, Adafactor, top-5 KL, layers scanned and recomputed, batch and
parameters over a 4x4 mesh (data, model): once both ways ("FSDP"), once over the model axis alone.
Prints the seconds to trace and to compile, and the bytes a chip. Where T5X can be imported, its
scalable_t5 takes its turn with the same shape and sharding, and cross entropy.
"""

import argparse
import importlib.util
import os
import time

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
    settings = {"batch_size": options.batch, "remat": options.remat}
    for fsdp in (True, False):
        sharded = "FSDP" if fsdp else "model axis only"
        if importlib.util.find_spec("t5x") and importlib.util.find_spec("jestimator"):
            name = f"T5X scalable_t5, remat {options.remat}, {sharded}"
            result[name] = t5x(mesh, fsdp=fsdp, **settings)
        for attention in options.attention:  # after T5X: gin is locked once a file is read
            name = f"attention {attention}, remat {options.remat}, {sharded}"
            result[name] = ours(mesh, attention=attention, fsdp=fsdp, **settings)
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


def ours(mesh, *, batch_size: int, attention: str, remat: str, fsdp: bool) -> dict:
    """Our trainer's step."""
    from flax.linen import partitioning

    from cot_flax.training.sharding import MeshConfig, batch_sharding

    rules = MeshConfig(data=4, model=4, fsdp=fsdp).rules()
    step, state = make_step(mesh, rules, attention=attention, remat=remat)
    with partitioning.axis_rules(rules):
        return measure(mesh, step, state, abstract_batch(batch_size, batch_sharding(mesh)))


def measure(mesh, step, state, batch) -> dict:
    """Seconds and bytes a chip of one compilation."""
    import jax

    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = step.lower(state, batch)
        traced = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
    memory = compiled.memory_analysis()
    result = {
        "seconds": end - start,
        "of_which_compiling": end - traced,
        "gib_a_chip": {
            "state": memory.argument_size_in_bytes / GIB,
            "temporaries": memory.temp_size_in_bytes / GIB,
        },
    }
    print(result, flush=True)
    return result


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


def t5x(mesh, *, batch_size: int, remat: str, fsdp: bool) -> dict:
    """T5X's step: EncoderDecoderModel, scalable_t5, train_with_lr."""
    from functools import partial

    import jax
    import seqio
    from flax.linen import partitioning
    from t5x import adafactor, models, train_state, trainer
    from t5x.examples.scalable_t5 import network
    from t5x.partitioning import standard_logical_axis_rules

    from cot_flax.training.sharding import batch_sharding

    config = network.T5Config(
        vocab_size=32128,
        dtype="bfloat16",
        emb_dim=2048,
        num_heads=32,
        num_encoder_layers=24,
        num_decoder_layers=24,
        head_dim=64,
        mlp_dim=5120,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        remat_policy=remat,
    )
    factors = adafactor.standard_logical_factor_rules()
    optimizer = adafactor.Adafactor(decay_rate=0.8, step_offset=0, logical_factor_rules=factors)
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size)
    model = models.EncoderDecoderModel(
        network.Transformer(config), vocabulary, vocabulary, optimizer
    )
    rules = standard_logical_axis_rules(parameter_partitioning_dims=2 if fsdp else 1)
    placed = batch_sharding(mesh)
    batch = abstract_batch(batch_size, placed)
    batch = {name: spec for name, spec in batch.items() if not name.startswith("teacher")}
    shapes = {name: spec.shape for name, spec in batch.items()}
    with partitioning.axis_rules(rules):
        initial = partial(model.get_initial_variables, input_shapes=shapes)
        variables = jax.eval_shape(initial, jax.random.PRNGKey(0))
        state = train_state.FlaxOptimTrainState.create(optimizer, variables)
        shardings = jax.tree.map(
            lambda axes: jax.NamedSharding(mesh, partitioning.logical_to_mesh_axes(axes or ())),
            state.as_logical_axes(),
            is_leaf=lambda leaf: leaf is None or isinstance(leaf, jax.sharding.PartitionSpec),
        )
        step = jax.jit(
            lambda state, batch: trainer.train_with_lr(
                state, batch, 1e-3, jax.random.PRNGKey(0), model, None
            ),
            in_shardings=(shardings, placed),
            out_shardings=(shardings, None),
            donate_argnums=0,
        )
        return measure(mesh, step, state, batch)


def abstract_batch(batch_size: int, sharding) -> dict:
    """Shapes, types and places of a packed batch with teacher rows."""
    import jax

    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in features(batch_size).items()
    }


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
