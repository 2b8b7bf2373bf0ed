"""`prepare` of FLAN's 33,443 rationales: records a second, peak memory, memory at two sizes.

    python benchmarks/prepare.py --data ../shared/data

Every run is a process of its own (with its workers); memory is the most anonymous memory that they
hold together.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from harness import peak_memory, record, spread

SIZES = (10_000, 30_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", nargs=2, metavar=("TSV", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        prepare_once(*options.run, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options, folder: Path) -> None:
    lines = [
        line
        for file in sorted((options.data / "flan_cot").glob("*.tsv"))
        for line in file.open(newline="\n")
    ]
    # Every second data set would change the mean length with the size: take lines evenly.
    result: dict = {"workers": options.workers, "records": len(lines)}
    for size in (len(lines), *SIZES):
        tsv = folder / f"{size}.tsv"
        tsv.write_text("".join(lines[i * len(lines) // size] for i in range(size)))
        result[str(size)] = rounds(tsv, folder, options)
    small, large = (result[str(size)]["peak_bytes"]["median"] for size in SIZES)
    result["memory_of_30k_over_10k"] = large / small
    record("prepare", result)


def rounds(tsv: Path, folder: Path, options) -> dict:
    seconds, peaks = [], []
    for number in range(options.rounds):
        out = folder / f"{tsv.stem}-{number}"
        flags = ["--data", str(options.data), "--workers", str(options.workers)]
        peaks.append(peak_memory([sys.executable, __file__, *flags, "--run", str(tsv), str(out)]))
        seconds.append(json.loads((out / "seconds.json").read_text()))
    count = int(tsv.stem)
    return {"records_per_second": spread([count / s for s in seconds]), "peak_bytes": spread(peaks)}


def prepare_once(tsv: str, out: str, options) -> None:
    """One preparation; its time is without Python's and TensorFlow's start."""
    import seqio

    from cot_flax.chains.filtering import Filters
    from cot_flax.chains.preparation import Preparation
    from cot_flax.store.prepare import prepare

    model = str(options.data / "t5_vocab" / "spiece.model")
    vocabulary = seqio.SentencePieceVocabulary(model, extra_ids=100)
    settings = Preparation(Filters(rules="none"))
    start = time.perf_counter()
    prepare([tsv], out, vocabulary=vocabulary, settings=settings, workers=options.workers)
    (Path(out) / "seconds.json").write_text(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
