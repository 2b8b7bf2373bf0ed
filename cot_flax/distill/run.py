"""Runs a recipe's stages, each in a process of its own, and goes on where a run was stopped.

A process a stage: TensorFlow and JAX give their memory back when one ends, a stage that the system
kills for want of memory is named, and each is the same command that a user could give alone. It
costs the imports, some seconds a stage.

A stage ends with the process that started it, even where that was killed: it reads the end of a
pipe that only its parent holds (`cli.environment.follow_parent`). And the lock of the folder is
inherited, so that a second run waits for the stages of the first.
"""

import contextlib
import fcntl
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from cot_flax.configuration import checks
from cot_flax.configuration.draft import Draft
from cot_flax.distill import recipe, stages
from cot_flax.distill.stages import BASE, State, Step
from cot_flax.errors import UserError
from cot_flax.files import make_folder, path_at

PARENT = "COT_FLAX_PARENT"
"""The variable with the number of the pipe whose end is the parent's."""
LOG, LOCK = "distill.log", ".distill.lock"
_PATIENCE = 120.0  # seconds to wait for the stages of a run that was killed
_OF = re.compile(r"(?<![\d.])(\d[\d,]*)(?:/| of )(\d[\d,]*)(?![\d.])")
_STEP = re.compile(r"\bstep (\d+)\b")
_TITLES = {BASE: "evaluate base"}
COMMAND = (sys.executable, "-m", "cot_flax.cli")


def run(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    *,
    redo: bool = False,
    accept_changes: bool = False,
) -> list[Step]:
    """Runs what is not done of a recipe, after the recipe whose student it starts from.

    Args:
        files: gin files, a recipe among them.
        bindings: NAME=VALUE, of this recipe alone.
        redo: stages that were begun with other settings are begun anew, and what follows on them.
        accept_changes: such stages go on with what is there.

    Returns:
        The steps of the recipe.

    Raises:
        UserError: a recipe that cannot run, another run in its folder, a stage that was begun with
            other settings.
        SystemExit: a stage failed or was stopped, with its code.
    """
    read = recipe.read_recipe(files, bindings, search_paths)
    found = recipe.recipe_of(read)
    recipe.check_folder(found.out)
    if found.initial_recipe:
        flags = State.read(_out_of(found.initial_recipe, search_paths)).flags
        run([found.initial_recipe], flags, search_paths)
        read = recipe.read_recipe(files, bindings, search_paths)
    steps = stages.steps_of(read, files, bindings, search_paths)
    with _alone(found.out) as lock:
        state = State.read(found.out)
        state.flags = list(bindings)
        _check(read, steps, state)
        _refuse_changes(steps, state, found.out, allowed=redo or accept_changes)
        state.write(found.out)
        with _Display(steps, Path(found.out) / LOG) as display:
            for step in steps:
                if state.is_done(step):
                    display.end(step, "done before")
                    continue
                changed = state.changes(step)
                if changed and not (redo or accept_changes):
                    raise _begun_otherwise([(step, changed)], found.out)
                _run_step(step, state, found.out, display, lock, redo, accept_changes)
    return steps


def pending(read: Draft, steps: Sequence[Step]) -> list[Step]:
    """The steps that are still to be run."""
    state = State.read(recipe.recipe_of(read).out)
    return [step for step in steps if not state.is_done(step)]


def _out_of(file: str, search_paths: Sequence[str]) -> str:
    return recipe.recipe_of(recipe.read_recipe([file], (), search_paths)).out


def _check(read: Draft, steps: Sequence[Step], state: State) -> None:
    """Finds mistakes in the recipe before the first stage spends anything."""
    checks.check_names(read)
    left = [step for step in steps if not state.is_done(step)]
    needed = [name for step in left for name in recipe.needed(read, _stage(step))]
    for name in needed:
        if recipe.value(read, name) is None:
            raise checks.NoValue(name)
    checks.check_types(read, needed)
    start = recipe.value(read, "INITIAL_CHECKPOINT_PATH")
    if start and any(step.name == "train" for step in left):
        _check_start(read, start)


def _check_start(read: Draft, start: str) -> None:
    """Opens the checkpoint that training starts from; one of the hub is fetched now."""
    from cot_flax.weights.opening import open_source
    from cot_flax.weights.source import Access

    access = Access(
        allow_pickle=recipe.value(read, "ALLOW_PICKLE", False),
        local_files_only=recipe.value(read, "LOCAL_FILES_ONLY", False),
    )
    open_source(start, access)


def _stage(step: Step) -> str:
    return "evaluate" if step.name == BASE else step.name


def _refuse_changes(steps: Sequence[Step], state: State, out: str, *, allowed: bool) -> None:
    changed = [(step, named) for step in steps if (named := state.changes(step))]
    for step, named in changed:
        if allowed:
            print(f"{title(step)}: changed: {'; '.join(named)}", file=sys.stderr)
    if changed and not allowed:
        raise _begun_otherwise(changed, out)


def _begun_otherwise(changed: Sequence[tuple[Step, list[str]]], out: str) -> UserError:
    listed = "; ".join(f"{title(step)}: {'; '.join(named)}" for step, named in changed)
    return UserError(
        f"{out}, begun otherwise ({listed})",
        "the same recipe, or another OUT",
        "set what it had; --redo begins these stages anew and what follows on them (answers that "
        "are paid for stay); --accept-changes goes on with the student that is there",
    )


def title(step: Step) -> str:
    return _TITLES.get(step.name, step.name)


def _run_step(
    step: Step,
    state: State,
    out: str,
    display: "_Display",
    lock: IO,
    redo: bool,
    accept_changes: bool,
) -> None:
    again = bool(state.steps.get(step.name)) and (redo or accept_changes)
    words = [*step.command]
    if again and state.changes(step):
        if step.name == "train" and accept_changes:
            words.append("--accept-changes")
        elif step.name in ("prepare", "train", BASE, "evaluate"):
            words.append("--overwrite")
    if step.name == "export" and state.steps.get(step.name):
        # Of an earlier student, or half of one.
        shutil.rmtree(path_at(step.leaves["export"]), ignore_errors=True)
    state.begin(step)
    state.write(out)
    start = time.monotonic()
    display.begin(step)
    code, stopped = _call(words, lambda line: display.show(step, line), lock)
    if code or stopped:
        display.fail(step)
        raise SystemExit(_explained(step, code, stopped, display.last))
    state.end(step, time.monotonic() - start)
    if lacking := [path for path in step.leaves.values() if not stages.fingerprint(path)]:
        raise UserError(
            f"{title(step)} that ended without {', '.join(lacking)}",
            "it there and whole",
            f"see {out}/{LOG}, then run the same command again",
        )
    state.write(out)
    display.end(step)


def _explained(step: Step, code: int, stopped: int | None, last: str) -> int:
    """Says why a stage failed; returns the exit code of the run."""
    if stopped:
        name = "Ctrl-C" if stopped == signal.SIGINT else signal.Signals(stopped).name
        said = f"{last}; " if last else ""
        print(
            f"cot-flax: {title(step)} was stopped by {name}: {said}the same command goes on",
            file=sys.stderr,
        )
        return 128 + stopped
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; is there too little memory?" if -code == signal.SIGKILL else ""
        print(
            f"cot-flax: {title(step)} was ended by {name}{hint}; the same command goes on",
            file=sys.stderr,
        )
        return 128 - code
    print(last, file=sys.stderr)
    return code


@contextlib.contextmanager
def _alone(out: str) -> Iterator[IO]:
    """Holds the folder's lock, which stages inherit."""
    folder = make_folder(out)
    with open(folder / LOCK, "a+") as lock:
        waited = time.monotonic()
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    print(f"waits for another run in {out} to end", file=sys.stderr, flush=True)
                    said = True
                if time.monotonic() - waited > _PATIENCE:
                    raise UserError(
                        f"another run in {out}", "one at a time", "wait for it, or end it"
                    ) from None
                time.sleep(0.2)
        yield lock


def _call(words: Sequence[str], say: Callable[[str], None], lock: IO) -> tuple[int, int | None]:
    """Runs a command of cot-flax; its lines go to `say`. Ctrl-C and SIGTERM are sent on to it.

    Returns:
        Its exit code, and the signal that was sent on, if one was.
    """
    kept, theirs = os.pipe()  # the child reads its end when this process ends
    variables = os.environ | {PARENT: str(kept), "PYTHONUNBUFFERED": "1"}
    variables.pop("FORCE_COLOR", None)
    with subprocess.Popen(
        [*COMMAND, *words],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(kept, lock.fileno()),
        start_new_session=True,  # a terminal's Ctrl-C comes through this process, once
    ) as child:
        os.close(kept)
        stopped: list[int] = []

        def forward(number, _):
            stopped.append(number)
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

        before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for line in _lines(child.stdout):
                say(line)
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(theirs)
    return code, stopped[0] if stopped else None


def _lines(stream: IO[str]) -> Iterator[str]:
    """Lines as they come; a thread reads, so that a signal is handled between two of them."""
    arrived: queue.Queue[str | None] = queue.Queue()

    def read():
        for line in stream:
            arrived.put(line)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = arrived.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            return
        if line.strip():
            yield line.rstrip()


class _Display:
    """One line a stage on a terminal, with a bar; elsewhere the lines of the stages themselves.

    Everything that stages print goes to a file, too.

    Attributes:
        last: the last line of the stage that runs.
    """

    def __init__(self, steps: Sequence[Step], log: Path):
        self._console = Console(stderr=True)
        self._log = open(log, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._bars = Progress(
            TextColumn(
                "{task.fields[mark]} {task.fields[name]}", table_column=Column(min_width=15)
            ),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._rows: dict[str, TaskID] = {
            step.name: self._bars.add_task(
                "", total=step.total or 1, start=False, mark=" ", name=f"{title(step):<13}"
            )
            for step in steps
        }
        self.last = ""

    def __enter__(self):
        self._bars.start()
        return self

    def __exit__(self, *_):
        self._bars.stop()
        self._log.close()

    def begin(self, step: Step) -> None:
        self.last = ""
        self._bars.start_task(self._rows[step.name])
        self._bars.update(self._rows[step.name], mark=">", description="starts")
        self._write(f"== {title(step)}")

    def show(self, step: Step, line: str) -> None:
        self.last = line
        self._write(f"{title(step)}: {line}")
        fields = {"description": escape(line[:100])}
        if (found := _STEP.search(line)) and step.total:
            fields |= {"completed": int(found[1])}
        elif found := _OF.search(line):
            done, total = (int(text.replace(",", "")) for text in found.groups())
            fields |= {"completed": done, "total": max(total, 1)}
        self._bars.update(self._rows[step.name], **fields)

    def end(self, step: Step, why: str = "") -> None:
        row = self._rows[step.name]
        total = self._bars.tasks[row].total
        self._bars.update(
            row, mark="+", completed=total, description=escape(why or self.last[:100])
        )
        self._bars.stop_task(row)
        if why:
            self._write(f"{title(step)}: {why}")

    def fail(self, step: Step) -> None:
        self._bars.update(self._rows[step.name], mark="x")
        self._bars.stop_task(self._rows[step.name])

    def _write(self, line: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._log.flush()
        if self._bars.disable:
            print(line, file=sys.stderr, flush=True)
