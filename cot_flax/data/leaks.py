"""What the training questions give away of held-out ones, counted before a run begins.

N is the words of several questions in a row, each question followed by a gap.
"""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.data import preprocessors
from cot_flax.data.features import TEACHER_FEATURES
from cot_flax.data.registration import registered
from cot_flax.errors import UserError
from cot_flax.run_folder import Leaks
from cot_flax.text.prompts import normalize_question

LIMIT = 200_000
"""Training questions that are looked at."""
GRAM = 8
SHARE = 0.7
"""Of the n-grams of a question that is known: Chowdhery et al. 2022 ("PaLM", arXiv 2204.02311,
section 8) call an example contaminated where 70% of its 8-grams stand in the training data."""

_BLOCK = 4096
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+(?:['’][^\W\d]+)*")
_FACTORS = np.cumprod(np.full(GRAM, 0x9E3779B97F4A7C15, np.uint64))


def template_of(question: str) -> str:
    """A question with `#` for its numbers and `@` for its names, without punctuation and case.

    Words that begin with an upper-case letter count as names. "" where nothing else is left.
    """
    words = [
        "#" if word[0].isdigit() else "@" if word[0].isupper() else word
        for word in _TOKEN.findall(question)
    ]
    return " ".join(words) if set(words) - {"#", "@"} else ""


def find_leaks(train: Iterable[str], held_out: Mapping[str, Sequence[str]]) -> dict[str, Leaks]:
    """Counts what training questions, which are read once, give away of each held-out split."""
    normal = {name: list(map(normalize_question, texts)) for name, texts in held_out.items()}
    masked = {name: list(map(template_of, texts)) for name, texts in held_out.items()}
    asked, templates = (set(itertools.chain(*texts.values())) for texts in (normal, masked))
    words = {word: n for n, word in enumerate({w for q in asked for w in q.split()}, 1)}
    wanted = np.unique(_grams(list(asked), words))
    same, alike, is_seen = set(), set(), np.zeros(len(wanted), bool)
    for block in _blocks(train):
        texts = list(map(normalize_question, block))
        same |= asked.intersection(texts)
        alike |= templates.intersection(map(template_of, block))
        found = _grams(texts, words)
        if len(wanted):  # `wanted` is sorted, and few blocks hold much of it
            places = np.searchsorted(wanted, found).clip(max=len(wanted) - 1)
            is_seen[places[wanted[places] == found]] = True
    seen, alike = wanted[is_seen], alike - {""}

    def overlaps(question: str) -> bool:
        grams = _grams([question], words)
        return len(grams) > 0 and bool(np.isin(grams, seen).mean() >= SHARE)

    return {
        name: Leaks(
            len(questions),
            sum(question in same for question in questions),
            sum(q in same or t in alike for q, t in zip(questions, masked[name], strict=True)),
            sum(map(overlaps, questions)),
        )
        for name, questions in normal.items()
    }


def of_tasks(tasks: Sequence[seqio.Task], limit: int = LIMIT) -> dict[str, Leaks]:
    """What the train splits of tasks give away of their data sets' other splits.

    Those of one data set in several formats are read once; of a store, the chains that are left.
    Tasks whose records have no questions, which `add_cot_task` did not register, are not looked at.

    Args:
        limit: training questions of each data set that are looked at; what is left is logged.

    Returns:
        By `<dataset>/<split>`, of those that could be read.
    """
    datasets = {card.name: card.dataset for card in registered()}
    sources, held_out = {}, {}
    for task in tasks:
        if task.name not in datasets:
            continue
        dataset = datasets[task.name]
        if "train" in task.splits:
            sources.setdefault(dataset, task)
        # A teacher's tasks have the held-out splits of their data set.
        is_taught = TEACHER_FEATURES[0] in task.output_features
        owner = dataset.removesuffix("_teacher") if is_taught else dataset
        for split in task.splits:
            if split != "train" and f"{owner}/{split}" not in held_out:
                held_out[f"{owner}/{split}"] = _held_out(task, split, limit)
    held_out = {name: questions for name, questions in held_out.items() if questions}
    train = (q for task in sources.values() for q in _questions(task, "train", limit))
    return find_leaks(train, held_out) if held_out else {}


def _held_out(task: seqio.Task, split: str, limit: int) -> list[str]:
    """None where they cannot be read: a run needs only its training data."""
    try:
        return list(_questions(task, split, limit))
    except (UserError, OSError, tf.errors.OpError) as error:
        why = str(error).splitlines()[0]
        logging.getLogger(__name__).warning("leaks: %s/%s not read: %s", task.name, split, why)
        return []


def _questions(task: seqio.Task, split: str, limit: int) -> Iterator[str]:
    """The questions of the records that a task's prompts are made of."""
    dataset = task.source.get_dataset(split, shuffle=False)
    for step in task.preprocessors:
        if getattr(step, "func", None) is preprocessors.write_prompt:
            break
        if not isinstance(step, seqio.CacheDatasetPlaceholder):
            dataset = step(dataset)
    texts = dataset.map(lambda record: record["question"]).batch(_BLOCK).prefetch(1)
    count = 0
    for block in texts.as_numpy_iterator():
        for text in block:
            if count == limit:
                logging.getLogger(__name__).warning(
                    "leaks: the first %s questions of %s alone are looked at",
                    f"{limit:,}", f"{task.name}/{split}",
                )  # fmt: skip
                return
            count += 1
            yield text.decode()


def _grams(questions: Sequence[str], words: Mapping[str, int]) -> np.ndarray:
    """uint64 hashes of all n-grams within questions whose words are all known.

    Args:
        words: numbers above 0 of the words that are known.
    """
    # 0 is a word that is not known, and what stands between two questions.
    ids = [n for question in questions for n in (*map(words.get, question.split()), None)]
    ids_N = np.array([n or 0 for n in ids], np.uint64)
    if len(ids_N) < GRAM:
        return np.zeros(0, np.uint64)
    count = len(ids_N) - GRAM + 1
    shifted = [ids_N[n : n + count] for n in range(GRAM)]
    hashes = sum(ids * factor for ids, factor in zip(shifted, _FACTORS, strict=True))
    return hashes[np.logical_and.reduce([ids > 0 for ids in shifted])]


def _blocks(questions: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for question in questions:
        block.append(question)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block
