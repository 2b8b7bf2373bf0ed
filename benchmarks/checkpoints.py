"""Loading and exporting whole models: seconds, and peak memory over the model's size.

    python benchmarks/checkpoints.py [--sizes base large] [--rounds 3]

Random float32 parameters of Flan-T5's shapes; every run is a process of its own, whose libraries
count. Transformers, where it is installed (extra `bench`), takes its turn in every round; what it
maps from the file is not counted as its memory.
"""

import argparse
import importlib.util
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import peak_memory, ratios, record, spread

HERE = Path(__file__)
VOCABULARY = HERE.parents[1] / "cot_flax" / "world" / "vocabulary.model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["base", "large"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_once(*options.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {size: measure(size, options.rounds, Path(folder)) for size in options.sizes}
    record("checkpoints", sizes)


def measure(size: str, rounds: int, folder: Path) -> dict:
    hf, t5x = folder / f"{size}-hf", folder / f"{size}-t5x"
    spawn("make", size, hf, folder)
    spawn("export_t5x", hf, t5x, folder)
    jobs = {"load_hf": hf, "load_t5x": t5x, "export_t5x": hf, "export_hf": t5x}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        jobs |= {"transformers_load": hf, "transformers_save": hf}
    runs: dict = {job: [] for job in jobs}
    for _ in range(rounds):
        for job, place in jobs.items():
            runs[job].append(spawn(job, place, folder / "out", folder))
            shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.rmtree(hf)
    shutil.rmtree(t5x)
    bytes_of_model = 4 * parameters(size)
    result: dict = {"parameters": parameters(size)}
    for job, seen in runs.items():
        peaks = [peak / bytes_of_model for _, peak in seen]
        seconds = [second for second, _ in seen]
        result[job] = {"seconds": spread(seconds), "peak_over_model": spread(peaks)}
    if "transformers_load" in runs:
        theirs = [second for second, _ in runs["transformers_load"]]
        ours = [second for second, _ in runs["load_hf"]]
        result["transformers_load_over_ours"] = ratios(theirs, ours)
    return result


def spawn(job: str, place, out, folder: Path) -> tuple[float, int]:
    """Runs one job in a process; returns its seconds without imports, and its peak memory."""
    log = folder / "seconds.json"
    peak = peak_memory([sys.executable, str(HERE), "--run", job, str(place), str(out), str(log)])
    return json.loads(log.read_text()), peak


def run_once(job: str, place: str, out: str, log: str) -> None:
    work = JOBS[job](place, Path(out))
    start = time.perf_counter()
    work()
    Path(log).write_text(json.dumps(time.perf_counter() - start))


def load(place: str, _):
    import jax

    from cot_flax.students.parameters import nest
    from cot_flax.weights.opening import open_source
    from cot_flax.weights.source import load

    def work():
        source = open_source(place)
        shapes = source.student.parameter_shapes().items()
        abstract = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes}
        jax.block_until_ready(load(source, nest(abstract)))

    return work


def export(format: str):
    def prepared(place: str, out: Path):
        from cot_flax.reports import card
        from cot_flax.weights.export import export

        return lambda: export(place, out, format=format, card=card.write, tokenizer=VOCABULARY)

    return prepared


def make(size: str, out: Path):
    """Random parameters of a size, made a tensor at a time."""
    from cot_flax.students.parameters import Tensor
    from cot_flax.weights.huggingface import write_folder
    from cot_flax.weights.source import Source

    def tensor(shape):
        whole = lambda: np.random.default_rng(0).random(shape, np.float32)  # noqa: E731
        return Tensor(shape, np.dtype(np.float32), lambda index: whole()[index])

    from cot_flax.students.t5 import T5Student

    config = model(size)
    tensors = {name: tensor(shape) for name, shape in T5Student(config).parameter_shapes().items()}
    source = Source("random numbers", T5Student(config), tensors)
    return lambda: write_folder(source, out, dtype="float32", tokenizer=None, card="")


def transformers_load(place: str, _):
    from transformers import T5ForConditionalGeneration

    def work():
        model = T5ForConditionalGeneration.from_pretrained(place)
        for parameter in model.parameters():
            parameter.sum()  # the file is mapped, and read when it is first used
        return model

    return work


def transformers_save(place: str, out: Path):
    read = transformers_load(place, None)
    return lambda: read().save_pretrained(out)


def model(size: str):
    import gin

    from cot_flax import configuration

    configuration.parse([f"models/t5_1_1_{size}.gin"], [])
    return gin.get_configurable("t5.T5Config")()


def parameters(size: str) -> int:
    from cot_flax.students.t5 import T5Student

    return sum(math.prod(shape) for shape in T5Student(model(size)).parameter_shapes().values())


JOBS = {
    "make": make,
    "load_hf": load,
    "load_t5x": load,
    "export_t5x": export("t5x"),
    "export_hf": export("huggingface"),
    "transformers_load": transformers_load,
    "transformers_save": transformers_save,
}


if __name__ == "__main__":
    main()
