"""Symbolic tasks of Wei et al. 2022, made by seed: `last_letter_concatenation_<format>` and
`coin_flip_<format>`.

Students are trained on short items and tested on longer ones, too. Nothing is read from files; no
item stands in two splits. The 500 items each of Ho et al. 2022 are `ho2022_<name>`.
"""

import functools
import random
from collections.abc import Callable, Sequence

import gin

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.text.answers import LETTERS

_NAMES = """
Ada Alan Alice Amir Ana Anders Anna Anton Aoife Bea Ben Boris Brigid Carla Carol Cem Chen Clara
Cyrus Dana David Dev Diana Dora Edith Edwin Elena Elif Emil Enzo Erik Eva Farid Felix Fiona
Frank Freya Gita Grace Greta Hana Hans Hugo Ian Ida Igor Ines Iris Isak Ivan Jack Jana Jens Joan
Jonas Julia June Kaito Karin Karl Kate Kofi Lara Lars Lena Leo Lila Linh Liv Lucas Luis Lydia
Maja Marco Maria Mark Maya Mia Milan Mona Nadia Nele Nils Nina Noah Nora Olga Omar Oskar Otto
Paul Pavel Petra Pia Quinn Rafael Rana Remy Rita Robert Rosa Ruth Sam Sara Selim Simon Sofia
Stella Sven Tara Tess Theo Tomas Ugo Uma Una Vera Victor Viola Wanda Will Xenia Yara Yusuf Zane
Zita Zoe
"""
NAMES = tuple(_NAMES.split())


@gin.configurable(module="cot_flax.tasks.symbolic")
def lengths(
    train: Sequence[int] = (2,), test: Sequence[int] = (2, 3, 4)
) -> dict[str, tuple[int, ...]]:
    """Names an item, by split; those of a split take turns.

    Args:
        train: of the train and validation splits.
        test: of the test split: those of training and longer ones, as in Wei et al. 2022.
    """
    return {"train": tuple(train), "validation": tuple(train), "test": tuple(test)}


@gin.configurable(module="cot_flax.tasks.symbolic")
def counts(
    train: int = 1000, validation: int = 100, test: int = 600, seed: int = 0
) -> tuple[dict[str, int], int]:
    """Items a split, and the seed by which they are drawn."""
    return {"train": train, "validation": validation, "test": test}, seed


@gin.configurable(module="cot_flax.tasks.symbolic")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def last_letters(names: Sequence[str], rng: random.Random) -> tuple[str, str, str]:
    """An item of last-letter concatenation: question, rationale, answer."""
    del rng
    answer = "".join(name[-1] for name in names)
    steps = [f'The last letter of "{name}" is "{name[-1]}".' for name in names]
    question = f'Take the last letters of each words in "{" ".join(names)}" and concatenate them.'
    return question, " ".join([*steps, f'Together they are "{answer}".']), answer


def coin_flips(names: Sequence[str], rng: random.Random) -> tuple[str, str, str]:
    """An item of coin flipping: question, rationale, answer."""
    flips = [rng.random() < 0.5 for _ in names]
    acts = [
        f"{name} {'flips' if flip else 'does not flip'} the coin."
        for name, flip in zip(names, flips, strict=True)
    ]
    asked = 'Is the coin still heads up? Note that "flip" here means "reverse".'
    count = sum(flips)
    parity, side, answer = ("odd", "tails", "no") if count % 2 else ("even", "heads", "yes")
    rationale = (
        f"The coin is flipped {count} time{'s' * (count != 1)}, an {parity} number. "
        f"It began heads up, so it is {side} up."
    )
    return " ".join(["A coin is heads up.", *acts, asked]), rationale, answer


Make = Callable[[Sequence[str], random.Random], tuple[str, str, str]]
MAKERS: dict[str, Make] = {"last_letter_concatenation": last_letters, "coin_flip": coin_flips}
_TRIES = 100  # an item, before there are too few different ones


def _records(split: str, name: str) -> list[dict]:
    sizes, seed = counts()
    return _made(name, tuple(lengths().items()), tuple(sizes.items()), seed)[split]


@functools.lru_cache(maxsize=4)
def _made(name, lengths, sizes, seed):
    """All splits, drawn in one stream so that they have no item in common."""
    rng = random.Random(f"{name}/{seed}")
    seen: set[str] = set()
    lengths, found = dict(lengths), {}
    for split, size in sizes:
        found[split] = []
        for i in range(size):
            length = lengths[split][i % len(lengths[split])]
            question, rationale, answer = _new(MAKERS[name], length, rng, seen)
            seen.add(question)
            found[split].append(
                {
                    "id": f"{name}-{split}-{i}",
                    "question": question,
                    "rationale": rationale,
                    "answer": answer,
                    "steps": length,
                }
            )
    return found


def _new(make, length, rng, seen):
    if not 1 <= length <= len(NAMES):
        raise UserError(f"{length} names an item", f"1 to {len(NAMES)}", "correct symbolic.lengths")
    for _ in range(_TRIES):
        item = make(rng.sample(NAMES, length), rng)
        if item[0] not in seen:
            return item
    raise UserError(
        f"only {len(seen)} different items so far, one of {length} names wanted",
        "more than are asked for",
        "lower symbolic.counts or raise symbolic.lengths",
    )


for name, kind in {"last_letter_concatenation": LETTERS, "coin_flip": "yes_no"}.items():
    add_cot_task(
        name,
        records_source(functools.partial(_records, name=name), ("train", "validation", "test")),
        answer_kind=kind,
        teacher_store=teacher_store,
    )
