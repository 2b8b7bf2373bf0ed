"""Parquet files of records: rows a second beside pyarrow's own batches, peak memory at two sizes.

    python benchmarks/reading.py

`records` gives dicts with their places, `chains` samples of them, `data_set` the splits of
`chains.dataset.DataSet` in memory. Every run is a process of its own.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from harness import peak_memory, record, spread

SIZES = (200_000, 1_000_000)
GROUP = 100_000  # rows of a row group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(*options.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options.rounds, Path(folder))


def measure(rounds: int, folder: Path) -> None:
    result: dict = {}
    for size in SIZES:
        file = folder / f"{size}.parquet"
        write(file, size)
        rates, peaks = collections.defaultdict(list), collections.defaultdict(list)
        for _ in range(rounds):
            for reader in READERS:
                command = [sys.executable, __file__, "--run", reader, str(file)]
                peaks[reader].append(peak_memory(command))
                rates[reader].append(size / json.loads(_seconds(file).read_text()))
        result[str(size)] = {
            reader: {"rows_per_second": spread(rates[reader]), "peak_bytes": spread(peaks[reader])}
            for reader in READERS
        }
    small, large = (result[str(size)]["records"]["peak_bytes"]["median"] for size in SIZES)
    result["memory_of_1m_over_200k"] = large / small
    record("reading", result)


def write(file: Path, size: int) -> None:
    """Rows of a question of about 170 characters, a chain of 120 and a number."""
    import pyarrow as pa
    from pyarrow import parquet

    names = ("id", "question", "rationale", "answer")
    schema = pa.schema([(name, pa.string()) for name in names[:3]] + [("answer", pa.int64())])
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, size, GROUP):
            rows = range(start, min(size, start + GROUP))
            asked = [
                f"In shop {n} there are {n % 97} boxes of pears. " * 3 + "How many?" for n in rows
            ]
            chains = [
                f"There are {n % 97} boxes, so {n % 97} * 3 = {n % 97 * 3}. " * 3 for n in rows
            ]
            ids = [f"row-{n}" for n in rows]
            columns = [ids, asked, chains, [n % 97 * 3 for n in rows]]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema))


def batches(file: str) -> Iterable:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches(1024):
        yield from batch.to_pylist()


def records(file: str) -> Iterable:
    from cot_flax.chains.records import records

    return records(file)


def chains(file: str) -> Iterable:
    from cot_flax.chains.readers import parsed

    return parsed(file)


def data_set(file: str) -> Iterable:
    from cot_flax.chains.dataset import DataSet

    reading = DataSet(file).read()
    return (item for items in reading.splits.values() for item in items)


READERS: dict[str, Callable[[str], Iterable]] = {
    reader.__name__: reader for reader in (batches, records, chains, data_set)
}


def run(reader: str, file: str) -> None:
    start = time.perf_counter()
    collections.deque(READERS[reader](file), maxlen=0)
    _seconds(Path(file)).write_text(json.dumps(time.perf_counter() - start))


def _seconds(file: Path) -> Path:
    return file.with_suffix(".json")


if __name__ == "__main__":
    main()
