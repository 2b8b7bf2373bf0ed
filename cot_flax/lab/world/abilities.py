"""General-ability tasks, in miniature: what a base model knows and a specialised one may forget.

Word sorting, boolean expressions and object tracking are modelled on tasks of BIG-Bench Hard
(Suzgun et al. 2022). Calculation and retelling are the single skills that a chain strings together:
a base model has them, as a pre-trained T5 has, and still cannot reason in several steps.
"""

import random
import re
from collections.abc import Callable

from cot_flax.lab.world.stories import LARGEST, NAMES, OPERATORS, ORDINALS, apply, make_stories

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


def calculation(rng: random.Random) -> tuple[str, str]:
    operator = rng.choice(tuple(OPERATORS.values()))
    left = rng.randint(0, LARGEST)
    right = 2 if operator in "*/" else rng.randint(0, LARGEST)
    result = apply(operator, left, right)
    if result is None:
        return calculation(rng)
    return f"Compute {left} {operator} {right}", f"{left} {operator} {right} = {result}"


def retelling(rng: random.Random) -> tuple[str, str]:
    (story,) = make_stories(1, split="train", seed=rng.getrandbits(32), steps=(2, 3, 4))
    sentences = re.split(r"(?<=[.?]) ", story.question)[:-1]
    events = dict(s.rstrip(".").split(", ", 1) for s in sentences if s.startswith(ORDINALS))
    ordinal = rng.choice(tuple(events))
    return f"{' '.join(sentences)} Tell the {ordinal} event", events[ordinal]


ABILITIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "word_sorting": word_sorting,
    "boolean_expressions": boolean_expressions,
    "object_tracking": object_tracking,
    "calculation": calculation,
    "retelling": retelling,
}


SMALL = ("boolean_expressions", "calculation")
"""Too few distinct items to split."""


def make_items(ability: str, count: int, *, split: str, seed: int = 0) -> list[tuple[str, str]]:
    """Returns `count` (question, answer) pairs.

    Splits are disjoint where there are enough items; of the few boolean expressions and sums all
    occur in every split, since they can only be known by having been taught.
    """
    rng = random.Random(f"{ability} {split} {seed}")
    items = []
    while len(items) < count:
        question, answer = ABILITIES[ability](rng)
        if ability in SMALL or _split_of(question) == split:
            items.append((question, answer))
    return items


def _split_of(question: str) -> str:
    bucket = random.Random(question).random()
    return "train" if bucket < 0.8 else "validation" if bucket < 0.85 else "test"
