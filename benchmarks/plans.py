"""The table of plans: every Flan-T5 size on common slices, with the top-5 KL at 1,024/256.

    pip install libtpu==0.0.52    (no TPU is needed)
    python benchmarks/plans.py [--sizes xl xxl] [--targets v5e-16 v6e-256] [--again]

For every size and target the fastest mesh, REMAT and MICROBATCHES that fit (`cot-flax plan
--search`), Adafactor, bfloat16, packed. Minutes a row for the larger sizes: a row is written to
results/plans.json as soon as it is there, and what is there is printed, not made again, without
--again. Each row is a process of its own, since libtpu takes one topology. docs/plans.md holds the
table.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys

BATCHES = {"small": 64, "base": 64, "large": 128, "xl": 512, "xxl": 512}
TARGETS = {
    "small": ["v5e-4", "h200"],
    "base": ["v5e-4", "v6e-4", "h200"],
    "large": ["v5e-8", "v6e-4", "h200"],
    "xl": ["v5e-16", "v5p-64", "v6e-16", "h200x8"],
    "xxl": ["v5e-64", "v5p-64", "v6e-64", "h200x8"],
}
COLUMNS = (
    *("size", "target", "batch", "mesh", "REMAT", "micro-batches"),
    *("GiB a chip", "of", "step (s)", "tokens/s", "memory by"),
)
ROW_SECONDS = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(BATCHES))
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--row", nargs=2, help="makes one row and prints it as JSON")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(row(*options.row)))
        return
    from harness import RESULTS

    kept = RESULTS / "plans.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for size in options.sizes:
        for target in options.targets or TARGETS[size]:
            name = f"{size} {target}"
            if name not in rows or options.again:
                rows[name] = made(size, target)
                kept.write_text(json.dumps(versions() | {"rows": rows}, indent=2) + "\n")
            print("| " + " | ".join(map(str, rows[name])) + " |", flush=True)


def made(size: str, target: str) -> list:
    """One row, of a process of its own; one without figures where that takes too long."""
    command = [sys.executable, __file__, "--row", size, target]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, timeout=ROW_SECONDS
        )
    except subprocess.TimeoutExpired:
        return without_figures(size, target, f"missing: not within {ROW_SECONDS // 60} minutes")
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> dict:
    from harness import machine

    found = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    date = datetime.date.today().isoformat()
    return {"machine": machine(), "date": date, **found, "columns": COLUMNS}


def row(size: str, target: str) -> list:
    """The cells of one line."""
    from cot_flax.planning import targets

    wanted = targets.find(target)
    os.environ.update(targets.environment(wanted))
    from cot_flax import configuration
    from cot_flax.cli.plan import read_experiment
    from cot_flax.planning import plan, program, search

    files = [f"models/t5_1_1_{size}.gin", "objectives/topk_kl.gin", "runs/train.gin"]
    macros = {"MODEL_DIR": "", "MIXTURE_OR_TASK_NAME": "", "TRAIN_STEPS": 1, "PACK": True}
    macros |= {"TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 256}, "DTYPE": "bfloat16"}
    macros |= {"BATCH_SIZE": BATCHES[size]}
    configuration.parse(files, [f"{name}={value!r}" for name, value in macros.items()])
    chips = program.devices(wanted)
    fitting = []
    for option in search.fastest(
        read_experiment(), wanted, lambda run: plan.compiled(run, wanted, chips)
    ):
        memory = option.plan.memory
        print(f"{size} {target}: {option.flags}: {memory.total:,} B", file=sys.stderr)
        fitting += [option.plan] if memory.fits else []
    if not fitting:
        return without_figures(size, target, "does not fit")
    best = min(fitting, key=lambda found: found.estimate.step)
    mesh = best.experiment.mesh
    return [
        size,
        target,
        BATCHES[size],
        f"{mesh.data} x {mesh.model}{' FSDP' if mesh.fsdp else ''}",
        best.experiment.model.remat,
        best.experiment.microbatches,
        round(best.memory.total / targets.GIB, 2),
        round(best.memory.capacity / targets.GIB, 2),
        round(best.estimate.step, 3),
        round(best.bill.tokens_per_second),
        "compiler" if best.memory.compiled else "formula",
    ]


def without_figures(size: str, target: str, why: str) -> list:
    cells = [size, target, BATCHES[size], why]
    return cells + [""] * (len(COLUMNS) - len(cells))


if __name__ == "__main__":
    main()
