"""Packing GSM8K's four formats: rows against SeqIO's packer and a lower bound; examples a second.

    python benchmarks/packing.py --data ../shared/data

The mixture is 40/40/10/10 few-shot CoT / zero-shot CoT / few-shot answer / zero-shot answer with
four exemplars, in T5's vocabulary. Rates are by the processor's seconds of all threads: examples a
second that one core makes.
"""

import argparse
import itertools
import json
import logging
import tempfile
import time
from pathlib import Path

import gin
import numpy as np
import seqio
import tensorflow as tf
from harness import ratios, record, spread, take_turns

from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.samples import Logprobs, Sample, write_samples
from cot_flax.data import packing
from cot_flax.data.batches import TaskBatches
from cot_flax.store.prepare import prepare
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.tasks import gsm8k
from cot_flax.text.tokenizers import T5_SPECIAL_IDS

PAIRS = ((512, 128), (1024, 256), (1280, 256), (1408, 256), (1536, 320), (2048, 384), (2048, 512))
LAYOUT = EncoderDecoder()
LENGTHS = {"inputs": 1024, "targets": 256}  # of the rates
WINDOW = 512  # examples that first-fit-decreasing sorts at a time
MODELS = {"base": (768, 12, 12, 64, 2048), "xl": (2048, 24, 32, 64, 5120)}  # D, layers, H, C, F
VOCABULARY = 32128
# Bfloat16 FLOP/s of the data sheets: an H200, and a host of eight v5e chips.
MACHINES = {"H200": 989e12, "v5e host": 8 * 197e12}
UTILIZATION = 0.5  # the aim of issue 5: more examples than most machines take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # SeqIO's, on tasks that are not cached
    bind("tasks.gsm8k.data.directory", options.data / "gsm8k")
    bind("data.features.t5_vocabulary_file.path", options.data / "t5_vocab" / "spiece.model")
    drawn = list(itertools.islice(examples(), options.examples))
    result: dict = {"examples": len(drawn), "mean_lengths": sizes(drawn).mean(0).tolist()}
    result["pairs"] = {f"{S}/{T}": compare(drawn, S, T) for S, T in PAIRS}
    result["packing"] = rates_of_packing(drawn, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        bind("tasks.gsm8k.teacher_store.directory", make_store(options.data, Path(folder)))
        result["whole_path"] = rates_of_path(options.rounds)
    result["cores"] = cores(result)
    record("packing", result)


def bind(name: str, value) -> None:
    gin.bind_parameter(f"cot_flax.{name}", str(value))


def examples():
    """The mixture's examples as the trainer draws them, any length."""
    batches = TaskBatches("gsm8k_cot_mix", {"inputs": 2048, "targets": 512}, 1)
    return batches._examples(num_epochs=None)


def sizes(drawn) -> np.ndarray:
    return np.array([(len(e["inputs"]), len(e["targets"])) for e in drawn])


def compare(drawn, S: int, T: int) -> dict:
    """Rows of every packer for the examples that fit, and what a row costs."""
    lengths = {"inputs": S, "targets": T}
    fitting = [e for e in drawn if len(e["inputs"]) <= S and len(e["targets"]) <= T]
    sizes_N2, limits = sizes(fitting), np.array([S, T])
    rows = {
        "ours": sum(1 for _ in packing.pack(fitting, LAYOUT, lengths)),
        "seqio": sum(1 for _ in seqio_rows(fitting, lengths)),
        "next_fit": next_fit(sizes_N2, limits),
        "first_fit_decreasing": sum(
            first_fit_decreasing(sizes_N2[i : i + WINDOW], limits)
            for i in range(0, len(fitting), WINDOW)
        ),
        "lower_bound": max(
            lower_bound(n, limit) for n, limit in zip(sizes_N2.T, limits, strict=True)
        ),
    }
    real = sizes_N2.sum(0)
    return {
        "left_out": len(drawn) - len(fitting),
        "rows": rows,
        "seqio_over_ours": rows["seqio"] / rows["ours"],
        "ours_over_bound": rows["ours"] / rows["lower_bound"],
        "fill": {k: (real / (n * limits)).tolist() for k, n in rows.items()},
        "padded_tokens_an_example": rows["ours"] * (S + T) / len(fitting),
        "teraflops_an_example": {
            name: rows["ours"] * row_flops(S, T, *shape) / len(fitting) / 1e12
            for name, shape in MODELS.items()
        },
        "attention_share": {name: attention_share(S, T, *shape) for name, shape in MODELS.items()},
    }


def seqio_rows(drawn, lengths):
    """SeqIO's own packer, as T5X calls it; its rate has the generator's time in it, as ours has."""
    features = {name: tf.TensorSpec([None], tf.int32) for name in lengths}
    stream = ({name: e[name] for name in lengths} for e in drawn)
    dataset = tf.data.Dataset.from_generator(lambda: stream, output_signature=features)
    return seqio.EncDecFeatureConverter(pack=True)(dataset, lengths).as_numpy_iterator()


def next_fit(sizes_N2, limits) -> int:
    rows, used = 1, np.zeros(2, int)
    for size in sizes_N2:
        fits = (used + size <= limits).all()
        rows, used = (rows, used + size) if fits else (rows + 1, size)
    return rows


def first_fit_decreasing(sizes_N2, limits) -> int:
    """By the larger share of a side."""
    room_N2, rows = np.tile(limits, (len(sizes_N2), 1)), 0
    for i in np.argsort(-(sizes_N2 / limits).max(1), kind="stable"):
        row = int((room_N2 >= sizes_N2[i]).all(1).argmax())
        room_N2[row] -= sizes_N2[i]
        rows = max(rows, row + 1)
    return rows


def lower_bound(sizes_N: np.ndarray, limit: int) -> int:
    """Martello and Toth's L2: no packing of one side alone takes fewer rows.

    Examples over half a row have a row each; those of K and more that find no room beside them, or
    would not fit beside those over limit - K, need more. K = 0 is tokens over capacity.
    """

    def bound(K):
        alone, half = sizes_N > limit - K, sizes_N > limit / 2
        middle = sizes_N[half & ~alone]
        small = sizes_N[~half & (sizes_N >= K)].sum()
        beside = len(middle) * limit - middle.sum()
        return int(alone.sum() + len(middle) + max(0, -(-(small - beside) // limit)))

    return max(bound(K) for K in range(limit // 2 + 1))


def row_flops(S, T, D, layers, H, C, F) -> float:
    """Multiplications and additions of a training step on one row, three times the forward's."""
    own = 4 * D * H * C + 3 * D * F
    dense = S * layers * own + T * layers * (own + 2 * D * H * C) + S * layers * 2 * D * H * C
    return 6 * (dense + T * D * VOCABULARY) + attention_flops(S, T, layers, H, C)


def attention_flops(S, T, layers, H, C) -> float:
    """Scores and sums over the whole row: segments are masked, not skipped."""
    return 6 * layers * 2 * H * C * (S * S + T * T + S * T)


def attention_share(S, T, D, layers, H, C, F) -> float:
    return attention_flops(S, T, layers, H, C) / row_flops(S, T, D, layers, H, C, F)


def rates_of_packing(drawn, rounds: int) -> dict:
    fitting = [e for e in drawn if all(len(e[name]) <= n for name, n in LENGTHS.items())]
    rows = list(packing.pack(fitting, LAYOUT, LENGTHS))

    def lay_out():
        for group in packing.batched(rows, 64):
            LAYOUT.to_batch(group, LENGTHS, T5_SPECIAL_IDS, top_k=0, packed=True)

    seconds = take_turns(
        {
            "ours": lambda: list(packing.pack(fitting, LAYOUT, LENGTHS)),
            "ours, batches": lay_out,
            "seqio": lambda: list(seqio_rows(fitting, LENGTHS)),
        },
        rounds,
    )
    report: dict = {k: spread([len(fitting) / t for t in v]) for k, v in seconds.items()}
    return report | {"ours_over_seqio": ratios(seconds["seqio"], seconds["ours"])}


def make_store(data: Path, folder: Path) -> Path:
    """A store of SmolLM2's probabilities for 256 human solutions."""
    lines = (data / "teacher" / "smollm2_gsm8k_train_top5.jsonl").read_text().splitlines()
    write_samples(folder / "samples.jsonl", map(sample, map(json.loads, lines)))
    settings = Preparation(Filters(rules="none"))
    inputs, store = [str(folder / "samples.jsonl")], folder / "store"
    prepare(inputs, str(store), vocabulary=gsm8k.VOCABULARY, settings=settings, workers=1)
    return store


def sample(line: dict) -> Sample:
    names = ("tokens", "token_logprobs", "top_logprobs")
    return Sample(
        id=f"gsm8k-train-{line['index']}",
        dataset="gsm8k",
        split="train",
        question=line["question"],
        gold_answer=line["answer"],
        format="zero_shot_cot",
        prompt_hash="",
        teacher={"model": line["model"], "params": {}},
        sample=0,
        text=line["completion"],
        logprobs=Logprobs(*(tuple(line["logprobs"][name][:-1]) for name in names)),
        finish_reason="stop",
    )


def rates_of_path(rounds: int, batches: int = 20) -> dict:
    """From the records to packed batches of 64 rows at 1,024/256, by examples a core."""
    paths = {
        "from text": TaskBatches("gsm8k_cot_mix", LENGTHS, 64, pack=True),
        "from a store": TaskBatches("gsm8k_teacher_cot_mix", LENGTHS, 64, pack=True),
        "from a store, cached": TaskBatches(
            "gsm8k_teacher_cot_mix", LENGTHS, 64, pack=True, use_cached=True
        ),
    }
    return {
        name: {
            "examples_a_core": spread([r[0] for r in runs]),
            "examples_a_second": spread([r[1] for r in runs]),
        }
        for name, path in paths.items()
        for runs in [[rate(path, batches) for _ in range(rounds)]]
    }


def rate(path: TaskBatches, batches: int) -> tuple[float, float]:
    """Examples by the seconds of all cores and by the clock's, after a warm-up."""
    stream = path.batches()
    for _ in range(8):
        next(stream)
    seen, cpu, clock = path._seen, time.process_time(), time.perf_counter()
    for _ in range(batches):
        next(stream)
    seen = path._seen - seen
    found = seen / (time.process_time() - cpu), seen / (time.perf_counter() - clock)
    stream.close()
    return found


def cores(result: dict) -> dict:
    """Cores that feed a machine, if it trains at UTILIZATION of its data sheet's FLOP/s."""
    a_core = result["whole_path"]["from text"]["examples_a_core"]["median"]
    flops = result["pairs"]["1024/256"]["teraflops_an_example"]
    return {
        f"{machine}, {model}": {
            "examples_a_second": (wanted := UTILIZATION * peak / (flops[model] * 1e12)),
            "cores": wanted / a_core,
        }
        for machine, peak in MACHINES.items()
        for model in MODELS
    }


if __name__ == "__main__":
    main()
