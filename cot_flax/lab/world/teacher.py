"""A stochastic teacher of the stories whose next-token distribution is known exactly.

It writes one sentence an equation. At every sentence it chooses, independently of the text before,
the next equation among those that are ready (so a story has several valid reasoning orders), a
wording, sometimes a wrong operation and sometimes a slip in the result, and goes on believing what
it wrote. The probability of a token is the summed probability of the sentences that continue the
text with it, divided by that of all sentences that agree with the text so far.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cot_flax.chains.samples import Logprobs, Sample
from cot_flax.lab.world.stories import LARGEST, Step, Story

WORDINGS = {
    "one": (
        "{i}, {o} has {a} {op} {b} = {c} {t}.",
        "{i}, {o} now has {a} {op} {b} = {c}.",
        "{i}, {o} comes to {a} {op} {b} = {c} {t}.",
    ),
    "+": ("Together they have {a} {op} {b} = {c} {t}.", "In all that is {a} {op} {b} = {c} {t}."),
    "-": ("The difference is {a} {op} {b} = {c} {t}.", "That is {a} {op} {b} = {c} {t} more."),
}
WORDING_WEIGHTS = {3: (0.5, 0.3, 0.2), 2: (0.6, 0.4)}
MISTAKEN_OPERATION = {"+": "-", "-": "+", "*": "+", "/": "-"}
SLIPS = {-2: 0.15, -1: 0.35, 1: 0.35, 2: 0.15}

State = tuple[int | None, ...]
"""The result that the teacher believes of every step; None: not written yet."""


@dataclass(frozen=True)
class Sentence:
    """One thing that the teacher may write next."""

    tokens: tuple[str, ...]
    probability: float
    state: State


@dataclass(frozen=True)
class StoryTeacher:
    """The teacher; its numbers are probabilities.

    Attributes:
        in_order: of taking the first ready equation rather than another one.
        slip: of a result that is off by one or two.
        mistake: of a wrong operation.
    """

    in_order: float = 0.7
    slip: float = 0.06
    mistake: float = 0.02

    @property
    def params(self) -> dict:
        return {"in_order": self.in_order, "slip": self.slip, "mistake": self.mistake}

    def sentences(self, story: Story, state: State) -> list[Sentence]:
        """All sentences that may come next with their probabilities, which sum to 1."""
        if state[-1] is not None:
            tokens = tuple(tokenize(f"\nThe answer is {state[-1]}"))
            return [Sentence(tokens, 1.0, ())]
        ready = [i for i, step in enumerate(story.steps) if _ready(step, i, state)]
        return [
            Sentence(tokens, order * weight, (*state[:i], result, *state[i + 1 :]))
            for i, order in zip(ready, self._orders(len(ready)), strict=True)
            for tokens, weight, result in self._equation(story, story.steps[i], state)
            if order * weight > 0
        ]

    def next_token(self, story: Story, prefix: tuple[str, ...]) -> dict[str, float]:
        """The exact distribution of the token after `prefix`; empty at the end of the text."""
        state, done = (None,) * len(story.steps), 0
        while state:
            candidates = self.sentences(story, state)
            rest = prefix[done:]
            whole = [c for c in candidates if c.tokens == rest[: len(c.tokens)]]
            if not whole:
                return _next_token(candidates, rest)
            state, done = whole[0].state, done + len(whole[0].tokens)
        return {}

    def write(self, story: Story, rng: random.Random, k: int = 5) -> Logprobs:
        """Draws one chain with the log-probabilities (nats) of its tokens and of the k best."""
        tokens, chosen, best = [], [], []
        state: State = (None,) * len(story.steps)
        while state:
            candidates = self.sentences(story, state)
            sentence = rng.choices(candidates, [c.probability for c in candidates])[0]
            for i, token in enumerate(sentence.tokens):
                distribution = _next_token(candidates, sentence.tokens[:i])
                candidates = [c for c in candidates if c.tokens[i : i + 1] == (token,)]
                tokens.append(token)
                chosen.append(math.log(distribution[token]))
                top = sorted(distribution.items(), key=lambda item: (-item[1], item[0]))[:k]
                best.append({token: math.log(p) for token, p in top})
            state = sentence.state
        return Logprobs(tuple(tokens), tuple(chosen), tuple(best))

    def _orders(self, ready: int) -> list[float]:
        if ready == 1:
            return [1.0]
        return [self.in_order] + [(1 - self.in_order) / (ready - 1)] * (ready - 1)

    def _equation(self, story, step: Step, state) -> Iterator[tuple[tuple[str, ...], float, int]]:
        left, right = (x if isinstance(x, int) else state[x[1]] for x in (step.left, step.right))
        kind = step.operator if step.owner == "both" else "one"
        wordings = WORDINGS[kind]
        for operator, p_operator in self._operations(step.operator):
            for result, p_result in self._results(operator, left, right):
                for wording, p_wording in zip(
                    wordings, WORDING_WEIGHTS[len(wordings)], strict=True
                ):
                    text = wording.format(
                        i=step.ordinal,
                        o=step.owner,
                        t=story.thing,
                        a=left,
                        b=right,
                        op=operator,
                        c=result,
                    )
                    first = all(result is None for result in state)
                    yield (
                        tuple(tokenize(text if first else f" {text}")),
                        p_operator * p_result * p_wording,
                        result,
                    )

    def _operations(self, operator):
        return ((operator, 1 - self.mistake), (MISTAKEN_OPERATION[operator], self.mistake))

    def _results(self, operator, left, right):
        right_result = _calculate(operator, left, right)
        slips = {right_result + d: w for d, w in SLIPS.items() if 0 <= right_result + d <= LARGEST}
        total = sum(slips.values())
        yield right_result, 1 - self.slip
        for result, weight in slips.items():
            yield result, self.slip * weight / total


def make_samples(
    stories: list[Story], *, samples: int = 1, seed: int = 0, teacher: StoryTeacher | None = None
) -> Iterator[Sample]:
    """Yields `samples` teacher chains a story, in the contract's form of a samples file."""
    teacher = teacher or StoryTeacher()
    rng = random.Random(f"teacher {seed}")
    for index, story in enumerate(stories):
        for sample in range(samples):
            logprobs = teacher.write(story, rng)
            yield Sample(
                id=f"stories-train-{index}",
                dataset="stories",
                split="train",
                question=story.question,
                gold_answer=str(story.answer),
                format="zero_shot_cot",
                prompt_hash="",
                teacher={"model": "story-teacher", "params": teacher.params},
                sample=sample,
                text="".join(logprobs.tokens),
                logprobs=logprobs,
                finish_reason="stop",
            )


def reference_rationale(story: Story) -> str:
    """The story's solution in story order and the first wording, without the answer sentence."""
    state: State = (None,) * len(story.steps)
    teacher = StoryTeacher(slip=0.0, mistake=0.0)
    text = ""
    while state[-1] is None:
        sentence = max(teacher.sentences(story, state), key=lambda s: s.probability)
        text, state = text + "".join(sentence.tokens), sentence.state
    return text


def tokenize(text: str) -> list[str]:
    """The teacher's own tokens: words and numbers with the space before them, other marks alone."""
    return re.findall(r" ?\w+| ?[^\w\s]|\s", text)


def _ready(step: Step, index: int, state: State) -> bool:
    return state[index] is None and all(state[i] is not None for i in step.needs())


def _calculate(operator, left, right) -> int:
    """The teacher's arithmetic on what it believes, which may have left the world."""
    result = {"+": left + right, "-": left - right, "*": left * right, "/": left // 2}[operator]
    return min(max(result, 0), LARGEST)


def _next_token(candidates: list[Sentence], prefix: tuple[str, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for c in candidates:
        if c.tokens[: len(prefix)] == prefix and len(c.tokens) > len(prefix):
            token = c.tokens[len(prefix)]
            weights[token] = weights.get(token, 0.0) + c.probability
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}
