"""What a run tells: metrics.jsonl, TensorBoard, a tracker, and lines on standard error."""

import datetime
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, make_folder, path_at
from cot_flax.run_folder import METRICS, TENSORBOARD, leaks_in
from cot_flax.training import hosts
from cot_flax.training.trackers import Tracker

T = TypeVar("T")
_UNUSED = ("torch", "google.cloud.storage", "boto3")


def _summary_writer() -> type:
    """The class of tensorboardX, which imports what it finds of `_UNUSED`, for some two seconds."""
    hidden = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be had
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter


class Logs:
    """Writes metrics of a step everywhere at once. A resumed run appends.

    A terminal gets a progress line at its bottom; a file or pipe a line at every logging period.
    Where there are several processes, the first one writes and speaks for all.

    Args:
        tracker: a service that has been started, and gets every line, too.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        total_steps: int,
        first_step: int = 0,
        tracker: Tracker | None = None,
    ):
        first = hosts.is_first()
        self._mirror = _Mirror(model_dir) if first and is_bucket(model_dir) else None
        folder = self._mirror.folder if self._mirror else path_at(model_dir)
        if first:
            make_folder(folder)
        file = folder / METRICS if first else os.devnull
        self._jsonl = open(file, "a", buffering=1)  # noqa: SIM115 (closed in close)
        self._board = _summary_writer()(str(folder / TENSORBOARD), write_to_disk=first)
        self._tracker = tracker
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=_console(),
            transient=False,
            disable=not _console().is_terminal,
        )
        self._task = self._progress.add_task("compiling", total=total_steps, completed=first_step)
        self._progress.start()
        self._total = total_steps
        self._before: tuple[int, float] | None = None

    def write(self, step: int, metrics: dict[str, float], *, kind: str = "train") -> None:
        """Logs float metrics; `kind` is "train" or "eval"."""
        self._jsonl.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._tracker:
            self._tracker.write(step, {f"{kind}/{name}": v for name, v in metrics.items()})
        if kind == "eval":
            self.say(
                f"step {step}  {kind}  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            )
        elif self._progress.disable:
            self.say(f"{_line(step, metrics)}  eta {self._eta(step)}")
        else:
            self._progress.update(self._task, completed=step, description=_line(step, metrics))
        if self._mirror:
            self._mirror.copy_if_due()

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        _print(self._progress.console, text)

    def close(self) -> None:
        self._progress.stop()
        self._board.close()
        self._jsonl.close()
        if self._mirror:
            self._mirror.close()
        if self._tracker:  # last, for it may wait for a network
            self._tracker.close()

    def _eta(self, step: int) -> str:
        """The time left, H:MM:SS, at the speed since the last line; the first one has compiled."""
        before, now = self._before, time.monotonic()
        self._before = step, now
        if step >= self._total:
            return str(datetime.timedelta(0))
        if before is None or step == before[0]:
            return "-:--:--"
        seconds = (now - before[1]) / (step - before[0]) * (self._total - step)
        return str(datetime.timedelta(seconds=round(seconds)))


def say(*lines: str) -> None:
    """Prints lines on standard error, where this process speaks for all."""
    for line in lines:
        _print(_console(), line)


def summary(facts: Mapping[str, Any], model_dir: str) -> list[str]:
    """What is trained from where, on what, how long; see `run_folder.write_facts` for the facts."""
    student, data, training = facts["student"], facts["data"], facts["training"]
    objective = facts["objective"]
    begun = facts["started_from"] or "random weights (INITIAL_CHECKPOINT_PATH is None)"
    devices = " x ".join(f"{axis} {n}" for axis, n in training["mesh"].items() if axis != "fsdp")
    rates = ", ".join(f"{task} {rate:.1%}" for task, rate in data.get("rates", {}).items())
    tokens = training["batch_size"] * sum(data.get("lengths", {}).values())
    rows = f"{training['batch_size']} {'packed rows' if data.get('pack') else 'examples'}"
    kl = [f"KL x {objective['kl_weight']:g} (tail {objective['tail']}"]
    kl.append(f"temperature {objective['temperature']:g})")
    terms = kl if objective["kl_weight"] else ["cross entropy"]
    if white_box := objective.get("white_box"):
        rest = f" and {1 - white_box['weight']:g} x {', '.join(terms)}"
        terms = [f"{white_box['loss']} x {white_box['weight']:g} of {facts['taught_by']}"]
        terms[0] += rest if white_box["weight"] < 1 else ""
    return [
        f"student: {student['family']}, {student['parameters']:,} parameters, from {begun}",
        f"data: {data.get('mixture', 'a stream')}" + (f" = {rates}" if rates else ""),
        f"objective: {', '.join(terms)}; "
        f"{training['steps']:,} steps of {rows}"
        + (f", at most {tokens:,} tokens" if tokens else ""),
        *(f"{name}: {found}" for name, found in leaks_in(facts).items() if found.any),
        f"devices: {jax.devices()[0].device_kind} ({devices}); MODEL_DIR: {model_dir}",
    ]


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


def _console() -> Console:
    return Console(file=sys.stderr, quiet=not hosts.is_first())


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _line(step: int, metrics: dict[str, float]) -> str:
    parts = [f"step {step}", f"loss {metrics['loss']:.4f}"]
    if "kl" in metrics:
        parts.append(f"kl {metrics['kl']:.4f}")
    parts += [f"lr {metrics['learning_rate']:.2e}", f"{metrics['tokens_per_second']:,.0f} tokens/s"]
    return "  ".join(parts)
