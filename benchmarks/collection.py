"""A file of the CoT Collection's shape and size through `prepare` and through the tasks' reader.

    python benchmarks/collection.py --data ../shared/data
    python benchmarks/collection.py --data ../shared/data --records 100000 --only prepare

The roads: `prepare` makes a store; `generator` reads the file by tf.data.from_generator, which the
tasks do not do; `shards` makes what they read instead; `again` reads it; `task` makes examples.

Every measurement is a process of its own (with its workers), at a tenth of the records and at all
of them; memory is the most anonymous memory that they hold together. The files are made in a
temporary folder: 2.4 GB for 1.84M records, and as much again for what is made of them.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import peak_memory, record

RECORDS, TASKS = 1_840_000, 1060
ROADS = ("prepare", "generator", "shards", "again", "task")
_READ = 20_000  # examples that `task` is timed by
_BLOCK = 64
_WORDS = """
river ticket system price answer because number holds seven market teacher first paper cold
weather train between morning garden reason animal question small water light follows given
premise claim sentence option correct people number city house likely statement therefore
"""
_TARGETS = (("yes", "no"), ("(A)", "(B)", "(C)", "(D)"), ("12", "1,080", "3.5"), ("a river",))


def entries(count: int) -> Iterator[tuple[str, dict]]:
    """Numbered entries in the public file's form: tasks one after the other, 1.3 kB on average."""
    drawn, words = random.Random(0), _WORDS.split()
    sentences = [
        " ".join(drawn.choices(words, k=drawn.randint(6, 14))).capitalize() + "."
        for _ in range(4000)
    ]
    for number in range(count):
        task = number * TASKS // count
        source = " ".join(drawn.choices(sentences, k=drawn.randint(4, 20)))
        chain = " ".join(drawn.choices(sentences, k=drawn.randint(1, 8)))
        yield (
            str(number),
            {
                "source": f"{source} ({number})",
                "target": drawn.choice(_TARGETS[task % len(_TARGETS)]),
                "rationale": "" if number % 100 == 99 else chain,
                "config": ("flan", "sni", "t0")[task % 3],
                "task": f"task{task:04d}",
                "prev": None,
            },
        )


def write(path: Path, count: int) -> None:
    """One JSON object of entries, as the public file is."""
    with open(path, "w") as file:
        for i, (name, entry) in enumerate(entries(count)):
            file.write(f"{', ' if i else '{'}{json.dumps(name)}: {json.dumps(entry)}")
        file.write("}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=ROADS, default=ROADS)
    parser.add_argument("--folder", type=Path, help="instead of a temporary one; it stays")
    parser.add_argument("--run", nargs=2, metavar=("ROAD", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        road, file = options.run
        seconds = _ROADS[road](file, options)
        Path(f"{file}.{road}").write_text(json.dumps(seconds))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.folder or Path(folder))


def measure(options, folder: Path) -> None:
    result: dict = {"workers": options.workers}
    os.environ["COT_FLAX_CACHE"] = str(folder / "cache")
    for count in (options.records // 10, options.records):
        file = folder / f"{count}.json"
        write(file, count)
        result[str(count)] = {"bytes": file.stat().st_size}
        for road in options.only:
            flags = ["--data", str(options.data), "--workers", str(options.workers)]
            peak = peak_memory([sys.executable, __file__, *flags, "--run", road, str(file)])
            read, seconds = json.loads(Path(f"{file}.{road}").read_text())
            figures = {"records_per_second": read / seconds, "seconds": seconds, "peak": peak}
            result[str(count)][road] = figures
            print(count, road, figures, flush=True)
    small, large = (result[str(count)] for count in (options.records // 10, options.records))
    for road in options.only:
        result[f"{road}_memory_of_all_over_a_tenth"] = large[road]["peak"] / small[road]["peak"]
    record(f"collection-{options.records}", result)


def prepare_once(file: str, options) -> tuple[int, float]:
    """Records and seconds of one preparation, without Python's and TensorFlow's start."""
    import seqio

    from cot_flax.chains.filtering import Filters
    from cot_flax.chains.preparation import Preparation
    from cot_flax.store.prepare import prepare

    model = str(options.data / "t5_vocab" / "spiece.model")
    vocabulary = seqio.SentencePieceVocabulary(model, extra_ids=100)
    settings = Preparation(Filters(rules="none", answer_kind="text"))
    start = time.perf_counter()
    out = f"{file}.store"
    tally = prepare([file], out, vocabulary=vocabulary, settings=settings, workers=options.workers)
    assert tally.read == tally.kept + tally.dropped + tally.rejected.total()
    print(tally.summary(), flush=True)
    return tally.read, time.perf_counter() - start


def generate(file: str, options) -> tuple[int, float]:
    """The road that is not taken: the file read by Python whenever it is trained on."""
    import tensorflow as tf

    from cot_flax.chains.records import find_container

    names = ("source", "target", "rationale", "task")

    def rows():
        for _, entry in find_container(file).read(file):
            yield {name: entry[name] for name in names}

    signature = {name: tf.TensorSpec([], tf.string) for name in names}
    return timed(tf.data.Dataset.from_generator(rows, output_signature=signature))


def bound_source(file: str, options):
    """The tasks' source of this file."""
    import gin

    import cot_flax.tasks.cot_collection as collection

    gin.bind_parameter("cot_flax.tasks.cot_collection.data.directory", file)
    spiece = str(options.data / "t5_vocab" / "spiece.model")
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", spiece)
    return collection.SOURCE


def make_shards(file: str, options) -> tuple[int, float]:
    """The one reading of the file, with the counts of its end."""
    source = bound_source(file, options)
    start = time.perf_counter()
    manifest = source.manifest()
    return manifest["read"], time.perf_counter() - start


def read_again(file: str, options) -> tuple[int, float]:
    """The records of the shards, shuffled."""
    return timed(bound_source(file, options).get_dataset("train", shuffle=True, seed=0))


def read_task(file: str, options) -> tuple[int, float]:
    """Examples of the task, cut and tokenized, as a trainer has them."""
    import seqio

    bound_source(file, options)
    lengths = {"inputs": 512, "targets": 512}
    task = seqio.get_mixture_or_task("cot_collection_mix")
    return timed(task.get_dataset(lengths, "train", shuffle=True, seed=0), _READ)


def timed(dataset, count: int | None = None) -> tuple[int, float]:
    """The elements of a data set, or the first of them, and the seconds that they take."""
    dataset = dataset.take(count or -1).ragged_batch(_BLOCK)
    start = time.perf_counter()
    found = sum(len(next(iter(block.values()))) for block in dataset)
    return found, time.perf_counter() - start


_ROADS = dict(zip(ROADS, (prepare_once, generate, make_shards, read_again, read_task), strict=True))

if __name__ == "__main__":
    main()
