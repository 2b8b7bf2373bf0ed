"""A seeded grammar of arithmetic stories of one to four steps.

A story has one or two characters. Each owns an amount that changes; the last question asks for one
amount, for the sum of both or for their difference. The same story can be told in several wordings
and solved in several orders.

A *template* is a story without its names, things and numbers. Splits are made by template, so no
test story is a training story with other numbers (the leak-free splits of Ho et al. 2022, app. A).
"""

import hashlib
import random
from dataclasses import dataclass

LARGEST = 12
NAMES = ("Anna", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo")
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "marbles", "pens")
SPLITS = ("train", "validation", "test")

ORDINALS = ("First", "Second", "Third", "Fourth")
CHANGES = {
    "gain": ("{n} finds {k} {t}.", "{n} buys {k} more {t}.", "{n} is given {k} {t}."),
    "lose": ("{n} loses {k} {t}.", "{n} gives away {k} {t}.", "{n} breaks {k} of the {t}."),
    "double": (
        "{n} doubles the {t}.",
        "{n} wins as many {t} again.",
        "the number of {t} of {n} doubles.",
    ),
    "halve": (
        "{n} sells half of the {t}.",
        "half of the {t} of {n} are lost.",
        "{n} keeps only half of the {t}.",
    ),
}
STARTS = ("{n} has {k} {t}.", "{n} starts with {k} {t}.", "There are {k} {t} in the bag of {n}.")
COMPARISONS = {
    "gain": ("{m} gets {k} more {t} than {n}.", "{m} gets {k} {t} more than {n} has."),
    "lose": ("{m} gets {k} fewer {t} than {n}.", "{m} gets {k} {t} fewer than {n} has."),
    "double": ("{m} gets twice as many {t} as {n}.", "{m} gets double the {t} of {n}."),
    "halve": ("{m} gets half as many {t} as {n}.", "{m} gets half the {t} of {n}."),
}
QUESTIONS = {
    "one": ("How many {t} does {n} have now?", "How many {t} are left with {n}?"),
    "sum": ("How many {t} do {n} and {m} have together?", "How many {t} is that in all?"),
    "difference": (
        "How many more {t} does {n} have than {m}?",
        "By how many {t} does {n} beat {m}?",
    ),
}
OPERATORS = {"gain": "+", "lose": "-", "double": "*", "halve": "/"}


@dataclass(frozen=True)
class Step:
    """One equation: `left operator right`, which gives the new amount of `owner`.

    `left` and `right` are numbers or the indices of earlier steps, as `("step", i)`. `ordinal` is
    the word that the story puts before the event; "" for the final sum or difference.
    """

    ordinal: str
    owner: str
    left: int | tuple[str, int]
    operator: str
    right: int | tuple[str, int]

    def needs(self) -> tuple[int, ...]:
        return tuple(x[1] for x in (self.left, self.right) if isinstance(x, tuple))


@dataclass(frozen=True)
class Story:
    """A question, the equations that solve it (the last one gives the answer) and the answer."""

    question: str
    thing: str
    steps: tuple[Step, ...]
    answer: int
    template: str


def apply(operator: str, left: int, right: int) -> int | None:
    """The result of one equation, or None where the world has no such amount."""
    result = {"+": left + right, "-": left - right, "*": left * right}.get(operator)
    if operator == "/" and left % right == 0:
        result = left // right
    return result if result is not None and 0 < result <= LARGEST else None


def split_of(template: str) -> str:
    """Assigns every template to one split: 80% train, 5% validation, 15% test."""
    bucket = hashlib.sha256(template.encode()).digest()[0] % 20
    return "train" if bucket < 16 else "validation" if bucket < 17 else "test"


def make_stories(count: int, *, split: str, seed: int = 0, steps: tuple[int, ...] = (1, 2, 3, 4)):
    """Returns `count` distinct stories of a split, the numbers of steps in equal shares."""
    rng = random.Random(f"stories {split} {seed}")
    stories, seen = [], set()
    while len(stories) < count:
        story = _Teller(rng).tell(steps[len(stories) % len(steps)])
        if story is None or story.question in seen or split_of(story.template) != split:
            continue
        seen.add(story.question)
        stories.append(story)
    return stories


class _Teller:
    """Makes one story up, sentence by sentence."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.n, self.m = rng.sample(NAMES, 2)
        self.thing = rng.choice(THINGS)
        self.steps: list[Step] = []
        self.results: list[int] = []
        self.shape: list[str] = []
        self.amounts: dict[str, tuple[int, int | tuple[str, int]]] = {}

    def tell(self, count: int) -> Story | None:
        """Returns a story of `count` steps, or None where the numbers left the world."""
        plots = ["alone"] + ["compared"] * 2 + ["sum", "difference"] * (count >= 2)
        plot = self.rng.choice(plots)
        try:
            sentences = getattr(self, f"_{plot}")(count)
        except ArithmeticError:
            return None
        final = self.steps[-1]
        owner = self.n if plot == "alone" else self.m
        kind = plot if final.owner == "both" else "one"
        if kind == "difference" and self._amount(self.n) <= self._amount(self.m):
            return None
        question = self._say(QUESTIONS[kind], n=owner if kind == "one" else self.n, m=self.m)
        return Story(
            question=" ".join([*sentences, question]),
            thing=self.thing,
            steps=tuple(self.steps),
            answer=self.amounts[final.owner][0],
            template="|".join(self.shape),
        )

    def _alone(self, count):
        return [self._start(self.n)] + [self._change(self.n) for _ in range(count)]

    def _compared(self, count):
        before = self.rng.randrange(count)
        sentences = [self._start(self.n)] + [self._change(self.n) for _ in range(before)]
        sentences.append(self._compare())
        return sentences + [self._change(self.m) for _ in range(count - before - 1)]

    def _sum(self, count):
        return self._both(count, "+")

    def _difference(self, count):
        return self._both(count, "-")

    def _both(self, count, operator):
        """One character's story, then the other's, put together in the last step."""
        related = count >= 3 and self.rng.random() < 0.4
        changes = count - 1 - related
        before = self.rng.randint(0, changes)
        sentences = [self._start(self.n)] + [self._change(self.n) for _ in range(before)]
        sentences.append(self._compare() if related else self._start(self.m))
        sentences += [self._change(self.m) for _ in range(changes - before)]
        left, right = (self.amounts[who][1] for who in (self.n, self.m))
        self._add_step("", "both", left, operator, right)
        return sentences

    def _start(self, who):
        amount = self.rng.randint(2, LARGEST)
        self.amounts[who] = (amount, amount)
        return self._say(STARTS, n=who, k=amount)

    def _change(self, who):
        kind = self._kind(who)
        operand = 2 if kind in ("double", "halve") else self.rng.randint(2, 6)
        said = self._say(CHANGES[kind], n=who, k=operand, tag=f"{kind}-{self._role(who)}")
        return self._event(said, who, self.amounts[who][1], OPERATORS[kind], operand)

    def _compare(self):
        kind = self._kind(self.n)
        operand = 2 if kind in ("double", "halve") else self.rng.randint(2, 6)
        said = self._say(COMPARISONS[kind], n=self.n, m=self.m, k=operand, tag=f"than-{kind}")
        return self._event(said, self.m, self.amounts[self.n][1], OPERATORS[kind], operand)

    def _kind(self, who):
        """Draws a change that the amount allows."""
        amount = self._amount(who)
        kinds = ["gain", "lose"] + ["double"] * (2 * amount <= LARGEST)
        return self.rng.choice(kinds + ["halve"] * (amount % 2 == 0))

    def _event(self, said, *step):
        ordinal = ORDINALS[len(self.steps)]
        self._add_step(ordinal, *step)
        return f"{ordinal}, {said}"

    def _add_step(self, ordinal, owner, left, operator, right):
        values = [x if isinstance(x, int) else self.results[x[1]] for x in (left, right)]
        result = apply(operator, *values)
        if result is None:
            raise ArithmeticError
        self.steps.append(Step(ordinal, owner, left, operator, right))
        self.results.append(result)
        self.amounts[owner] = (result, ("step", len(self.steps) - 1))

    def _amount(self, who):
        return self.amounts[who][0]

    def _role(self, who):
        return "n" if who == self.n else "m"

    def _say(self, wordings, tag=None, **blanks):
        wording = self.rng.randrange(len(wordings))
        self.shape.append(f"{tag or wordings[0][:8]}{wording}")
        return wordings[wording].format(t=self.thing, **blanks)
