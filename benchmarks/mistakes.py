"""The mistakes of tests/mistakes_test.py as commands of their own: message, exit code, seconds.

    python benchmarks/mistakes.py OUT.tsv [WORD]     WORD: only rows whose kind or command has it

The code that is run is that of the current Python's cot_flax: another commit's with PYTHONPATH.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/lib")]

import mistakes_test  # noqa: E402

LIMIT_S = 300


def run(command: str, folder: Path) -> tuple[int, str, float]:
    """Exit code (124: it was stopped), the last line on standard error, seconds."""
    *before, command = command.split(" && ")
    settings = dict(map(shlex.split, before))
    limit = ["bash", "-c", f'ulimit -f {settings.get("ulimit", "unlimited")}; exec "$@"', ""]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [*limit, sys.executable, "-m", "cot_flax.cli", *shlex.split(command)],
            cwd=folder / settings.get("cd", "."),
            env=os.environ | mistakes_test.NO_NETWORK,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        code, lines = done.returncode, done.stderr.splitlines()
    except subprocess.TimeoutExpired as error:
        code, lines = 124, (error.stderr or b"").decode().splitlines()
    seconds = time.perf_counter() - start
    said = lines[-1] if lines else ""
    return code, f"[{len(lines)} lines] {said}" if len(lines) != 1 else said, seconds


def main(out: str, word: str = "") -> None:
    with tempfile.TemporaryDirectory() as place, open(out, "w") as file:
        folder = Path(place)
        os.environ["COT_FLAX_CACHE"] = str(folder / "cache")
        mistakes_test.make_folder(folder)
        for mistake in mistakes_test.MISTAKES:
            if word not in f"{mistake.kind} {mistake.command}":
                continue
            before = mistakes_test.tree(folder)
            code, said, seconds = run(mistake.command, folder)
            after = mistakes_test.tree(folder)
            changed = sorted(n for n in before | after if before.get(n, 0) != after.get(n, 0))
            changed = [name for name in changed if not name.startswith("cache")]
            row = mistake.kind, mistake.command.strip(), code, f"{seconds:.1f}", said
            print(*row, " ".join(changed[:3]), sep="\t", file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
