"""Ours beside transformers on torch, on the same card, in turn: a process for each.

Both stay on the card and take turns, so that what befalls the card befalls both. A worker compiles
and warms up, says so, and then runs a case whenever it reads its name. Torch runs as transformers
does by default: uncompiled, with SDPA.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import decoding
import jax
import step
from accelerator import speed
from accelerator.stages import Emit, emitter, failure
from harness import ratios, spread, take_turns

from cot_flax.students.t5 import T5Student

ROUNDS = 5
STEPS = 4
"""Of a turn in training."""
OURS, TORCH = "cot-flax", "transformers"
DECODING = {"8 x 1, greedy": (8, 1), "8 x 8, drawn": (8, 8)}
"""Prompts and samples of each."""


def compare(what: str, tiny: bool, emit: Emit) -> None:
    """Emits each case's seconds and how many times as long transformers takes.

    Args:
        what: "training" or "decoding".
    """
    workers = {name: Worker(name, what, tiny) for name in (OURS, TORCH)}
    notes = {name: worker.ready() for name, worker in workers.items()}
    place = f"{what} beside transformers"
    emit([place, "contenders"], notes)
    for case in notes[OURS].get("cases", []):
        able = {n: w for n, w in workers.items() if case in notes[n].get("cases", [])}
        try:
            runs = {name: partial(worker.run, case) for name, worker in able.items()}
            take_turns(runs, 1)
            seconds = take_turns(runs, ROUNDS)
        except (RuntimeError, OSError) as error:
            emit([place, case], failure(error))
            continue
        row = {name: {"seconds": spread(times)} for name, times in seconds.items()}
        if TORCH in row:
            row[TORCH]["times_as_long"] = ratios(seconds[TORCH], seconds[OURS])
        emit([place, case], row)


class Worker:
    """A process that has one contender's programs ready."""

    def __init__(self, name: str, what: str, tiny: bool):
        # Half of the card is each one's; torch takes what it needs.
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accelerator.peers", name, what, *["--tiny"] * tiny],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"},
        )

    def ready(self) -> dict:
        """What it says of itself: its cases, or an error."""
        try:
            return self._answer()
        except RuntimeError as error:
            return {"error": str(error)}

    def run(self, case: str) -> None:
        """Lets it run a case; returns when it has ended.

        Raises:
            RuntimeError: it failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with code {self._process.wait()}")
        _, answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=(OURS, TORCH))
    parser.add_argument("what")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    emit = emitter()
    try:
        cases, what = {OURS: ours, TORCH: transformers}[options.name](options.what, options.tiny)
        for run in cases.values():
            run()
    except Exception as error:
        emit([], failure(error))
        return
    emit([], {"cases": [*cases], "what": what})
    for line in sys.stdin:
        try:
            cases[line.strip()]()
            emit([], {})
        except Exception as error:
            emit([], failure(error))


Cases = dict[str, Callable[[], object]]


def ours(what: str, tiny: bool) -> tuple[Cases, str]:
    """A function for each case, which takes its steps, or decodes, and waits; and words on them."""
    shape = Shape.of(tiny or jax.default_backend() == "cpu")
    if what == "decoding":
        params = decoding.random_parameters(T5Student(shape.size.model))
        decoder = T5Student(shape.size.model).for_decoding(params)
        arguments = {
            case: (*decoder, shape.inputs, *counts, shape.targets)
            for case, counts in DECODING.items()
        }
        made = speed.in_threads(speed.compiled_decoder, arguments)
        words = f"{shape.lengths}, products in bfloat16, parameters in float32"
        return {case: future.result() for case, future in made.items()}, words
    runs = {
        kind: dataclasses.replace(
            speed.experiment(shape.size, shape.inputs, shape.targets, kind), batch_size=shape.rows
        )
        for kind in speed.LOSSES
    }
    made = speed.in_threads(speed.compiled, {kind: (run,) for kind, run in runs.items()})
    train = speed.Training()
    steps = {kind: train.stepping(run, made[kind].result()[0]) for kind, run in runs.items()}
    words = f"{STEPS} steps of a batch of {shape.rows}, {shape.lengths}, products in bfloat16"
    words += ", parameters in float32, Adafactor"
    return {kind: partial(take, STEPS) for kind, take in steps.items()}, words


def transformers(what: str, tiny: bool) -> tuple[Cases, str]:
    """The same cases by torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = Shape.of(tiny or device == "cpu")
    config, dtype = shape.size.model, "bfloat16"
    if what == "decoding":
        lengths = shape.inputs, shape.targets
        cases = {
            case: decoding.torch(config, samples, *lengths, prompts, device, dtype)
            for case, (prompts, samples) in DECODING.items()
        }
        return cases, f"{attention(config)}, all in bfloat16"
    batch = step.make_batch(config.vocab_size, shape.rows, shape.inputs, shape.targets)
    steps = {kind: step.transformers(config, batch, kind, device, dtype) for kind in speed.LOSSES}

    def take(run: Callable) -> None:
        for _ in range(STEPS):
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    words = f"{attention(config)}, bfloat16 by autocast, parameters in float32, Adafactor"
    return {kind: partial(take, run) for kind, run in steps.items()}, words


def attention(config) -> str:
    """Which attention transformers takes by default."""
    return f"attention {step.transformers_model(config).config._attn_implementation}"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What both work on; the batch is a training step's."""

    size: speed.Size
    rows: int
    inputs: int
    targets: int

    @classmethod
    def of(cls, tiny: bool) -> "Shape":
        return cls(speed.TINY, 2, 64, 8) if tiny else cls(speed.SIZES["base"], 32, 512, 128)

    @property
    def lengths(self) -> str:
        return f"{self.inputs}/{self.targets} tokens"


if __name__ == "__main__":
    main()
