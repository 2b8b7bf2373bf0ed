"""The table of plans: every Flan-T5 size on common slices, with the top-5 KL at 1,024/256.

    pip install libtpu==0.0.52    (no TPU is needed)
    python benchmarks/plans.py [--sizes xl xxl] [--targets v5e-16 v6e-256]

For every size and target the fastest mesh and REMAT that fit (`cot-flax plan --search`), Adafactor,
bfloat16. A minute or more a row for the larger sizes: rows already in results/plans.json are kept
and printed; --again makes them anew. Each row is a process of its own, since libtpu takes one
topology.
"""

import argparse
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
COLUMNS = "size", "target", "batch", "mesh", "REMAT", "GiB a chip", "step (s)", "tokens/s"


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
    from harness import RESULTS, record

    kept = RESULTS / "plans.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for size in options.sizes:
        for target in options.targets or TARGETS[size]:
            name = f"{size} {target}"
            if name not in rows or options.again:
                command = [sys.executable, __file__, "--row", size, target]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                rows[name] = json.loads(done.stdout.splitlines()[-1])
            print("| " + " | ".join(map(str, rows[name])) + " |", flush=True)
    record("plans", {"columns": COLUMNS, "rows": rows})


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
    best = None
    for option in search.fastest(
        read_experiment(), wanted, lambda run: plan.compiled(run, wanted, chips)
    ):
        print(f"{size} {target}: {option.flags}: {option.plan.memory.total:,} B", file=sys.stderr)
        best = option.plan
    if best is None or not best.memory.fits:
        return [size, target, BATCHES[size], "does not fit", "", "", "", ""]
    mesh = best.experiment.mesh
    return [
        size,
        target,
        BATCHES[size],
        f"{mesh.data} x {mesh.model}{' FSDP' if mesh.fsdp else ''}",
        best.experiment.model.remat,
        round(best.memory.total / targets.GIB, 2),
        round(best.estimate.step, 3),
        round(best.bill.tokens_per_second),
    ]


if __name__ == "__main__":
    main()
