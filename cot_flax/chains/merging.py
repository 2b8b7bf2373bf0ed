"""Merges samples files, so that all chains of a question stand together, in bounded memory."""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cot_flax.chains.samples import Sample, read_samples, to_line, write_samples

BUCKETS = 256


def merge_samples(paths: Sequence[str | os.PathLike], out: str | os.PathLike) -> int:
    """Writes the samples of several files with those of each question together.

    They are spread over 256 files by their question first, of which one at a time is held in
    memory. The chains of a question keep the order of their files and are numbered anew from 0, for
    two runs give the same numbers.

    Args:
        paths: samples files.
        out: the merged file, written whole or not at all; it may be one of `paths`.

    Returns:
        The number of samples.

    Raises:
        UserError: a line breaks the contract of samples files.
    """
    with tempfile.TemporaryDirectory(dir=Path(out).parent or None) as folder:
        count = _spread(paths, Path(folder))
        write_samples(out, _together(Path(folder)))
    return count


def _spread(paths: Sequence[str | os.PathLike], folder: Path) -> int:
    count = 0
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(open(folder / f"{i:03d}", "wb")) for i in range(BUCKETS)]
        for path in paths:
            for sample in read_samples(path):
                digest = hashlib.blake2b(sample.id.encode(errors="surrogatepass"), digest_size=1)
                buckets[digest.digest()[0]].write(to_line(sample))
                count += 1
    return count


def _together(folder: Path) -> Iterator[Sample]:
    for bucket in sorted(folder.iterdir()):
        if not bucket.stat().st_size:
            continue
        by_question: dict[str, list[Sample]] = {}
        for sample in read_samples(bucket):
            by_question.setdefault(sample.id, []).append(sample)
        for samples in by_question.values():
            for number, sample in enumerate(samples):
                yield dataclasses.replace(sample, sample=number)
