"""How a student is trained by default, by how much there is to learn from and how large it is.

One table, each row with its reason and where that comes from; docs/glossary.md names the papers.
What is not from a paper is marked as ours, and so is what was measured here.
"""

import math
from dataclasses import dataclass

GIGA = 10**9


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
        lora: adapters of q and v are trained alone.
        reasons: lines for the user, one a choice.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    steps: int
    lora: bool
    reasons: tuple[str, ...]


def training(examples: int, parameters: int, *, from_scratch: bool) -> Training:
    """The defaults.

    Args:
        examples: of training.
        parameters: of the student.
        from_scratch: it starts from random weights.
    """
    size = next(size for size in SIZES if examples <= size.examples)
    if from_scratch:
        size = FROM_SCRATCH
    batch_size = min(size.batch_size, examples)
    steps = max(1, size.epochs * examples // batch_size)
    lora = parameters >= GIGA and examples <= SIZES[0].examples and not from_scratch
    rate = 3e-3 if lora else size.learning_rate
    reasons = [
        f"{size.epochs} epochs of {examples:,} examples in batches of {batch_size} = {steps:,} "
        f"steps, learning rate {rate:g}: {size.reason}",
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
    ]
    return Training(size.epochs, batch_size, rate, steps, lora, tuple(reasons))
