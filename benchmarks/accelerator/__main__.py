"""One accelerator's figures in under ten minutes; accelerator.sh says how to start it.

The stages run one after the other, the most valuable first, each in processes of its own: what a
stage does to the card's memory ends with it, and one that hangs or crashes is killed and leaves
what it had measured. This process imports no JAX, so that the card is free.
"""

import argparse
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from accelerator import table
from harness import machine

# Its name in stages.py, and the most seconds that it may take. Together they are more than there
# is: a stage that ends early leaves its time to the last ones, which are worth least.
STAGES = {
    "correctness": 120,
    "training base": 100,
    "training beside transformers": 90,
    "decoding": 110,
    "training xl": 100,
    "head loss": 40,
    "decoding beside transformers": 70,
    "training large": 110,
}
LEAST = 20  # seconds: with fewer left no stage is begun
VERSIONS = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax", "numpy"),
    *("torch", "transformers"),
)

SAME = ("commit", "device", "machine", "python", "versions", "driver")


def main() -> int:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are killed, too
    options = parsed()
    stages = [name for name in STAGES if name in (options.only or STAGES)]
    with tempfile.TemporaryDirectory() as cache:
        result = Result(options.out, options.tiny)
        for name in stages:
            left = options.seconds - (time.monotonic() - started)
            if left < LEAST:
                result.take(["stages", name], {"seconds": 0, "ended": "not begun: no time left"})
                continue
            begun = time.monotonic()
            ended = run_stage(name, min(STAGES[name], left), result, cache)
            seconds = round(time.monotonic() - begun, 1)
            result.take(["stages", name], {"seconds": seconds, "ended": ended})
    print(table.markdown(result.found), flush=True)
    print(f"{result.path or 'no device was found: nothing is kept'}")
    return 0 if result.is_correct("correctness" in stages) else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="accelerator.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=570, help="after which no stage runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=str([*STAGES]))
    parser.add_argument("--tiny", action="store_true", help="tiny models, as without accelerator")
    return parser.parse_args()


class Result:
    """What was found so far, in a file as soon as the device is known.

    What the file has from before, of the same commit, device and versions, stays: stages that one
    call had no time for can have a call of their own.

    Args:
        tiny: whether the stages are asked for tiny models; without an accelerator they are tiny
            in any case.
    """

    def __init__(self, folder: Path, tiny: bool):
        self._folder, self.tiny, self._begun = folder, tiny, time.monotonic()
        self.path: Path | None = None
        self.found: dict = {
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "machine": machine(),
            "python": platform.python_version(),
            "versions": versions(),
            "driver": driver(),
            "stages": {},
        }

    def is_correct(self, wanted: bool) -> bool:
        """Whether no check failed and, where checks were wanted, all were made."""
        checks = self.found.get("correctness", {}).values()
        whole = self.found["stages"].get("correctness", {}).get("ended") == "whole"
        return (whole or not wanted) and all(check["passes"] for check in checks)

    def take(self, place: list[str], value) -> None:
        """Puts a value where the keys of `place` lead, and writes the file."""
        *outer, last = place
        inner = self.found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
        if place == ["device"]:
            self.tiny = value["tiny"]
            kind = re.sub(r"[^a-z0-9]+", "-", value["kind"].lower()).strip("-")
            name = f"accelerator-{kind}{'-tiny' if self.tiny else ''}.json"
            self.path = self._folder / name
            self._take_earlier()
        elif place[0] != "stages":
            seconds = time.monotonic() - self._begun
            line = f"{seconds:.0f} s: {' / '.join(place)}: {json.dumps(value)}"
            print(line, file=sys.stderr, flush=True)
        if self.path:
            self._folder.mkdir(parents=True, exist_ok=True)
            whole = self.path.with_suffix(".part")
            whole.write_text(json.dumps(self.found, indent=2) + "\n")
            whole.replace(self.path)

    def _take_earlier(self) -> None:
        assert self.path is not None
        if not self.path.exists():
            return
        earlier = json.loads(self.path.read_text())
        if all(earlier.get(key) == self.found[key] for key in SAME):
            self.found = earlier | self.found | {"stages": earlier["stages"] | self.found["stages"]}


def run_stage(name: str, seconds: float, result: Result, cache: str) -> str:
    """Runs a stage, at most so long; returns how it ended."""
    command = [sys.executable, "-m", "accelerator.stages", name, f"--seconds={seconds}"]
    late = threading.Event()
    with subprocess.Popen(
        command + ["--tiny"] * result.tiny,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment(name, cache),
        start_new_session=True,
    ) as process:

        def kill():
            late.set()
            end(process)

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.endswith("\n"):  # else it was killed while it wrote
                    result.take(*json.loads(line))
            code = process.wait()
        finally:
            timer.cancel()
            end(process)
    if late.is_set():
        return f"cut off after {seconds:.0f} s"
    return "whole" if code == 0 else f"exit code {code}"


def end(process: subprocess.Popen) -> None:
    """Kills a stage with what it started; it is the leader of a group of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def environment(stage: str, cache: str) -> dict[str, str]:
    """What a stage sees: a program that one has compiled, the next one reads."""
    found = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if stage == "correctness":
        # No figure of it is a time; with autotuning it ran out of time on an H100.
        flags = os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0"
        found["XLA_FLAGS"] = " ".join(filter(None, flags))
    # The reference is computed on the CPU.
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:
        found["JAX_PLATFORMS"] = f"{platforms},cpu"
    return found


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def driver() -> str | None:
    """Of the card, as `nvidia-smi` names it."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return output_of(query)


def commit() -> str | None:
    return output_of(["git", "rev-parse", "--short", "HEAD"])


def output_of(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
