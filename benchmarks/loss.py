"""The loss through the LM head against the same from whole logits: seconds and temporaries.

    python benchmarks/loss.py [--positions 2048 4096 16384] [--widths 512 1024] [--tiles 4 8 16 32]

Value and gradients (of the hidden states and of the head) of top-5 KL in float32, and the metrics
that a run logs, V 32,128. `temporaries` is the compiler's figure, which holds a buffer of the size
of the head's gradient where a product is added to it; `beyond_head_gradient` is without. `half`
is a batch half of which is padding. The dense form of 16,384 positions takes 9 GB.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from harness import ratios, record, spread, take_turns

from cot_flax.objectives.head_loss import TILES, distillation_loss
from cot_flax.objectives.losses import Objective

V, K, ROWS = 32_128, 5, 8
OBJECTIVE = Objective(kl_weight=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--widths", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--tiles", nargs="+", type=int, default=[TILES])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result: dict = {"what": "value and gradients of top-5 KL, V 32,128, float32"}
    for width in options.widths:
        for positions in options.positions:
            name = f"D {width}, {positions} positions"
            result[name] = measure(positions, width, options.tiles, options.rounds)
    record("loss", result)


def measure(positions: int, width: int, tiles: list[int], rounds: int, vocab_size: int = V) -> dict:
    hidden, head, labels = arrays(positions, width, vocab_size)
    half = (labels[0], labels[1] * (np.arange(ROWS) < ROWS // 2)[:, None], *labels[2:])
    programs = {"dense": compiled(dense, hidden, head, labels)}
    for n in tiles:
        programs[f"ours, {n} tiles"] = compiled(tiled(n), hidden, head, labels)
    work = {name: run(program, hidden, head, labels) for name, program in programs.items()}
    work["ours, half"] = run(programs[f"ours, {tiles[0]} tiles"], hidden, head, half)
    for warm_up in work.values():
        warm_up()
    seconds = take_turns(work, rounds)
    result: dict = {name: {"seconds": spread(seconds[name])} for name in work}
    for name, program in programs.items():
        megabytes = program.memory_analysis().temp_size_in_bytes / 1e6
        own = 0.0 if name == "dense" else 4 * width * vocab_size / 1e6
        result[name] |= {"temporaries_mb": megabytes, "beyond_head_gradient_mb": megabytes - own}
    whole = result["dense"]["temporaries_mb"]
    for name in work.keys() - {"dense"}:
        result[name]["dense_over_ours"] = ratios(seconds["dense"], seconds[name])
        if name in programs:
            beyond = result[name]["beyond_head_gradient_mb"]
            result[name]["dense_over_ours_beyond_head_gradient"] = whole / beyond
    return result


def arrays(positions: int, width: int, vocab_size: int):
    rng = np.random.default_rng(0)
    shape = (ROWS, positions // ROWS)
    hidden = rng.standard_normal((*shape, width), np.float32)
    head = rng.standard_normal((width, vocab_size), np.float32) / np.float32(np.sqrt(width))
    ids = np.sort(rng.integers(1, vocab_size - K, (*shape, K))) + np.arange(K)  # distinct
    logprobs = np.broadcast_to(np.log([0.5, 0.2, 0.1, 0.05, 0.03]), ids.shape)
    targets = ids[..., 0].astype(np.int32)
    labels = targets, np.ones(shape, np.float32), ids.astype(np.int32), logprobs.astype(np.float32)
    return jax.device_put((hidden, head, labels))


def compiled(loss, hidden, head, labels):
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient).lower(hidden, head, labels).compile()


def run(program, *arguments):
    return lambda: jax.block_until_ready(program(*arguments))


def tiled(tiles: int):
    return lambda hidden, head, labels: distillation_loss(
        hidden, head, *labels, objective=OBJECTIVE, tiles=tiles
    )


def dense(hidden_BTD, head_DV, labels):
    """The same as one would write it down: log softmax, gathers, sums."""
    targets_BT, weights_BT, ids_BTK, logprobs_BTK = labels
    logits_BTV = hidden_BTD @ head_DV
    log_q_BTV = jax.nn.log_softmax(logits_BTV)
    log_q_BTK = jnp.take_along_axis(log_q_BTV, ids_BTK, axis=-1)
    p_BTK = jnp.exp(logprobs_BTK)
    rest_p, rest_q = 1 - p_BTK.sum(axis=-1), 1 - jnp.exp(log_q_BTK).sum(axis=-1)
    kl_BT = jnp.sum(p_BTK * (logprobs_BTK - log_q_BTK), axis=-1)
    kl_BT += rest_p * (jnp.log(rest_p) - jnp.log(rest_q))
    log_q_BT = jnp.take_along_axis(log_q_BTV, targets_BT[..., None], axis=-1)[..., 0]
    best_BT = jnp.argmax(logits_BTV, axis=-1)
    metrics = {
        "cross_entropy": -log_q_BT,
        "token_accuracy": best_BT == targets_BT,
        "student_mass": jnp.exp(log_q_BTK).sum(axis=-1),
        "agreement": best_BT == ids_BTK[..., 0],
    }
    sums = {name: jnp.sum(value * weights_BT) for name, value in metrics.items()}
    return jnp.sum(kl_BT * weights_BT), sums


if __name__ == "__main__":
    main()
