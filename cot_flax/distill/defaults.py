"""How a student is trained by default, by how much there is to learn from and how large it is.

One table, each row with its reason and where that comes from; docs/glossary.md names the papers.
What is not from a paper is marked as ours, and so is what was measured here.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

GIGA = 10**9
LEAST_TO_SELECT = 20
"""Validation questions by which a checkpoint is chosen: fewer differ by luck alone."""
_EVALUATIONS = 10
_RATES = {
    "few_shot_cot": 0.4,
    "zero_shot_cot": 0.4,
    "few_shot_answer": 0.1,
    "zero_shot_answer": 0.1,
}


@dataclass(frozen=True)
class Size:
    """Training for up to so many examples.

    Attributes:
        examples: the most, chains in all.
        epochs: passes over them.
        batch_size: examples a step.
        learning_rate: of AdamW, constant.
        reason: why, with its source.
    """

    examples: float
    epochs: int
    batch_size: int
    learning_rate: float
    reason: str


# From the fewest examples on.
SIZES = (
    Size(
        10_000,
        20,
        8,
        3e-4,
        "paper [3] on its twelve tasks of 250 to 8,800 questions: 20 epochs, batch 8, AdamW at "
        "3e-4, constant",
    ),
    Size(
        500_000,
        10,
        120,
        5e-4,
        "paper [1] on 207,000 chains of GSM8K: 10 epochs, AdamW at 5e-4, of its 250M student 120 "
        "zero-shot chains a step",
    ),
    Size(
        math.inf,
        1,
        512,
        1e-4,
        "paper [4] on 1.84M rationales: one epoch, batch 512 and 1e-4 of the 11B student; the "
        "optimizer is AdamW here, Adafactor there",
    ),
)
FROM_SCRATCH = Size(
    math.inf,
    40,
    16,
    3e-3,
    "ours, for random weights, which papers do not start from: docs/distill.md has the measurement",
)


@dataclass(frozen=True)
class Training:
    """What a recipe says of training.

    Attributes:
        rates: of the formats that are trained.
        epochs: passes over all examples of these formats.
        examples: of an epoch, where every chain is kept.
        steps: what the epochs then come to.
        lora: adapters of q and v are trained alone.
        eval_period: steps between evaluations; 0 where no checkpoint is chosen by them.
        reasons: lines for the user, one a choice.
    """

    rates: dict[str, float]
    epochs: float
    batch_size: int
    learning_rate: float
    examples: int
    steps: int
    lora: bool
    eval_period: int
    reasons: tuple[str, ...]


def formats(*, few_shot: str, from_scratch: bool) -> tuple[dict[str, float], str]:
    """The rates of the formats that are trained, and why.

    Args:
        few_shot: why there is no few-shot format; "" where there is.
        from_scratch: the student starts from random weights.
    """
    if from_scratch and not few_shot:
        few_shot = "random weights have enough to learn without exemplars (ours)"
    kept = {name: rate for name, rate in _RATES.items() if not few_shot or "zero" in name}
    rates = {name: rate / sum(kept.values()) for name, rate in kept.items()}
    listed = ", ".join(f"{name} {rate:.0%}" for name, rate in rates.items())
    why = "chains and bare answers as paper [1] mixes them"
    if few_shot:
        return rates, f"formats: {listed}: {why}; none is few-shot, for {few_shot}"
    return rates, (
        f"formats: {listed}: {why}; zero-shot data alone cost its students the use of exemplars"
    )


def training(
    chains: int,
    questions: int,
    parameters: int,
    *,
    few_shot: str = "",
    from_scratch: bool,
    validation: int,
) -> Training:
    """The defaults.

    The table's epochs are passes over the chains, and a chain is in two formats where one is
    few-shot: each is seen so often in all of them together, whatever bare answers are beside it.

    Args:
        chains: of training.
        questions: that have them, each a bare answer.
        parameters: of the student.
        few_shot: why no format is few-shot; "" where some are.
        from_scratch: it starts from random weights.
        validation: questions to choose a checkpoint by.
    """
    size = next(size for size in SIZES if chains <= size.examples)
    if from_scratch:
        size = FROM_SCRATCH
    rates, why = formats(few_shot=few_shot, from_scratch=from_scratch)
    cot = [name for name in rates if name.endswith("cot")]
    examples = len(cot) * chains + (len(rates) - len(cot)) * questions
    seen = size.epochs * chains / sum(rates[name] for name in cot)
    epochs = max(0.1, round(seen / examples, 1))
    batch_size = min(size.batch_size, examples)
    steps = steps_of(epochs, examples, batch_size)
    lora = parameters >= GIGA and chains <= SIZES[0].examples and not from_scratch
    rate = 3e-3 if lora else size.learning_rate
    chosen = validation >= LEAST_TO_SELECT
    reasons = [
        why,
        f"{size.epochs} passes over {chains:,} chains, with the bare answers {epochs:g} epochs of "
        f"{examples:,} examples in batches of {batch_size} = {steps:,} steps where all chains are "
        f"kept, learning rate {rate:g}: {size.reason}",
        "LoRA of rank 4 at 3e-3: paper [4] adapts its 3B and 11B students so to 64 examples; all "
        "weights with AdamW take 16 bytes a parameter, adapters 4"
        if lora
        else "all weights, no LoRA: "
        + (
            "random weights have to change"
            if from_scratch
            else "paper [3] trains all of students up to 3B"
            if parameters < GIGA
            else "there is enough to learn from"
        ),
        f"checkpoint: the best of {_EVALUATIONS} by accuracy with a chain on validation, as "
        "paper [1] selects"
        if chosen
        else f"checkpoint: the last, for {validation} validation questions are fewer than "
        f"{LEAST_TO_SELECT}, which differ by luck",
    ]
    period = max(1, steps // _EVALUATIONS) if chosen else 0
    return Training(rates, epochs, batch_size, rate, examples, steps, lora, period, tuple(reasons))


def steps_of(epochs: float, examples: int, batch_size: int) -> int:
    """Steps of so many epochs, as training counts them (see `training.epochs`)."""
    return math.ceil(Fraction(str(epochs)) * examples / batch_size)
