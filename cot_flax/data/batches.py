"""Batches of a registered task or mixture, for the trainer."""

import atexit
import copy
import dataclasses
import itertools
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np
import seqio
import tensorflow as tf
from jax.experimental import multihost_utils

from cot_flax.data import leaks, mixtures, packing
from cot_flax.data.features import (
    OTHER_STUDENTS,
    TEACHER_FEATURES,
    TokenizerVocabulary,
    fingerprint,
    sentencepiece_model,
    special_ids,
)
from cot_flax.data.preprocessors import CUTS
from cot_flax.data.registration import prompts_of, stores_of
from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.students.layouts import Example, Layout
from cot_flax.text.tokenizers import SENTENCEPIECE, SpecialIds

BLOCK = 64
_TASK = "task"
_ENOUGH = 1000  # examples of which none fits
_SIDES = ("inputs", "targets")
_LOOKED_AT = 256  # examples, for unknown pieces
_OPEN: weakref.WeakSet = weakref.WeakSet()


@dataclass
class TaskBatches:
    """An endless, deterministic stream of batches (the trainer's `Data`).

    Examples that are longer than `feature_lengths` on either side are left out and counted: a cut
    chain would lose its answer.

    The data are cut into shards, each of which fills its own rows of every batch. So the batches
    are the same whichever host reads which shard.

    Attributes:
        mixture_or_task_name: a registered name; several of equal rates, or with their rates, become
            the name of their mixture.
        feature_lengths: `inputs` and `targets`, in tokens.
        batch_size: rows a batch, over all hosts.
        pack: put several examples into a row.
        use_cached: read tasks in SeqIO's cached form, where they have one.
        shards: 0 becomes the number of JAX processes.
        microbatches: parts of a batch that go through the model in turn: the m-th has the m-th row
            of every so many.
        by_task: each of these parts has rows of one task of a mixture, drawn by its rate for all
            shards alike; else the rows of all parts are drawn one by one.
        max_leak_questions: training questions of each data set that are compared with its held-out
            ones; 0 compares none.
        max_unknown: the share of pieces of the first examples, of inputs or of targets, that may be
            the vocabulary's unknown one.
    """

    mixture_or_task_name: mixtures.Tasks
    feature_lengths: Mapping[str, int]
    batch_size: int
    split: str = "train"
    pack: bool = False
    shuffle: bool = True
    seed: int = 0
    use_cached: bool = False
    shards: int = 0
    microbatches: int = 1
    by_task: bool = False
    max_unknown: float = 0.05
    max_leak_questions: int = leaks.LIMIT
    _counts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        self.mixture_or_task_name = mixtures.mixture(self.mixture_or_task_name)
        self._provider = mixtures.find_task(self.mixture_or_task_name)
        self.shards = self.shards or jax.process_count()
        if self.shards < 0:
            raise UserError(
                f"DATA_SHARDS {self.shards}", "1 or more, or 0 for one a process", "correct it"
            )
        if self.batch_size % self.shards:
            raise UserError(
                f"BATCH_SIZE {self.batch_size} with the data in {self.shards} shards",
                f"a multiple of {self.shards}",
                "change BATCH_SIZE, or set DATA_SHARDS (without it there is one a process)",
            )
        if self.by_task and self.batch_size % (self.shards * self.microbatches):
            raise UserError(
                f"BATCH_SIZE {self.batch_size} in {self.microbatches} micro-batches of one task, "
                f"with the data in {self.shards} shards",
                f"a multiple of {self.shards * self.microbatches}",
                "change BATCH_SIZE, MICROBATCHES or DATA_SHARDS",
            )
        self._forget_counts()
        missing = {"inputs", "targets"} - set(self.feature_lengths)
        if missing:
            raise UserError(
                f"TASK_FEATURE_LENGTHS {dict(self.feature_lengths)}",
                "lengths of inputs and targets",
                f"add {sorted(missing)}",
            )
        if self.split not in self._provider.splits:
            raise UserError(
                f"split {self.split!r} of {self.mixture_or_task_name}",
                f"one of {sorted(self._provider.splits)}",
                "correct the split",
            )

    @property
    def vocabulary(self) -> str:
        return fingerprint(self._provider.output_features["targets"].vocabulary)

    @property
    def vocabulary_files(self) -> dict[str, bytes]:
        vocabulary = self._provider.output_features["targets"].vocabulary
        if isinstance(vocabulary, TokenizerVocabulary):
            return vocabulary.tokenizer.files
        model = sentencepiece_model(vocabulary)
        return {} if model is None else {SENTENCEPIECE: model}

    @property
    def special_ids(self) -> SpecialIds:
        return special_ids(self._provider.output_features["targets"].vocabulary)

    @property
    def facts(self) -> dict:
        """What the stream depends on beside its batch size and shards, as run.json holds it."""
        rates, stores = self._rates(), stores_of(seqio.get_subtasks(self._provider))
        total = sum(rates.values())
        parts = {
            "microbatches": self.microbatches,
            "rows": self.batch_size // self.microbatches,
        }
        return {
            "mixture": self.mixture_or_task_name,
            "lengths": dict(self.feature_lengths),
            "split": self.split,
            "pack": self.pack,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "cached": self.use_cached,
            "by_task": parts if self.by_task else None,
        } | {
            **({"rates": {name: rate / total for name, rate in rates.items()}} if rates else {}),
            **({"stores": stores} if len(stores) > 1 else {}),
            "prompts": prompts_of(seqio.get_subtasks(self._provider)),
            "leaks": {name: dataclasses.asdict(found) for name, found in self.found_leaks.items()},
        }

    @cached_property
    def found_leaks(self) -> dict[str, leaks.Leaks]:
        """What training data give away of their held-out splits; empty for other data."""
        if self.split != "train" or not self.max_leak_questions:
            return {}
        return leaks.of_tasks(seqio.get_subtasks(self._provider), self.max_leak_questions)

    @property
    def has_teacher(self) -> bool:
        return "teacher_top_ids" in self._provider.output_features

    def check(self, objective: Objective, vocab_size: int) -> None:
        """Raises UserError where a run asks for KL and no example has a teacher's row.

        Others have trained for days without noticing that. It also raises where the vocabulary has
        ids for which the model, of `vocab_size` rows, has none, a mixture two vocabularies or
        rates that are no shares, or the first example cannot be read, and where the vocabulary
        lacks more of the first examples than `max_unknown`.
        """
        self._check_vocabularies()
        self._check_rates()
        ids = self._provider.output_features["targets"].vocabulary.vocab_size
        if ids > vocab_size:
            raise UserError(
                f"a vocabulary of {ids:,} ids for a model of {vocab_size:,} rows",
                "a row an id at least",
                "set the model's vocab_size, or train with the model's own vocabulary",
            )
        self._check_unknown()  # and what cannot be read is said here
        if not objective.uses_teacher:
            return
        if not self.has_teacher or not any(
            np.any(example["teacher_top_logprobs"] < 0) for example in self._examples(num_epochs=1)
        ):
            raise UserError(
                f"no teacher log-probabilities in {self.mixture_or_task_name}",
                "at least one example with them, since the objective has kl_weight > 0",
                "prepare samples that have log-probabilities, or use objectives/cross_entropy.gin",
            )

    def batches(
        self, layout: Layout, skip: int = 0, shards: Sequence[int] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the rows that these shards (None: all) have in every batch, for ever.

        The first `skip` rows of all shards are made but not given, to resume exactly.
        """
        self._forget_counts()
        chosen = range(self.shards) if shards is None else shards
        size = self.batch_size // self.shards
        skipped = skip // self.shards  # all shards have given as many
        streams = (itertools.islice(self._rows(layout, shard), skipped, None) for shard in chosen)
        for groups in zip(*(packing.batched(rows, size) for rows in streams), strict=True):
            rows = list(itertools.chain(*groups))
            yield layout.to_batch(
                rows,
                self.feature_lengths,
                self.special_ids,
                top_k=self._top_k(rows),
                packed=self.pack,
            )

    def epoch(self, layout: Layout) -> tuple[int, int, int]:
        """Counts an epoch, for which it reads all data: see `training.epochs`.

        Returns:
            The examples of all tasks that are mixed, the overlong ones beside them, and the rows
            that as many examples of the stream fill.
        """
        rates = self._rates() or {self._provider.name: 1.0}
        sizes = [self._sizes(name) for name in self._tasks() if rates[name]]
        fitting, overlong = (sum(size[i] for size in sizes) for i in (0, 1))
        if not self.pack or not fitting:
            return fitting, overlong, fitting
        if self.by_task:
            alone = dataclasses.replace(self, shards=1)
            ends = itertools.accumulate(map(len, alone._rows(layout, 0)))
            return fitting, overlong, 1 + sum(1 for _ in itertools.takewhile(fitting.__gt__, ends))
        stream = (example for example in self._examples(None) if not self._is_overlong(example))
        rows = packing.pack(itertools.islice(stream, fitting), layout, self.feature_lengths)
        return fitting, overlong, sum(1 for _ in rows)

    def _sizes(self, task: str) -> tuple[int, int]:
        """How many examples of a task fit, and how many do not."""
        alone = dataclasses.replace(self, mixture_or_task_name=task)
        counts = Counter(map(self._is_overlong, alone._examples(num_epochs=1)))
        return counts[False], counts[True]

    def _is_overlong(self, example: Mapping[str, np.ndarray]) -> bool:
        return any(len(example[side]) > self.feature_lengths[side] for side in _SIDES)

    def report(self) -> str:
        """What was left out or cut, of which task, what remains of its rates, and what is unknown.

        Where there are several processes, all of them have to ask.
        """
        counts = multihost_utils.process_allgather(self._counts)
        counts = counts.reshape(-1, *self._counts.shape).max(axis=0).sum(axis=0)
        unknown = (self._unknown(side, counts) for side in _SIDES)
        cuts = map(CUTS.report, self._tasks())  # of this process
        return "; ".join(filter(None, (self._left_out(counts[:, :2]), *unknown, *cuts)))

    def _left_out(self, counts: np.ndarray) -> str:
        seen, overlong = counts.sum(axis=0)
        if not overlong:
            return ""
        lengths = ", ".join(f"{k} {v}" for k, v in self.feature_lengths.items())
        text = (
            f"left out {overlong:,} of {seen:,} examples of "
            f"{self.mixture_or_task_name}: longer than {lengths} tokens"
        )
        if len(counts) == 1:
            return text
        # A task of small rate may not have been drawn yet.
        parts = [
            f"{name} {long:,} of {all:,} (share {all / seen:.1%}, without them "
            f"{(all - long) / max(seen - overlong, 1):.1%})"
            for name, (all, long) in zip(self._tasks(), counts, strict=True)
        ]
        return f"{text}; {', '.join(parts)}"

    def _unknown(self, side: str, counts: np.ndarray) -> str:
        place = 2 + _SIDES.index(side)
        parts = [
            f"{name} {found[place]:,} of {found[0] - found[1]:,}"
            for name, found in zip(self._tasks(), counts, strict=True)
            if found[place]
        ]
        read = "learnt" if side == "targets" else "read"
        text = f"{side} with characters that the vocabulary lacks, which are {read} as <unk>: "
        return text + ", ".join(parts) if parts else ""

    def _check_vocabularies(self):
        tasks = getattr(self._provider, "tasks", [self._provider])
        found = {fingerprint(t.output_features["targets"].vocabulary): t.name for t in tasks}
        if len(found) > 1:
            raise UserError(
                f"{self.mixture_or_task_name} of {' and '.join(found.values())}",
                "tasks of one vocabulary",
                "register them with the same vocabulary",
            )

    def _check_rates(self):
        rates = self._rates()
        wrong = {name: rate for name, rate in rates.items() if not rate >= 0}
        if wrong or (rates and not any(rates.values())):
            shown = ", ".join(f"{name} {rate:g}" for name, rate in (wrong or rates).items())
            raise UserError(
                f"mixing rates of {self.mixture_or_task_name}: {shown}",
                "0 or more, one of them above 0",
                f"correct {self.mixture_or_task_name}/registration.format_rates",
            )

    def _check_unknown(self):
        unk_id, lacking, all = self._unk_id, np.zeros(2, int), np.zeros(2, int)
        for example in itertools.islice(self._examples(num_epochs=1), _LOOKED_AT):
            lacking += [(example[side] == unk_id).sum() for side in _SIDES]
            all += [len(example[side]) for side in _SIDES]
        for side, unknown, pieces in zip(_SIDES, lacking, all, strict=True):
            if unknown > self.max_unknown * pieces:
                raise UserError(
                    f"{unknown:,} of {pieces:,} pieces ({unknown / pieces:.1%}) of the {side} of "
                    f"{self.mixture_or_task_name} unknown to the student's vocabulary",
                    f"at most {self.max_unknown:.1%}",
                    f"{OTHER_STUDENTS}, or raise MAX_UNKNOWN_PIECES",
                )

    @property
    def _unk_id(self) -> int | None:
        return self._provider.output_features["targets"].vocabulary.unk_id

    def _rates(self) -> dict[str, float]:
        """The rates of a mixture's tasks; empty for a task."""
        if isinstance(self._provider, seqio.Task):
            return {}
        return {task.name: self._provider.get_rate(task) for task in self._provider.tasks}

    def _tasks(self) -> list[str]:
        """Those that have the split, in the order in which seqio mixes them."""
        tasks = getattr(self._provider, "tasks", [self._provider])
        return [task.name for task in tasks if self.split in task.splits]

    def _forget_counts(self):
        # Of every shard and task: read, of these overlong, and of the others with unknown pieces in
        # each of _SIDES.
        self._counts = np.zeros((self.shards, len(self._tasks()), 4), np.int64)
        for task in self._tasks():
            CUTS.forget(task)

    def _rows(self, layout: Layout, shard: int) -> Iterator[list[Example]]:
        datasets = self._datasets(None, seqio.ShardInfo(shard, self.shards), apart=self.by_task)
        if not self.by_task:
            yield from self._in_rows(layout, self._fitting(shard, *datasets))
            return
        rows = [
            self._in_rows(layout, self._fitting(shard, dataset, task))
            for task, dataset in enumerate(datasets)
        ]
        count = self.batch_size // self.shards // self.microbatches
        draws = self._draws()
        while True:
            chosen = list(itertools.islice(draws, self.microbatches))
            parts = [list(itertools.islice(rows[task], count)) for task in chosen]
            for task, part in zip(chosen, parts, strict=True):
                if len(part) < count:  # a shard without an example of it, else it has no end
                    raise UserError(
                        f"no {self.split} examples of {self._tasks()[task]} in a shard",
                        "some in each",
                        "set fewer DATA_SHARDS, or leave the task out",
                    )
            # Row by row, as the trainer takes a batch apart.
            yield from itertools.chain(*zip(*parts, strict=True))

    def _in_rows(self, layout: Layout, examples: Iterable[Example]) -> Iterator[list[Example]]:
        if self.pack:
            return packing.pack(examples, layout, self.feature_lengths)
        return ([example] for example in examples)

    def _draws(self) -> Iterator[int]:
        """For ever, of which of `_tasks` a micro-batch is; the same for all shards."""
        rates = self._rates() or {self._provider.name: 1.0}
        shares = np.array([rates[task] for task in self._tasks()])
        draw = np.random.RandomState(self.seed)
        while True:
            yield from draw.choice(len(shares), size=BLOCK, p=shares / shares.sum()).tolist()

    def _examples(
        self, num_epochs: int | None, shard_info: seqio.ShardInfo | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The examples; each says in its feature "task" ([1]) of which of `_tasks` it is."""
        (dataset,) = self._datasets(num_epochs, shard_info)
        return self._read(dataset)

    def _datasets(
        self, num_epochs: int | None, shard_info: seqio.ShardInfo | None, *, apart: bool = False
    ) -> list[tf.data.Dataset]:
        return _numbered(
            self._provider,
            apart=apart,
            sequence_length=None,
            split=self.split,
            shuffle=self.shuffle,
            seed=self.seed,
            num_epochs=num_epochs,
            use_cached=self.use_cached,
            shard_info=shard_info,
        )

    def _read(self, dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
        teacher = TEACHER_FEATURES if self.has_teacher else ()
        return _closed_before_exit(_in_blocks(dataset, ("inputs", "targets", *teacher, _TASK)))

    def _fitting(
        self, shard: int, dataset: tf.data.Dataset, task: int | None = None
    ) -> Iterator[Example]:
        """The examples of a shard that fit; counts all, under their tasks.

        Args:
            dataset: of the shard.
            task: of which of `_tasks` alone it is; None is all, mixed.
        """
        unk_id = self._unk_id
        read = slice(None) if task is None else slice(task, task + 1)
        for example in self._read(dataset):
            overlong = self._is_overlong(example)
            unknown = (not overlong and unk_id in example[side] for side in _SIDES)
            self._counts[shard, example.pop(_TASK)[0]] += 1, overlong, *unknown
            if not overlong:
                yield example
            elif self._counts[shard, read].sum(axis=0).tolist() == [_ENOUGH, _ENOUGH, 0, 0]:
                name = self.mixture_or_task_name if task is None else self._tasks()[task]
                raise UserError(
                    f"{_ENOUGH} examples of {name}, none within "
                    f"{dict(self.feature_lengths)} tokens",
                    "examples that fit",
                    "raise TASK_FEATURE_LENGTHS",
                )

    def _top_k(self, rows) -> int:
        return rows[0][0]["teacher_top_ids"].shape[1] if self.has_teacher else 0


def _numbered(
    provider: seqio.Task | seqio.Mixture, *, apart: bool, **settings
) -> list[tf.data.Dataset]:
    """The dataset with a feature more: the place of an example's task among the tasks mixed.

    Args:
        apart: one for each of these tasks instead, as it is in the mixture.
        settings: of `get_dataset`.
    """

    def number(dataset, n):
        return dataset.map(lambda example: {**example, _TASK: tf.constant([n], tf.int32)})

    if isinstance(provider, seqio.Task):
        return [number(provider.get_dataset(**settings), 0)]
    provider, original = copy.copy(provider), provider
    found: list[tf.data.Dataset] = []

    # seqio filters features before it mixes, so that none of a task's own says which it is.
    def sample(datasets, rates, seed):
        numbered = [number(dataset, n) for n, dataset in enumerate(datasets)]
        wanted = np.eye(len(numbered)).tolist() if apart else [rates]
        found.extend(original._sample_fn(numbered, only, seed) for only in wanted)
        return found[0]

    provider._sample_fn = sample
    provider.get_dataset(**settings)
    return found


def _in_blocks(dataset: tf.data.Dataset, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The named features of the examples, read BLOCK at a time: a step costs as much as ten do."""
    chosen = dataset.map(lambda example: {name: example[name] for name in names})
    for block in chosen.ragged_batch(BLOCK).prefetch(1):
        for values in zip(*(_rows(block[name]) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _rows(block: tf.RaggedTensor | tf.Tensor) -> list[np.ndarray]:
    if isinstance(block, tf.Tensor):  # all of one length
        return list(block.numpy())
    return np.split(block.values.numpy(), block.row_splits.numpy()[1:-1])


def _closed_before_exit(examples: Iterator) -> Iterator:
    """Registers an iterator over a dataset, so that it does not outlive the interpreter.

    Its threads call back into Python; one that is alive while the interpreter shuts down hangs it.
    """
    _OPEN.add(examples)
    return examples


@atexit.register
def _close_all() -> None:
    for iterator in list(_OPEN):
        iterator.close()
