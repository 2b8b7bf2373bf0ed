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

import jax
import numpy as np
import t5x_peer
from harness import ratios, record, spread, take_turns

from cot_flax.objectives.losses import Objective
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.training import optimizers, sharding, state, step

B, S, T, K, V = 8, 512, 128, 5, 32128
SCANNED = {"scan_layers": True, "remat": "minimal"}
LEARNING_RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    batch = make_batch()
    runs = {
        "ours, cross entropy": ours(batch, kl_weight=0.0),
        "ours, KL": ours(batch, kl_weight=1.0),
        "ours, scanned, cross entropy": ours(batch, kl_weight=0.0, **SCANNED),
        "ours, scanned, KL": ours(batch, kl_weight=1.0, **SCANNED),
    }
    if t5x_peer.present():
        runs["T5X, cross entropy"] = t5x(batch)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        runs |= {f"torch, {loss}": transformers(batch, loss) for loss in ("cross entropy", "KL")}
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


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(2, 32000, (B, T)).astype(np.int32)
    probabilities = np.array([0.5, 0.2, 0.1, 0.05, 0.05], np.float32)
    others = targets[..., None] + np.arange(1, K) * 7
    return {
        "encoder_input_tokens": rng.integers(2, 32000, (B, S)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((B, T), np.float32),
        "teacher_top_ids": np.concatenate([targets[..., None], others], -1).astype(np.int32) % V,
        "teacher_top_logprobs": np.broadcast_to(np.log(probabilities), (B, T, K)).copy(),
    }


def ours(batch, *, kl_weight: float, **changes):
    """Returns a function that takes a step, and the bytes of its temporaries."""
    if not kl_weight:
        batch = {name: rows for name, rows in batch.items() if not name.startswith("teacher")}
    model, mesh = T5Student(T5Config(**changes)), sharding.make_mesh(sharding.MeshConfig())
    optimizer = optimizers.adafactor(optimizers.constant(LEARNING_RATE))
    abstract = state.abstract(model, optimizer, mesh, sharding.MeshConfig().rules())
    train_step = step.make_train_step(model, optimizer, Objective(kl_weight=kl_weight))
    return stepping(train_step, state.create(model, optimizer, 0, abstract), batch)


def t5x(batch):
    from t5x import train_state, trainer

    model = t5x_peer.make(T5Config())
    batch = {name: rows for name, rows in batch.items() if not name.startswith("teacher")}
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


def transformers(batch, loss: str):
    """The same step in PyTorch; it does not tell its temporaries."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = T5Config(
        vocab_size=V,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_heads=6,
        num_layers=8,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        use_cache=False,
    )
    model = T5ForConditionalGeneration(config).train()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=LEARNING_RATE)
    tensors = {name: torch.from_numpy(rows) for name, rows in batch.items()}
    targets, ids = (tensors[n].long() for n in ("decoder_target_tokens", "teacher_top_ids"))

    def kl(logits):
        log_p, log_q = tensors["teacher_top_logprobs"], torch.log_softmax(logits, dim=-1)
        classes = torch.gather(log_q, -1, ids)
        rest_p = torch.log1p(-log_p.exp().sum(-1))
        rest_q = torch.log1p(-classes.exp().sum(-1).clamp(max=1 - 1e-6))
        terms = (log_p.exp() * (log_p - classes)).sum(-1) + rest_p.exp() * (rest_p - rest_q)
        return terms.mean()

    def run():
        logits = model(
            input_ids=tensors["encoder_input_tokens"].long(),
            decoder_input_ids=tensors["decoder_input_tokens"].long(),
        ).logits
        if loss == "KL":
            value = kl(logits)
        else:
            value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, None


if __name__ == "__main__":
    main()
