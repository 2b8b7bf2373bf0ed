"""What a run tells: metrics.jsonl, TensorBoard, and one progress line."""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, make_folder, path_at
from cot_flax.run_folder import METRICS

T = TypeVar("T")


class Logs:
    """Writes metrics of a step everywhere at once. A resumed run appends.

    Where there are several processes, the first one writes and speaks for all.
    """

    def __init__(self, model_dir: str, *, total_steps: int, first_step: int = 0):
        from tensorboardX import SummaryWriter  # imports torch, where that is installed

        from cot_flax.training import hosts  # imports JAX, which a report need not wait for

        first = hosts.is_first()
        self._mirror = _Mirror(model_dir) if first and is_bucket(model_dir) else None
        folder = self._mirror.folder if self._mirror else path_at(model_dir)
        if first:
            make_folder(folder)
        file = folder / METRICS if first else os.devnull
        self._jsonl = open(file, "a", buffering=1)  # noqa: SIM115 (closed in close)
        self._board = SummaryWriter(str(folder / "tensorboard"), write_to_disk=first)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr, quiet=not first),
            transient=False,
        )
        self._task = self._progress.add_task("compiling", total=total_steps, completed=first_step)
        self._progress.start()

    def write(self, step: int, metrics: dict[str, float], *, kind: str = "train") -> None:
        """Logs float metrics; `kind` is "train" or "eval"."""
        self._jsonl.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train":
            self._progress.update(self._task, completed=step, description=_line(step, metrics))

        if self._mirror:
            self._mirror.copy_if_due()

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        self._progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()
        self._board.close()
        self._jsonl.close()
        if self._mirror:
            self._mirror.close()


class _Mirror:
    """A local folder whose files are copied to a bucket, where files cannot be appended to."""

    def __init__(self, bucket: str):
        self._temporary = tempfile.TemporaryDirectory(prefix="cot-flax-logs-")
        self.folder = Path(self._temporary.name)
        self._bucket, self._next = path_at(bucket), 0.0
        before = self._bucket / METRICS
        if before.exists():
            (self.folder / METRICS).write_bytes(before.read_bytes())

    def copy_if_due(self) -> None:
        """Copies twice a minute at most: a copy takes a second or so, in which no step starts."""
        if time.monotonic() >= self._next:
            self.copy()
            self._next = time.monotonic() + 30

    def copy(self) -> None:
        for file in self.folder.rglob("*"):
            if file.is_file():
                target = self._bucket / str(file.relative_to(self.folder))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())

    def close(self) -> None:
        """Copies for the last time."""
        self.copy()
        self._temporary.cleanup()


class Speed:
    """What a run gets done between two laps, and how much of that time it waited for data."""

    def __init__(self):
        self._last, self._waited = time.perf_counter(), 0.0

    def wait_for(self, batches: Iterator[T]) -> T:
        """Takes the next batch and counts the seconds until it is there."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def lap(self, tokens: float) -> dict[str, float]:
        """Returns `tokens_per_second` and `input_wait`, a share (0 to 1), since the last lap.

        Waiting is counted in full, although the device may still be at work on the step before.
        """
        now = time.perf_counter()
        seconds, self._last = max(now - self._last, 1e-9), now
        waited, self._waited = self._waited, 0.0
        return {"tokens_per_second": tokens / seconds, "input_wait": waited / seconds}


def check_finite(
    step: int, metrics: dict[str, float], model_dir: str, locate_nonfinite: Callable[[], str]
) -> None:
    """Raises UserError with the step's number on a loss or gradient that is not finite.

    Args:
        locate_nonfinite: says where that step broke; asked only then.
    """
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics[name]):
            raise UserError(
                f"{name} {metrics[name]} at step {step} ({locate_nonfinite()})",
                "a finite value",
                f"lower the learning rate or inspect the batch; metrics are in {model_dir}",
            )


def _line(step: int, metrics: dict[str, float]) -> str:
    parts = [f"step {step}", f"loss {metrics['loss']:.4f}"]
    if "kl" in metrics:
        parts.append(f"kl {metrics['kl']:.4f}")
    parts += [f"lr {metrics['learning_rate']:.2e}", f"{metrics['tokens_per_second']:,.0f} tokens/s"]
    return "  ".join(parts)
