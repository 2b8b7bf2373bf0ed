"""Task cards: what is known of a task beside its examples, so that nobody has to guess it."""

import dataclasses
from dataclasses import dataclass

from cot_flax.errors import UserError
from cot_flax.text.templates import Template
from cot_flax.text.wording import ENGLISH

ROLES = ("train", "transfer", "general")


@dataclass(frozen=True)
class TaskCard:
    """What `add_cot_task` was told of a task, and how its prompts are bound at this moment.

    Predictions and results carry it as JSON.

    Attributes:
        name: of the task, `<dataset>_<format>`.
        dataset: the name that was registered.
        format: one of `prompts.FORMATS`.
        answer_kind: see `answers.extract_answer`.
        role: "train": students are specialised on this skill, and should gain; "transfer": the same
            skill on other data; "general": other abilities, on which is seen what that cost.
        exemplars: "drawn" for every question anew, "fixed", or None where a prompt shows none.
        shots: exemplars a prompt; a fixed one that is the question itself is not shown.
        seed: of the draw; None where nothing is drawn.
        template: of inputs and targets: a name of `TEMPLATES`, or one of the user's own.
        max_tokens: no output should need more, in the student's tokens; None leaves it to the run.
        seen_by_flan: whether Flan-T5 was trained on this data set, so that its own figures are not
            those of an unseen task.
        cue: see `wording.Wording`.
        closing: likewise; both are of a template that has no such words of its own.
        instructed: whether a prompt begins with an instruction.
        may_leak: why the data set may be used although training questions stand in its held-out
            splits, as a paper's own splits do; "" where they may not.

    Raises:
        UserError: an unknown role, or a limit below 1.
    """

    name: str
    dataset: str
    format: str
    answer_kind: str
    role: str
    exemplars: str | None
    shots: int
    seed: int | None
    template: str | Template
    max_tokens: int | None
    seen_by_flan: bool
    cue: str = ENGLISH.cue
    closing: str = ENGLISH.closing
    instructed: bool = False
    may_leak: str = ""

    def __post_init__(self):
        if self.role not in ROLES:
            raise UserError(
                f"role {self.role!r} of {self.dataset}", f"one of {ROLES}", "correct the name"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(
                f"max_tokens {self.max_tokens} of {self.dataset}",
                "1 or more, or None for no limit of its own",
                "correct it",
            )

    def to_json(self) -> dict[str, str | int | bool | dict | None]:
        """The attributes by name."""
        return dataclasses.asdict(self)
