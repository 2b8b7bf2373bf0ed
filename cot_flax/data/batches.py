"""Batches of a registered task or mixture, for the trainer."""

import atexit
import difflib
import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.data import packing
from cot_flax.data.features import TEACHER_FEATURES, fingerprint, sentencepiece_model
from cot_flax.errors import UserError
from cot_flax.model.losses import Objective

BLOCK = 64
_OPEN: weakref.WeakSet = weakref.WeakSet()


@dataclass
class TaskBatches:
    """An endless, deterministic stream of batches (the trainer's `Data`).

    Examples that are longer than `feature_lengths` on either side are left out and counted: a cut
    chain would lose its answer.

    Attributes:
        mixture_or_task_name: a registered name.
        feature_lengths: `inputs` and `targets`, in tokens.
        batch_size: rows a batch, over all hosts.
        pack: put several examples into a row.
        use_cached: read tasks in SeqIO's cached form, where they have one.
    """

    mixture_or_task_name: str
    feature_lengths: Mapping[str, int]
    batch_size: int
    split: str = "train"
    pack: bool = False
    shuffle: bool = True
    seed: int = 0
    use_cached: bool = False
    _seen: int = field(default=0, init=False)
    _overlong: int = field(default=0, init=False)

    def __post_init__(self):
        self._provider = find_task(self.mixture_or_task_name)
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
    def vocabulary_model(self) -> bytes | None:
        return sentencepiece_model(self._provider.output_features["targets"].vocabulary)

    @property
    def has_teacher(self) -> bool:
        return "teacher_top_ids" in self._provider.output_features

    def check(self, objective: Objective, vocab_size: int) -> None:
        """Raises UserError where a run asks for KL and no example has a teacher's row.

        Others have trained for days without noticing that. It also raises where the vocabulary has
        ids for which the model, of `vocab_size` rows, has none.
        """
        ids = self._provider.output_features["targets"].vocabulary.vocab_size
        if ids > vocab_size:
            raise UserError(
                f"a vocabulary of {ids:,} ids for a model of {vocab_size:,} rows",
                "a row an id at least",
                "set the model's vocab_size, or train with the model's own vocabulary",
            )
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

    def batches(self, skip: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches for ever; the first `skip` are made but not given, to resume exactly."""
        self._seen = self._overlong = 0
        fitting = self._fitting(self._examples(num_epochs=None))
        if self.pack:
            rows = packing.pack(fitting, self.feature_lengths)
        else:
            rows = ([example] for example in fitting)
        for group in itertools.islice(packing.batched(rows, self.batch_size), skip, None):
            yield packing.to_batch(
                group, self.feature_lengths, top_k=self._top_k(group), packed=self.pack
            )

    def report(self) -> str:
        if not self._overlong:
            return ""
        lengths = ", ".join(f"{k} {v}" for k, v in self.feature_lengths.items())
        return (
            f"left out {self._overlong:,} of {self._seen:,} examples of "
            f"{self.mixture_or_task_name}: longer than {lengths} tokens"
        )

    def _examples(self, num_epochs: int | None) -> Iterator[dict[str, np.ndarray]]:
        dataset = self._provider.get_dataset(
            sequence_length=None,
            split=self.split,
            shuffle=self.shuffle,
            seed=self.seed,
            num_epochs=num_epochs,
            use_cached=self.use_cached,
        )
        teacher = TEACHER_FEATURES if self.has_teacher else ()
        return _closed_before_exit(_in_blocks(dataset, ("inputs", "targets", *teacher)))

    def _fitting(self, examples):
        limit = self.feature_lengths
        for example in examples:
            self._seen += 1
            if any(len(example[side]) > limit[side] for side in ("inputs", "targets")):
                self._overlong += 1
                self._stop_if_none_fits()
            else:
                yield example

    def _stop_if_none_fits(self, enough: int = 1000):
        if self._overlong == self._seen == enough:
            raise UserError(
                f"{enough} examples of {self.mixture_or_task_name}, none within "
                f"{dict(self.feature_lengths)} tokens",
                "examples that fit",
                "raise TASK_FEATURE_LENGTHS",
            )

    def _top_k(self, group) -> int:
        return group[0][0]["teacher_top_ids"].shape[1] if self.has_teacher else 0


def _in_blocks(dataset: tf.data.Dataset, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The named features of the examples, read BLOCK at a time: a step costs as much as ten do."""
    chosen = dataset.map(lambda example: {name: example[name] for name in names})
    for block in chosen.ragged_batch(BLOCK).prefetch(1):
        for values in zip(*(_rows(block[name]) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _rows(ragged: tf.RaggedTensor) -> list[np.ndarray]:
    return np.split(ragged.values.numpy(), ragged.row_splits.numpy()[1:-1])


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


def find_task(name: str) -> seqio.Task | seqio.Mixture:
    """Looks a name up; raises UserError with the nearest names where there is none."""
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError:
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise UserError(
            f"task or mixture {name!r}",
            f"a registered name, such as {', '.join(near)}" if near else "a registered name",
            "correct MIXTURE_OR_TASK_NAME or import its module in the gin file",
        ) from None
