"""The decoder against T5X's and against transformers, at T5 1.1 small's shape in float32.

    python benchmarks/decoding.py

All contenders have random parameters and a head that gives the end of the text the logit 0, which
is never the greatest of 32,128 and hardly ever drawn: all of them write all tokens. T5X joins where
it is importable, torch where it and transformers are installed.
"""

import argparse
import importlib.util
from functools import partial

import jax
import numpy as np
import t5x_peer
from harness import ratios, record, spread, take_turns
from step import transformers_model

from cot_flax.generation.decoding import decode
from cot_flax.generation.sampling import Sampling
from cot_flax.generation.slots import decode_all
from cot_flax.students.t5 import T5Config, T5Student

BATCH = 8
CASES = {  # whether the peers join, rounds, samples, tokens in, tokens out
    "greedy, 512 in, 128 out": (True, 3, 1, 512, 128),
    "8 samples, 512 in, 128 out": (True, 2, 8, 512, 128),
    "8 samples, 1024 in, 256 out": (False, 2, 8, 1024, 256),
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    model = T5Student(T5Config())
    params = random_parameters(model)
    result = {"what": f"seconds a batch of {BATCH} prompts; T5 1.1 small, float32"}
    for name, (with_peers, rounds, *case) in CASES.items():
        contenders = {"cot-flax": ours(model, params, *case)}
        if with_peers:
            contenders |= peers(model, params, *case)
        result[name] = compare(contenders, rounds)
    name = "64 prompts in 8 slots, 128 in, 1 to 256 out (mean 92), vocabulary of 100"
    result[name] = compare(uneven(), rounds=2)
    record("decoding", result)


def compare(contenders, rounds: int) -> dict:
    for run in contenders.values():  # compiles
        run()
    seconds = take_turns(contenders, rounds)
    report = {name: {"seconds": spread(times)} for name, times in seconds.items()}
    for name in report.keys() - {"cot-flax"}:
        report[name]["times_as_long"] = ratios(seconds[name], seconds["cot-flax"])
    return report


def random_parameters(model: T5Student) -> dict:
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    head = params["decoder"]["logits_dense"]
    head["kernel"] = head["kernel"].at[:, 1].set(0.0)
    return params


def random_prompts(count: int, length: int, vocab_size: int = 32_128) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(3, vocab_size - 128, (count, length)).astype(np.int32)


def ours(model, params, samples: int, length: int, max_tokens: int):
    prompts = random_prompts(BATCH, length)
    temperature = 0.0 if samples == 1 else 1.0
    settings = {"max_tokens": max_tokens, "samples": samples, "temperature": temperature}
    return lambda: decode(model, params, prompts, **settings).block_until_ready()


def peers(model, params, *case) -> dict:
    found = {}
    if t5x_peer.present():
        found["T5X"] = t5x(params, *case)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        found["transformers + torch"] = torch(model.config, *case)
    return found


def t5x(params, samples: int, length: int, max_tokens: int):
    from t5x import decoding

    draw = partial(decoding.temperature_sample, temperature=1.0, topk=1 if samples == 1 else 0)
    model = t5x_peer.make(T5Config(), decode_fn=draw)
    batch = {
        "encoder_input_tokens": random_prompts(BATCH, length),
        "decoder_input_tokens": np.zeros((BATCH, max_tokens), np.int32),
    }
    predict = jax.jit(
        lambda params, batch, rng: model.predict_batch_with_aux(
            params, batch, rng=rng, num_decodes=samples, return_all_decodes=True
        )[0]
    )
    return lambda: predict(params, batch, jax.random.PRNGKey(0)).block_until_ready()


def torch(
    config: T5Config,
    samples: int,
    length: int,
    max_tokens: int,
    prompts: int = BATCH,
    device: str = "cpu",
    dtype: str = "float32",
):
    """Returns a function that decodes with transformers, and waits for the tokens."""
    import torch

    model = transformers_model(config).eval().to(device, getattr(torch, dtype))
    tokens = torch.tensor(random_prompts(prompts, length, config.vocab_size).astype(np.int64))
    tokens = tokens.to(device)
    drawing = {"do_sample": True, "top_k": 0, "num_return_sequences": samples}
    settings = {"max_new_tokens": max_tokens} | (drawing if samples > 1 else {"do_sample": False})

    def run():
        with torch.inference_mode():
            model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings).cpu()

    return run


def uneven() -> dict:
    """Slots that are refilled against batch after batch, where answers end unevenly.

    A vocabulary of 100 equally likely tokens ends 1 answer in 100 at every token.
    """
    model = T5Student(T5Config(vocab_size=100))
    params = random_parameters(model)
    head = params["decoder"]["logits_dense"]
    head["kernel"] = head["kernel"] * 0.0
    prompts = random_prompts(64, 128) % 98 + 2
    keys = jax.random.split(jax.random.key(0), len(prompts))

    def batches():
        for i in range(0, len(prompts), BATCH):
            rows = slice(i, i + BATCH)
            output = decode(
                model, params, prompts[rows], rng=keys[rows], max_tokens=256, temperature=1.0
            )
            output.block_until_ready()

    def slots():
        decode_all(
            model, params, prompts, keys, slots=BATCH, max_tokens=256, sampling=Sampling(1.0)
        )

    return {"cot-flax": slots, "batch after batch": batches}


if __name__ == "__main__":
    main()
