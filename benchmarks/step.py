"""One training step: seconds and temporaries, against T5X's step and transformers' on torch.

    python benchmarks/step.py [--rounds 3]

T5 1.1 small (77M parameters), batch 8, inputs 512, targets 128, float32, Adafactor, no dropout, all
positions real. Cross entropy and top-5 KL; torch takes its KL from a dense log-softmax. T5X (its
EncoderDecoderModel, t5x.examples.t5 and train_with_lr) and torch take their turns where they can be
imported. "scanned" is ours with SCAN_LAYERS = True and REMAT = "minimal".
"""

import argparse
import importlib.util
import os
from collections.abc import Callable

import jax
import numpy as np
import t5x_peer
from harness import ratios, record, spread, take_turns

from cot_flax.objectives.losses import Objective
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.training import optimizers, sharding, state, step

B, S, T, K = 8, 512, 128, 5
LEARNING_RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    small, scanned = T5Config(), T5Config(scan_layers=True, remat="minimal")
    batch = make_batch(small.vocab_size, B, S, T)
    runs = {
        "ours, cross entropy": ours(batch, small, kl_weight=0.0),
        "ours, KL": ours(batch, small, kl_weight=1.0),
        "ours, scanned, cross entropy": ours(batch, scanned, kl_weight=0.0),
        "ours, scanned, KL": ours(batch, scanned, kl_weight=1.0),
    }
    if t5x_peer.present():
        runs["T5X, cross entropy"] = t5x(batch)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        runs |= {
            f"torch, {loss}": (transformers(small, batch, loss), None)
            for loss in ("cross entropy", "KL")
        }
    contenders = {name: run for name, (run, _) in runs.items()}
    take_turns(contenders, 1)  # the first step of each also fills caches
    seconds = take_turns(contenders, options.rounds)
    record("step", {"what": f"T5 1.1 small, batch {B}, {S}/{T}, float32"} | table(runs, seconds))


def table(runs, seconds) -> dict:
    """A row a contender; ours with the ratios to its peers of the same loss."""
    rows = {}
    for name, (_, temporaries) in runs.items():
        rows[name] = {"seconds": spread(seconds[name])}
        rows[name]["tokens_per_second"] = B * (S + T) / rows[name]["seconds"]["median"]
        if temporaries:
            rows[name]["temporaries_gb"] = temporaries / 1e9
        for peer in ("T5X", "torch"):
            theirs = f"{peer}, {name.rpartition(', ')[2]}"
            if name.startswith("ours") and theirs in runs:
                rows[name][f"times_as_fast_as_{peer}"] = ratios(seconds[theirs], seconds[name])
                if runs[theirs][1]:
                    rows[name][f"temporaries_of_{peer}"] = temporaries / runs[theirs][1]
    return rows


def make_batch(vocab_size: int, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """A batch without padding, [rows, inputs] and [rows, targets], with a teacher's top 5."""
    rng, highest = np.random.default_rng(0), vocab_size - 128
    tokens = rng.integers(2, highest, (rows, targets)).astype(np.int32)
    probabilities = np.array([0.5, 0.2, 0.1, 0.05, 0.05], np.float32)
    ids = np.concatenate([tokens[..., None], tokens[..., None] + np.arange(1, K) * 7], axis=-1)
    return {
        "encoder_input_tokens": rng.integers(2, highest, (rows, inputs)).astype(np.int32),
        "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": np.ones((rows, targets), np.float32),
        "teacher_top_ids": ids.astype(np.int32) % vocab_size,
        "teacher_top_logprobs": np.broadcast_to(np.log(probabilities), (rows, targets, K)).copy(),
    }


def without_teacher(batch: dict) -> dict:
    return {name: rows for name, rows in batch.items() if not name.startswith("teacher")}


def ours(batch, config: T5Config, *, kl_weight: float):
    """Returns a function that takes a step, and the bytes of its temporaries."""
    if not kl_weight:
        batch = without_teacher(batch)
    model, mesh = T5Student(config), sharding.make_mesh(sharding.MeshConfig())
    optimizer = optimizers.adafactor(optimizers.constant(LEARNING_RATE))
    abstract = state.abstract(model, optimizer, mesh, sharding.MeshConfig().rules())
    train_step = step.make_train_step(model, optimizer, Objective(kl_weight=kl_weight))
    return stepping(train_step, state.create(model, optimizer, 0, abstract), batch)


def t5x(batch):
    from t5x import train_state, trainer

    model = t5x_peer.make(T5Config())
    batch = without_teacher(batch)
    shapes = {name: rows.shape for name, rows in batch.items()}
    variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
    start = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
    key = jax.random.PRNGKey(0)

    def train_step(state, batch):
        return trainer.train_with_lr(state, batch, LEARNING_RATE, key, model, None)

    return stepping(train_step, start, batch)


def stepping(train_step, state, batch):
    """Compiles a step whose state is donated; the returned function runs it to its end."""
    batch = jax.device_put(batch)
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    held = [state]

    def run():
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    return run, compiled.memory_analysis().temp_size_in_bytes


def transformers(
    config: T5Config, batch, loss: str, device: str = "cpu", dtype: str = "float32"
) -> Callable[[], None]:
    """Returns a function that takes the same step in PyTorch; on a GPU it does not wait for it.

    Args:
        dtype: of the products, by autocast; parameters are float32.
    """
    import torch

    model = transformers_model(config).train().to(device)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=LEARNING_RATE)
    tensors = {name: torch.from_numpy(rows).to(device) for name, rows in batch.items()}
    targets, ids = (tensors[n].long() for n in ("decoder_target_tokens", "teacher_top_ids"))
    inputs = {
        "input_ids": tensors["encoder_input_tokens"].long(),
        "decoder_input_ids": tensors["decoder_input_tokens"].long(),
    }

    def kl(logits):
        log_p, log_q = tensors["teacher_top_logprobs"], torch.log_softmax(logits.float(), dim=-1)
        classes = torch.gather(log_q, -1, ids)
        rest_p = torch.log1p(-log_p.exp().sum(-1))
        rest_q = torch.log1p(-classes.exp().sum(-1).clamp(max=1 - 1e-6))
        terms = (log_p.exp() * (log_p - classes)).sum(-1) + rest_p.exp() * (rest_p - rest_q)
        return terms.mean()

    def run():
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            logits = model(**inputs, use_cache=False).logits
            if loss == "KL":
                value = kl(logits)
            else:
                value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def transformers_model(config: T5Config):
    """A model of transformers with random parameters, of a T5 1.1's shape; SDPA where it knows it.

    Its head gives the end of a text the logit 0, as decoding.py's does.
    """
    import torch
    from transformers import T5Config as TheirConfig
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = T5ForConditionalGeneration(
        TheirConfig(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_encoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[1] = 0.0
    return model


if __name__ == "__main__":
    main()
