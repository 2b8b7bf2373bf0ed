"""Mixtures of registered tasks: found by name, or made of names and rates that gin has.

T is the length of `targets`, K the entries of a teacher's row.
"""

import difflib
import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from cot_flax.data import preprocessors
from cot_flax.data.converter import teacher_top_k
from cot_flax.data.features import TEACHER_FEATURES
from cot_flax.data.registration import CotTask, demand
from cot_flax.errors import UserError

Tasks = str | Sequence[str] | Mapping[str, float]
"""A name of a task or mixture, several of equal rates, or names with their rates."""

_LONGEST = 120  # characters of a name that is made of others


class MadeMixture(seqio.Mixture):
    """One that `mixture` made, which may make another of the same name."""


def mixture(tasks: Tasks, name: str | None = None) -> str:
    """Registers a mixture, if need be, and returns its name, which every host can look up.

    Tasks with and without a teacher's rows mix: the others get rows without an entry, to which a KL
    is cross entropy, and rows of fewer entries than the widest are filled up likewise. The shares
    within a mixture stay as they are; a task that is named twice, itself and within a mixture, has
    the sum. Tasks keep their names, cards and caches.

    Args:
        tasks: names of tasks and mixtures. A name alone is returned as it is.
        name: the mixture's; by default it is made of the names and rates, in whichever order they
            stand, so that another mixture has another name.

    Raises:
        UserError: no task of that name, one that is named twice, a rate that is not above 0, or a
            name that is taken, or that SeqIO does not allow.
    """
    rates = _rates(tasks)
    providers = {given: find_task(given) for given in rates}
    if name is None and len(rates) == 1:
        return next(iter(rates))
    name = _checked_name(name) if name else _name(rates)
    parts = [(provider, rates[given]) for given, provider in providers.items()]
    shares = [
        (task, functools.partial(_share, parts=parts)) for task in _with_rows(_tasks_of(parts))
    ]
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, shares, mixture_cls=MadeMixture, sample_fn=_sample)
    return name


def microbatch_shares(examples: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, float]:
    """Rates of a mixture that come to paper [1]'s, whose micro-batches each hold one format.

    Every micro-batch counts as much there, so a format weighs as its share of them: its examples by
    the size of its micro-batches, the last one dropped where it is not full (Fu et al. 2023,
    `conf/batch_size/*.yaml`). It is what `mixture` takes as its tasks:

        mixtures.mixture.tasks = @mixtures.microbatch_shares()

    Args:
        examples: by name of task or mixture.
        sizes: examples a micro-batch, by the same names.

    Raises:
        UserError: other names in the one than in the other, a number below 1, or fewer examples
            than a micro-batch.
    """
    if examples.keys() != sizes.keys():
        raise UserError(
            f"examples of {', '.join(examples)} and sizes of {', '.join(sizes)}",
            "the same names in both",
            "correct mixtures.microbatch_shares",
        )
    for name, size in sizes.items():
        if size < 1 or examples[name] < size:
            raise UserError(
                f"{examples[name]} examples of {name} in micro-batches of {size}",
                "a size of 1 or more, and a full micro-batch at least",
                "correct mixtures.microbatch_shares",
            )
    counts = {name: examples[name] // size for name, size in sizes.items()}
    return {name: count / sum(counts.values()) for name, count in counts.items()}


def task_names(tasks: Tasks) -> list[str]:
    """The tasks behind names of tasks and mixtures, each once; rates say nothing here."""
    parts = [(find_task(name), 1.0) for name in _rates(tasks)]
    return [task.name for task in _tasks_of(parts)]


def find_task(name: str, given_as: str = "MIXTURE_OR_TASK_NAME") -> seqio.Task | seqio.Mixture:
    """Looks a name up; raises UserError with the nearest names where there is none.

    Args:
        given_as: what the user sets it by.
    """
    demand(name)
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError:
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise UserError(
            f"task or mixture {name!r}",
            f"a registered name, such as {', '.join(near)}" if near else "a registered name",
            f"correct {given_as} or import its module in the gin file",
        ) from None


def _rates(tasks: Tasks) -> dict[str, float]:
    """Names with their rates, as far as they can be right without being looked up."""
    named = [tasks] if isinstance(tasks, str) else list(tasks or ())
    if not named or not all(isinstance(name, str) for name in named):
        raise UserError(
            f"MIXTURE_OR_TASK_NAME {tasks!r}",
            "a name, a list of names, or a dict of names and rates",
            "correct it",
        )
    if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise UserError(
            f"{', '.join(twice)} twice in {tasks!r}", "each name once", "give rates: {NAME: RATE}"
        )
    rates = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(named, 1.0)
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise UserError(
                f"rate {rate!r} of {name}", "a number above 0", "correct it, or leave the name out"
            )
    return rates


def _name(rates: Mapping[str, float]) -> str:
    """The same for the same parts in any order, and whatever number all rates are multiplied by."""
    least = min(rates.values())
    shown = {given: f"{rates[given] / least:.6g}".replace("+", "") for given in sorted(rates)}
    equal = set(shown.values()) == {"1"}
    name = ":".join(given if equal else f"{given}:{rate}" for given, rate in shown.items())
    if len(name) <= _LONGEST:
        return name
    return f"mixture_of_{len(rates)}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _checked_name(name: str) -> str:
    taken = seqio.MixtureRegistry.names() | seqio.TaskRegistry.names()
    known = name in taken and seqio.get_mixture_or_task(name)
    if known and not isinstance(known, MadeMixture):
        raise UserError(
            f"{name!r} as the name of a mixture", "one that is not taken", "choose another name"
        )
    if not re.fullmatch(r"[\w.:#]+", name):
        raise UserError(
            f"{name!r} as the name of a mixture",
            "letters, digits, and any of _ . : #",
            "choose another name",
        )
    return name


def _tasks_of(parts: Sequence[tuple[seqio.Task | seqio.Mixture, float]]) -> list[seqio.Task]:
    """The tasks of all parts, each once, those with a teacher's rows where there are two forms."""
    found: dict[str, seqio.Task] = {}
    for provider, _ in parts:
        for task in seqio.get_subtasks(provider):
            if task.name not in found or _has_rows(task):
                found[task.name] = task
    return list(found.values())


def _share(task: seqio.Task, *, parts: Sequence[tuple[seqio.Task | seqio.Mixture, float]]) -> float:
    """What the parts come to for a task of theirs, as gin binds their inner rates now."""
    total = 0.0
    for provider, rate in parts:
        own = next((t for t in seqio.get_subtasks(provider) if t.name == task.name), None)
        if own is provider:
            total += rate
        elif own is not None:
            if not provider.total_rate:
                raise UserError(
                    f"mixing rates of {provider.name}, which are all 0",
                    "one above 0",
                    f"correct {provider.name}/registration.format_rates",
                )
            total += rate * provider.get_rate(own) / provider.total_rate
    return total


def _has_rows(task: seqio.Task) -> bool:
    return TEACHER_FEATURES[0] in task.output_features


def _with_rows(tasks: Sequence[seqio.Task]) -> list[seqio.Task]:
    """All with a teacher's rows where one has them: SeqIO mixes tasks of the same features only."""
    taught = next(filter(_has_rows, tasks), None)
    if taught is None:
        return list(tasks)
    rows = {name: taught.output_features[name] for name in TEACHER_FEATURES}
    widen = functools.partial(preprocessors.widen_rows, top_k=1)  # `_sample` knows the widest
    return [
        task
        if _has_rows(task)
        else CotTask(
            task.name,
            source=task.source,
            preprocessors=[*task.preprocessors, widen],
            output_features=dict(task.output_features) | rows,
            postprocess_fn=task.postprocessor,
            metric_fns=task.metric_fns,
            shuffle_buffer_size=task.shuffle_buffer_size,
        )
        for task in tasks
    ]


def _sample(datasets: Sequence[tf.data.Dataset], rates, seed) -> tf.data.Dataset:
    """Mixes as SeqIO does by default, after all rows have the entries of the widest."""
    if TEACHER_FEATURES[0] in datasets[0].element_spec:
        widest = max(teacher_top_k(dataset.element_spec) for dataset in datasets)
        datasets = [preprocessors.widen_rows(dataset, top_k=widest) for dataset in datasets]
    return tf.data.Dataset.sample_from_datasets(datasets, rates, seed, stop_on_empty_dataset=True)
