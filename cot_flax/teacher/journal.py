"""The journal of a folder: every answer that was paid for, one JSON object a line, append-only.

A line is `{"key": ..., "reply": {...}}`. The key names the content of a request (`Request.key`):
teacher, prompt and settings, neither how many were asked for nor for which file. Lines of one key
add up, so that 2 completions become 4 by 2 more, and a samples file of another name is made of the
same answers. The prompt itself is not stored. An answer counts once its line is written: from
then on it survives the end of the process by whatever signal, for the system holds what was
written. A line that was taken from a file of batch results has its hash as `source`, so that no
result is taken twice. A power cut can take the last second, after which the file is synchronised to
the disk. The only answers that a kill loses are those of requests in flight.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.files import cleared_on_error, make_folder, work_path
from cot_flax.teacher.requests import Completion, Reply

NAME = "teacher.journal"
SYNC_SECONDS = 1.0
_LOGPROBS = ("logprobs", "thought_logprobs")


def journal_path(out: str | os.PathLike) -> Path:
    """The journal of the folder of the samples file `out`; in a bucket, see `files.work_path`."""
    return work_path(out).parent / NAME


class Answers:
    """The answers of a journal by key. In memory is where each line begins, and no more.

    Attributes:
        sources: of lines that were taken from other files.
    """

    def __init__(self, file: BinaryIO):
        """Reads through a journal; a torn last line is ignored.

        Raises:
            UserError: a line is broken; the message names file and line.
        """
        self._file = file
        self._offsets: dict[str, list[int]] = {}
        self._end = 0
        self.sources: set[str] = set()
        # Asked for several times in a row.
        self._last: tuple[str | None, tuple[Reply, ...]] = (None, ())
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            place = f"{file.name}, line {number}"
            self._note(_entry(line, place), line)

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        """How many lines it has."""
        return sum(map(len, self._offsets.values()))

    def __getitem__(self, key: str) -> tuple[Reply, ...]:
        """The answers to requests of this key in the order of their arrival; maybe none."""
        if self._last[0] != key:
            self._last = (key, tuple(map(self._read, self._offsets.get(key, ()))))
        return self._last[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def _note(self, entry: Mapping[str, Any], line: bytes) -> None:
        self._offsets.setdefault(entry["key"], []).append(self._end)
        self._end += len(line)
        self._last = (None, ())
        if "source" in entry:
            self.sources.add(entry["source"])

    def _read(self, offset: int) -> Reply:
        self._file.seek(offset)
        return _reply(json.loads(self._file.readline())["reply"])


class Journal(Answers):
    """A journal that this process alone may write."""

    def __init__(self, path: str | os.PathLike):
        """Opens or makes the file (folders too), locks it and cuts off a torn last line.

        Raises:
            UserError: another process has it open, or a line is broken.
        """
        self._path = Path(path)
        self._folder = cleared_on_error(self._path.parent)
        self._folder.__enter__()
        make_folder(self._path.parent)
        file = open(path, "a+b")  # noqa: SIM115 (closed by __exit__)
        try:
            _lock(file)
            super().__init__(file)
            file.truncate(self._end)
            # Without a buffer of ours: what is written is with the system.
            self._writer = open(path, "ab", buffering=0)  # noqa: SIM115
        except BaseException:
            file.close()
            raise
        self._synced = time.monotonic()

    def add(self, key: str, reply: Reply, source: str | None = None) -> None:
        """Writes one answer; when this returns, it is kept.

        Args:
            key: of the request's content.
            reply: the answer.
            source: names the line of the other file that it was taken from.

        Raises:
            UserError: no room; the journal is then as it was before.
        """
        entry = {"key": key, "reply": _record(reply)} | ({"source": source} if source else {})
        line = json.dumps(entry).encode() + b"\n"
        self._append(line)
        self._note(entry, line)
        if time.monotonic() > self._synced + SYNC_SECONDS:
            self._sync()

    def __exit__(self, *error):
        with self._file, self._writer:
            self._sync()
        if not self._end:
            self._path.unlink()  # nothing was answered
        return self._folder.__exit__(*error)

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._writer.write(rest) :]
        except OSError as error:
            self._writer.truncate(self._end)
            remedy = "make room and run the same command again"
            raise UserError(f"{self._file.name}: {error.strerror}", "room", remedy) from error

    def _sync(self) -> None:
        os.fsync(self._writer.fileno())
        self._synced = time.monotonic()


def read_answers(path: str | os.PathLike) -> Answers:
    """The answers of a journal for reading only; of none where the file is missing.

    Raises:
        UserError: a line is broken.
    """
    file = open(path if Path(path).exists() else os.devnull, "rb")  # noqa: SIM115
    try:
        return Answers(file)
    except BaseException:
        file.close()
        raise


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{file.name}: in use by another run",
            "one run for each journal",
            "wait until it ends, stop it, or name another file (--journal, or --out elsewhere)",
        ) from None


def _entry(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if isinstance(entry["key"], str) and _reply(entry["reply"]):
            return entry
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    remedy = "remove this line: its request is then sent again"
    raise UserError(f"{place}: a broken line", "an answer as it was written", remedy)


def _record(reply: Reply) -> dict[str, Any]:
    completions = [
        vars(c) | {name: getattr(c, name) and vars(getattr(c, name)) for name in _LOGPROBS}
        for c in reply.completions
    ]
    return vars(reply) | {"completions": completions}


def _reply(record: Mapping[str, Any]) -> Reply:
    completions = tuple(
        Completion(**c | {name: _logprobs(c[name]) for name in _LOGPROBS if name in c})
        for c in record["completions"]
    )
    return Reply(**{**record, "completions": completions})


def _logprobs(record: Mapping[str, Any] | None) -> Logprobs | None:
    return record and Logprobs(**{name: tuple(values) for name, values in record.items()})
