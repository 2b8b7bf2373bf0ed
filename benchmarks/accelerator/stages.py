"""The process of one stage: `python -m accelerator.stages NAME`, started by __main__.py.

It writes what it finds to its standard output, a line each: JSON of [[key, ...], value], which says
where in the result the value belongs. What libraries print goes to standard error.
"""

import argparse
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

Emit = Callable[[list[str], object], None]


class Clock:
    """The time of a stage. What it would begin with too little left, it leaves out."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    clock, emit = Clock(options.seconds), emitter()
    # Just before it is cut off: what it waits for.
    faulthandler.dump_traceback_later(max(1.0, options.seconds - 5), file=sys.stderr)
    if options.stage.endswith("beside transformers"):
        from accelerator import peers  # touches no device: its workers share the card

        peers.compare(options.stage.split()[0], options.tiny, emit)
        return
    from accelerator import correctness, speed

    device = speed.device(options.tiny)
    emit(["device"], device)
    tiny = device["tiny"]
    if options.stage == "correctness":
        correctness.run(emit, tiny)
    elif options.stage == "decoding":
        speed.decoding(emit, clock, tiny)
    elif options.stage == "head loss":
        speed.head_loss(emit, tiny)
    else:
        speed.training(options.stage.removeprefix("training "), emit, clock, tiny)


def emitter() -> Emit:
    """Takes standard output for results alone."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(place: list[str], value) -> None:
        results.write(json.dumps([place, value]) + "\n")
        results.flush()

    return emit


def failure(error: Exception) -> dict:
    """An error as a result; its traceback goes to standard error."""
    traceback.print_exception(error)
    lines = str(error).splitlines() or [""]
    return {"error": f"{type(error).__name__}: {lines[0][:300]}"}


if __name__ == "__main__":
    sys.exit(main())
