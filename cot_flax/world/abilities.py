"""General-ability tasks, in miniature: what a specialised student may forget.

Modelled on three BIG-Bench-Hard tasks (Suzgun et al. 2022): word sorting, boolean expressions and
tracking shuffled objects. Each item is a question with a short answer; nothing else is shared with
the stories.
"""

import random
from collections.abc import Callable

from cot_flax.world.stories import NAMES

WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath",
    "ivory", "jolly", "kayak", "lemon", "maple", "north", "ocean", "pearl",
)  # fmt: skip
OBJECTS = ("ball", "drum", "kite", "lamp", "ring", "vase")


def word_sorting(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, 3)
    return f"Sort the words: {' '.join(words)}", " ".join(sorted(words))


def boolean_expressions(rng: random.Random) -> tuple[str, str]:
    left, right = (rng.choice(("True", "False")) for _ in range(2))
    negations = [rng.random() < 0.5 for _ in range(3)]
    operator = rng.choice(("and", "or"))
    a, b = (left == "True") != negations[1], (right == "True") != negations[2]
    inner = (a and b) if operator == "and" else (a or b)
    no = ["not " if negated else "" for negated in negations]
    return f"{no[0]}( {no[1]}{left} {operator} {no[2]}{right} ) is", str(inner != negations[0])


def object_tracking(rng: random.Random) -> tuple[str, str]:
    people, objects = rng.sample(NAMES, 3), rng.sample(OBJECTS, 3)
    held = dict(zip(people, objects, strict=True))
    start = " ".join(f"{person} holds the {thing}." for person, thing in held.items())
    a, b = rng.sample(people, 2)
    held[a], held[b] = held[b], held[a]
    asked = rng.choice(people)
    return f"{start} {a} and {b} swap. What does {asked} hold?", held[asked]


ABILITIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "word_sorting": word_sorting,
    "boolean_expressions": boolean_expressions,
    "object_tracking": object_tracking,
}


def make_items(ability: str, count: int, *, split: str, seed: int = 0) -> list[tuple[str, str]]:
    """Returns `count` (question, answer) pairs.

    Splits are disjoint for word sorting and tracking; of the 64 boolean expressions all occur in
    every split, since the smallest student can only be asked what it has once been taught.
    """
    rng = random.Random(f"{ability} {split} {seed}")
    items = []
    while len(items) < count:
        question, answer = ABILITIES[ability](rng)
        if ability == "boolean_expressions" or _split_of(question) == split:
            items.append((question, answer))
    return items


def _split_of(question: str) -> str:
    bucket = random.Random(question).random()
    return "train" if bucket < 0.8 else "validation" if bucket < 0.85 else "test"
