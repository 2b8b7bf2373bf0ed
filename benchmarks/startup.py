"""What a user waits for before the work begins, and what the cache of compiled programs saves.

    python benchmarks/startup.py [--rounds 5]

`cot-flax --help` against an interpreter that does nothing (and T5X's and transformers' imports,
where they are installed); then `cot-flax demo --fast` and a training run of four steps, each twice:
with an empty cache of compiled programs and with the one that the first start left.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from harness import ratios, record, spread, take_turns

COMMAND = [sys.executable, "-m", "cot_flax.cli"]
TRAIN = [
    *(*COMMAND, "train", "--gin_file=experiments/world_base.gin"),
    *("--gin_file=models/t5_1_1_small.gin", "--gin.TRAIN_STEPS=4", "--gin.WARMUP_STEPS=0"),
    *("--gin.BATCH_SIZE=4", "--gin.RANDOM_SEED=0"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = {"help": first_words(options.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        result["demo --fast"] = twice(demo, Path(folder) / "demo")
        result["train, T5 1.1 small, 4 steps"] = twice(train, Path(folder) / "train")
    record("startup", result)


def first_words(rounds: int) -> dict:
    """Seconds until a usage text, or until a library is imported."""
    contenders = {
        "cot-flax --help": partial(run, *COMMAND, "--help"),
        "an interpreter": partial(run, sys.executable, "-c", "pass"),
    }
    for peer in ("t5x.models", "transformers"):
        if subprocess.run([sys.executable, "-c", f"import {peer}"], capture_output=True).returncode:
            continue
        contenders[f"import {peer}"] = partial(run, sys.executable, "-c", f"import {peer}")
    return {name: spread(seconds) for name, seconds in take_turns(contenders, rounds).items()}


def twice(work, folder: Path) -> dict:
    """The seconds of a start with an empty cache and of the next one."""
    cache = folder / "cache"
    job = lambda: work(folder / "run", cache)  # noqa: E731
    cold, warm = take_turns({"start": job}, 2)["start"]
    programs = len(list((cache / "compiled").glob("*-cache")))
    return {"cold": cold, "warm": warm, "cold_over_warm": ratios([cold], [warm])["median"]} | {
        "programs_kept": programs
    }


def demo(out: Path, cache: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    run(*COMMAND, "demo", "--fast", "--out", str(out), COT_FLAX_CACHE=str(cache))


def train(out: Path, cache: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    run(*TRAIN, f"--gin.MODEL_DIR='{out}'", COT_FLAX_CACHE=str(cache))


def run(*command: str, **environment: str) -> None:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
