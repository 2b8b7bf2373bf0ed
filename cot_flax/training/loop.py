"""The trainer. One function, readable from top to bottom."""

import dataclasses
import json
import math
import platform
import queue
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from flax.linen import partitioning
from jax.experimental import multihost_utils

import cot_flax
from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.files import cleared_on_error, make_folder
from cot_flax.objectives.losses import Objective
from cot_flax.students import lora
from cot_flax.students.layouts import Layout
from cot_flax.students.student import Student, build, to_json
from cot_flax.text.tokenizers import SpecialIds
from cot_flax.training import (
    checkpoints,
    guard,
    hosts,
    interruption,
    logs,
    resume,
    selection,
    sharding,
    state,
    step,
    white_box,
)
from cot_flax.training.optimizers import Optimizer
from cot_flax.training.trackers import Tracker
from cot_flax.weights.opening import check_place
from cot_flax.weights.source import Access, load


class Evaluator(Protocol):
    """Computes metrics of a student with its parameters, in the middle of a run.

    Every process gets the same. One that may choose checkpoints also has `goals`, whether more or
    less is better ("max" or "min") by the names of its metrics, and `split`, of the data.
    """

    def __call__(self, student: Student, params: dict) -> dict[str, float]: ...


class Data(Protocol):
    """Where batches come from; see data/batches.py for the SeqIO one.

    Attributes:
        batch_size: rows of a batch, over all processes.
        shards: equal parts of the data; the i-th of them fills the i-th part of every batch's rows.
        vocabulary: fingerprint of the vocabulary that made the tokens.
        vocabulary_files: the files that hold it, by their names in a run folder.
        special_ids: of the vocabulary.
        facts: what else the batches depend on, as the section `data` of run.json holds it.
    """

    batch_size: int
    shards: int
    vocabulary: str
    vocabulary_files: Mapping[str, bytes]
    special_ids: SpecialIds
    facts: Mapping[str, Any]

    def check(self, objective: Objective, vocab_size: int) -> None:
        """Raises UserError where the data cannot serve the objective, or has ids that no row has.

        A gather on an accelerator takes the last row for such an id and says nothing.
        """

    def batches(
        self, layout: Layout, skip: int, shards: Sequence[int]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the rows of these shards in each batch, for ever and always the same ones.

        The first `skip` rows, those of all shards counted, are left out; which rows follow does not
        depend on the batch size.
        """

    def report(self) -> str:
        """One line on what was left out so far; "" if nothing. Every process asks."""


@interruption.memory_named()
def train(
    *,
    model_dir: str,
    model: Any,
    data: Data,
    objective: Objective,
    optimizer: Optimizer,
    total_steps: int,
    teacher: white_box.Teacher | None = None,
    mesh: sharding.MeshConfig = sharding.MeshConfig(),  # noqa: B008 (frozen)
    microbatches: int = 1,
    equal_microbatches: bool = False,
    seed: int = 0,
    initial_checkpoint_path: str | None = None,
    access: Access = Access(),  # noqa: B008 (frozen)
    checkpoint_period: int | None = None,
    keep_checkpoints: int | None = 3,
    log_period: int = 10,
    eval_period: int = 0,
    evaluators: Sequence[Evaluator] = (),
    best_metrics: Sequence[str] = (),
    early_stopping: int | None = None,
    tracker: Tracker | None = None,
    facts: Mapping[str, Mapping] | None = None,
    config: str = "",
    accept_changes: bool = False,
    overwrite: bool = False,
) -> state.TrainState:
    """Trains a student, or resumes the run that `model_dir` holds.

    What is refused leaves `model_dir` as it was. SIGTERM and Ctrl-C save a checkpoint first.

    Args:
        model_dir: gets checkpoints, run.json, metrics.jsonl, TensorBoard files, the vocabulary.
        model: the config of a family of students.
        total_steps: optimizer steps from the start of the run, resumed ones included.
        teacher: runs beside the student where the objective is a white-box one.
        microbatches: gradient accumulation: parts of a batch that go through the model in turn.
        equal_microbatches: each of them counts as much, however many tokens it has; else each
            token does.
        initial_checkpoint_path: where a fresh run takes its parameters from, all but the adapters
            of LoRA: a checkpoint of ours, of Hugging Face or its hub, or of T5X; None is random.
        access: what reading that checkpoint may do.
        checkpoint_period: None saves ten times in a run, and every 1,000 steps of a long one.
        log_period: metrics are means over so many steps.
        eval_period: 0 evaluates at the end only.
        best_metrics: of the evaluators: by each of them the best checkpoint is kept, too, and
            `model_dir/best/METRIC` names it.
        early_stopping: the run ends after so many evaluations without gain of the first of
            `best_metrics`; None never.
        tracker: a service that follows the run, too.
        facts: what the caller knows of the run, by the sections of run.json, which a fresh run
            writes; see `run_folder.write_facts`.
        config: the text of config.gin; "" writes none.
        accept_changes: go on although the run in `model_dir` was begun as another one; where it is
            the data that changed, they are read from their beginning.
        overwrite: delete the run in `model_dir` and begin anew.

    Returns:
        The state after the last step.

    Raises:
        UserError: a batch that the mesh does not divide, a checkpoint of another model or
            vocabulary, data that cannot serve the objective, a loss that is not finite, a run in
            `model_dir` that was begun with other data, another objective or optimizer, no memory.
        SystemExit: a signal; with the exit code of a process that it ends.
    """
    # All that can be wrong is found out before anything is compiled or written.
    _check("TRAIN_STEPS", total_steps, least=1)
    _check("LOG_PERIOD", log_period, least=1)
    _check("CHECKPOINT_PERIOD", checkpoint_period, least=1)
    _check("KEEP_CHECKPOINTS", keep_checkpoints, least=1)
    _check("EVAL_PERIOD", eval_period, least=0)
    _check("EARLY_STOPPING", early_stopping, least=1)
    selection.check(best_metrics, early_stopping, eval_period)
    goals = selection.goals_of(best_metrics, evaluators)
    devices = sharding.make_mesh(mesh)
    sharding.check_batch_size(data.batch_size, microbatches, devices)
    period = checkpoint_period or min(1000, max(1, total_steps // 10))
    checkpointer = checkpoints.Checkpointer(model_dir, period=period, keep=keep_checkpoints)
    resumes = not overwrite and checkpointer.latest_step is not None
    if initial_checkpoint_path and not resumes:
        check_place(initial_checkpoint_path)
    data.check(objective, model.vocab_size)
    student = build(model, data.special_ids)
    metadata = checkpoints.Metadata(to_json(student), data.vocabulary, 0, data.shards)
    taught = white_box.beside(teacher, objective, student, data.vocabulary)
    their_student = taught[1] if taught else None
    trained = white_box.trained(student, objective, their_student)
    first = done = 0
    with (
        # A start that fails leaves no folder that looks like a run.
        cleared_on_error(model_dir, whole=lambda: done == first and hosts.is_first()),
        jax.set_mesh(devices),
        partitioning.axis_rules(mesh.rules()),
    ):
        # Shapes and shardings first: what is restored or loaded goes straight to its devices, and
        # no second copy of the parameters is ever made.
        abstract = state.abstract(trained, optimizer, devices, mesh.rules())
        beside: list = []  # the white-box teacher's parameters, where there is one
        if their_student is not None:
            beside = [white_box.abstract_params(their_student, devices, mesh.rules())]
        interruption.check_memory((abstract, beside))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        known = _facts(student, abstract.params, data, objective) | {
            "started_from": initial_checkpoint_path or "",
            **({"taught_by": teacher.checkpoint_path} if teacher and taught else {}),
            "training": {
                "steps": total_steps,
                "batch_size": data.batch_size,
                "microbatches": microbatches,
                "equal_microbatches": equal_microbatches,
                "mesh": {**devices.shape, "fsdp": mesh.fsdp},
                "seed": seed,
                **({"best_metrics": goals, "early_stopping": early_stopping} if goals else {}),
            },
        }
        known = json.loads(json.dumps(_merged(known, facts or {})))
        before = run_folder.read_facts(model_dir) if resumes else {}
        changes = resume.changes(before, known)
        resume.check(changes, model_dir, accept=accept_changes)
        if not (resumes or overwrite) and run_folder.evaluations(model_dir):
            raise UserError(
                f"{model_dir} with results of an evaluation and no checkpoint",
                "a new folder, or a run to go on with",
                "set another MODEL_DIR, or pass --overwrite, which deletes what is there",
            )
        if resumes:
            train_state, metadata = checkpointer.restore(abstract, metadata)
        elif initial_checkpoint_path:
            # Adapters are drawn: a checkpoint to start from has none.
            base = lora.split(abstract.params)[1]
            base = checkpoints.load_initial(initial_checkpoint_path, base, metadata, access)
            train_state = state.create(trained, optimizer, seed, abstract, base)
        else:
            train_state = state.create(trained, optimizer, seed, abstract)
        first = done = int(train_state.step)
        rows_read = resume.rows_read(metadata.rows, before, changes, first, data.batch_size)
        chosen = selection.Selection.from_json(metadata.selection).going_on(goals)

        def evaluates_at(i):
            return bool(evaluators) and (i >= total_steps or (eval_period and i % eval_period == 0))

        # A signal may have come before the evaluation of the step that it saved.
        owed = metadata.selection is not None and evaluates_at(first) and chosen.evaluated < first
        if not owed and (first >= total_steps or chosen.stops(early_stopping)):
            ended = f"TRAIN_STEPS is {total_steps:,}"
            if first < total_steps:
                ended = f"and stopped there: {chosen.standstill}"
            logs.say(f"nothing to do: the run at {model_dir} has done {first:,} steps, {ended}")
            return train_state
        run_id = before.get("id") or uuid.uuid4().hex
        if tracker and hosts.is_first():
            tracker.start(run_id, model_dir, known)
        # From here on the folder is written to.
        merged = resume.merged(before, known, changes, first) | {"id": run_id}
        merged.pop("stopped", None)  # an earlier start said so
        if hosts.is_first():
            make_folder(model_dir)
            if not resumes:
                run_folder.clear(model_dir)
            run_folder.write_facts(model_dir, merged)
            if config:
                run_folder.write_config(model_dir, config, first)
            checkpoints.save_vocabulary(model_dir, data.vocabulary_files)
        multihost_utils.sync_global_devices("the folder of the run")  # one process cleared it
        placed = [jax.tree.map(lambda leaf: leaf.sharding, params) for params in beside]
        if taught:
            beside = [load(taught[0], *beside)]
        train_step = jax.jit(
            step.make_train_step(
                trained, optimizer, objective, microbatches, their_student, equal=equal_microbatches
            ),
            in_shardings=(shardings, sharding.batch_sharding(devices), *placed),
            out_shardings=(shardings, sharding.replicated(devices)),
            donate_argnums=0,  # the new state takes the old one's memory
        )
        log = logs.Logs(
            model_dir,
            total_steps=total_steps,
            first_step=first,
            tracker=tracker if hosts.is_first() else None,
        )
        for line in logs.summary(known, model_dir):
            log.say(line)
        if first:
            log.say(f"goes on after step {first:,}, {rows_read:,} rows into the data")
        if changes:
            log.say(f"changed since it was begun: {'; '.join(map(str, changes))}")
        trainable, _ = state.split_trainable(trained, train_state.params)
        locate_nonfinite = partial(
            guard.locate_nonfinite, student.places, guard.names(student, trainable)
        )
        speed = logs.Speed()
        window = _Window(log, model_dir, log_period, locate_nonfinite, speed)
        # This process makes the rows that lie on its own devices, and no others.
        rows = sharding.Rows(devices, data.batch_size, data.shards)
        batches = prefetch(data.batches(student.layout, rows_read, rows.shards), rows.put)
        compiled = None
        signals = interruption.Signals()

        def save():
            window.catch_up()  # a state that is not finite must not be saved
            read = rows_read + (done - first) * data.batch_size
            stored = dataclasses.replace(metadata, rows=read, selection=chosen.to_json())
            checkpointer.save(train_state, stored, step=done)

        def evaluate():
            window.flush()  # so that training's line stands before the evaluation's
            metrics: dict[str, float] = {}
            for evaluator in evaluators:
                metrics |= evaluator(student, train_state.params)
            log.write(done, metrics, kind="eval")
            return chosen.after(done, metrics, goals)

        try:
            with signals.listening():
                if owed:
                    chosen = evaluate()
                    save()
                for i in range(first + 1, total_steps + 1):
                    if chosen.stops(early_stopping):
                        break
                    batch = speed.wait_for(batches)
                    # Once: a batch of another shape is an error, never another compilation.
                    compiled = compiled or train_step.lower(train_state, batch, *beside).compile()
                    with signals.deferred():  # the step takes the memory of the state before it
                        with jax.transfer_guard("disallow"):  # of copies that nobody asked for
                            train_state, metrics = compiled(train_state, batch, *beside)
                            window.add(i, metrics)
                        done = i
                    # The step is on its way; the host reads the one before while it runs.
                    last = i == total_steps
                    if last:
                        window.flush()
                    if evaluates_at(i):
                        chosen = evaluate()
                    # A line is written one step late.
                    if i == first + log_period + 1 and (left_out := data.report()):
                        log.say(f"so far {left_out}")  # the end may be days away
                    ends = last or chosen.stops(early_stopping)
                    if ends or i in chosen.steps or checkpointer.is_due(i):
                        with signals.deferred():
                            save()
            if left_out := data.report():
                log.say(left_out)
            if done < total_steps:
                log.say(f"stopped after step {done:,} of {total_steps:,}: {chosen.standstill}")
                if hosts.is_first():
                    stopped = {"step": done, "reason": chosen.standstill}
                    run_folder.write_facts(model_dir, merged | {"stopped": stopped})
        except interruption.Stopped as stopped:
            if done > first:
                save()
            log.say(
                f"{stopped.name} after step {done:,} of {total_steps:,}, "
                + ("which is saved: the same line goes on" if done > first else "nothing was done")
            )
            raise SystemExit(stopped.code) from None
        finally:
            # In this order: the thread that makes batches first, or it would outlive the data.
            batches.close()
            log.close()
            checkpointer.close()
    return train_state


def _facts(student: Student, params, data: Data, objective: Objective) -> dict[str, Any]:
    """What run.json says of what is trained, on what, and with which versions."""
    return {
        "student": {
            "family": student.family,
            "special_ids": student.special_ids._asdict(),
            "config": dataclasses.asdict(student.config),
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
            "vocabulary": data.vocabulary,
        },
        "data": {"shards": data.shards, **data.facts},
        "objective": dataclasses.asdict(objective),
        "versions": {
            "cot_flax": cot_flax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }


def _merged(known: dict[str, Any], added: Mapping[str, Mapping]) -> dict[str, Any]:
    """Sections of facts, each with what was added to it."""
    return known | {name: {**known.get(name, {}), **more} for name, more in added.items()}


def _check(name: str, number: int | None, *, least: int) -> None:
    if number is not None and number < least:
        raise UserError(f"{name} {number}", f"{least} or more", f"correct {name}")


class _Window:
    """Gathers the metrics of steps and logs their means, fetched one step late.

    Fetching late keeps the device busy: the host reads step i while step i + 1 runs.
    """

    def __init__(
        self,
        log: logs.Logs,
        model_dir: str,
        period: int,
        locate_nonfinite: Callable[..., str],
        speed: logs.Speed,
    ):
        self._log, self._model_dir, self._period, self._locate_nonfinite = (
            log,
            model_dir,
            period,
            locate_nonfinite,
        )
        self._speed = speed
        self._pending: tuple[int, dict] | None = None
        self._sums: dict[str, float] = {}
        self._steps = self._last = 0

    def add(self, i: int, metrics: dict) -> None:
        self.catch_up()
        self._pending = i, metrics

    def catch_up(self) -> None:
        """Fetches the last step and checks that it is finite."""
        if self._pending:
            pending, self._pending = self._pending, None
            self._take(*pending)

    def flush(self) -> None:
        """Fetches the last step and logs what has gathered, however short the window."""
        self.catch_up()
        if self._steps:
            self._write(self._last)

    def _take(self, i, metrics):
        metrics = jax.device_get(metrics)  # waits for the step; all sums in one transfer
        flags = [metrics.pop(f"nonfinite/{kind}") for kind in ("activations", "gradients")]
        values = {name: float(value) for name, value in metrics.items()}
        locate_nonfinite = partial(self._locate_nonfinite, *flags, values["loss"])
        logs.check_finite(i, values, self._model_dir, locate_nonfinite)
        # Python's floats are float64: a window of a thousand steps loses nothing.
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        self._steps, self._last = self._steps + 1, i
        if i % self._period == 0:
            self._write(i)

    def _write(self, i):
        # Rates and norms are no sums; their means are over steps.
        for name in ("learning_rate", "gradient_norm"):
            self._sums[name] /= self._steps
        speed = self._speed.lap(self._sums["tokens"])
        self._log.write(i, step.summarize(self._sums) | speed)
        self._sums, self._steps = {}, 0


def prefetch(
    batches: Iterator[dict], place: Callable, depth: int = 2
) -> Generator[dict, None, None]:
    """Places batches on the devices (`place` does) from a thread, `depth` ahead of their use."""
    # Two deep: one batch is on its way while one waits. More would hold memory on the devices.
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)  # looks at `stop` ten times a second
            except queue.Full:
                continue

    def work():
        try:
            for batch in batches:
                put(place(batch))
                if stop.is_set():
                    return
            remedy = "check that the split has examples that fit TASK_FEATURE_LENGTHS"
            put(UserError("data that end", "batches for ever", remedy))
        except BaseException as error:  # handed to the consumer, whatever it is
            put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        worker.join()
