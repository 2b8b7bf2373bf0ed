"""All that a question needs to become a prompt of a student, and its output an answer.

A run keeps it for each of its tasks (run.json), so that a student can be asked without the data,
SeqIO or the scenario that it was trained with.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cot_flax.errors import UserError
from cot_flax.text import answers
from cot_flax.text.prompts import (
    Exemplar,
    ExemplarPool,
    FixedExemplars,
    build_input,
    is_few_shot,
    show_turn,
)
from cot_flax.text.templates import DEFAULT_NAME, Template, find_template
from cot_flax.text.wording import ENGLISH, Wording


@dataclass(frozen=True)
class Prompting:
    """How questions of one task are put to a student, and how its answers are read.

    Attributes:
        template: with the words of a wording.
        instruction: before exemplars and question; "" is none.
        answer_kind: as in `answers.extract_answer`, without the markers of template and wording.
        labels: of a kind that is a closed list of labels.
        heads: words behind which answers stand, beside those of the template.
        exemplars: of few-shot prompts.
        shots: exemplars a prompt, drawn for each question anew; 0 shows all in their order.
    """

    template: Template
    instruction: str = ""
    answer_kind: str = "number"
    labels: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    shots: int = 0

    @classmethod
    def of_template(cls, name: str = DEFAULT_NAME, wording: Wording = ENGLISH) -> "Prompting":
        """Of a template by name, for students of which nothing more is known."""
        return cls(find_template(name).worded(wording), heads=wording.heads)

    @classmethod
    def from_json(cls, stored: Mapping, place: str) -> "Prompting":
        """From what `to_json` gave.

        Raises:
            UserError: it is of another shape.
        """
        try:
            values = {field.name: stored[field.name] for field in dataclasses.fields(cls)}
            return cls(
                **values
                | {name: tuple(values[name]) for name in ("labels", "heads")}
                | {"template": Template(**values["template"])}
                | {"exemplars": tuple(Exemplar(**item) for item in values["exemplars"])}
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{place} ({type(error).__name__}: {error})",
                "the prompts as training writes them",
                "restore the file, or name a template",
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON has them."""
        return dataclasses.asdict(self)

    @cached_property
    def kind(self) -> str:
        """The answer kind, with the markers of template and wording.

        Raises:
            UserError: a kind that is not added here.
        """
        kind = answers.label_kind(self.labels) if self.labels else self.answer_kind
        heads = (*self.template.heads, *self.heads)
        return answers.marked_kind(kind, heads, self.template.stop)

    def prompt(self, question: str, format: str) -> str:
        """The text that a student reads: no exemplar of it is the question itself.

        Raises:
            UserError: an unknown format, or a few-shot one without exemplars.
        """
        if not is_few_shot(format):
            shown: Sequence[Exemplar] = ()
        elif not self.exemplars:
            raise UserError(
                f"format {format} and no exemplars",
                "worked examples in a few-shot format",
                "give a scenario's folder with exemplars, or take a zero-shot format",
            )
        elif self.shots:
            pool = ExemplarPool(self.exemplars)
            shown = pool.draw(question, min(self.shots, len(pool) - (question in pool)), "0/")
        else:
            shown = FixedExemplars(self.exemplars).without(question)
        asked = format if shown else format.replace("few_shot", "zero_shot")
        return build_input(question, asked, shown, self.template, instruction=self.instruction)

    def chat(self, turns: Sequence[tuple[str, str]], format: str) -> str:
        """The text of a conversation: earlier turns stand as exemplars do.

        Args:
            turns: (role, text), of which the last is the user's question; what "system" says
                stands in place of the instruction.
            format: zero-shot, or few-shot to show the exemplars too.
        """
        *before, (_, question) = turns
        instructions = [text for role, text in before if role == "system"]
        own = dataclasses.replace(self, instruction="\n".join(instructions) or self.instruction)
        talk = [turn for turn in before if turn[0] != "system"]
        shown = [
            show_turn(asked, answered, format, self.template)
            for (_, asked), (_, answered) in zip(talk[::2], talk[1::2], strict=True)
        ]
        if not shown:
            return own.prompt(question, format)
        head = [own.instruction.strip()] if own.instruction.strip() else []
        last = dataclasses.replace(own, instruction="").prompt(question, format)
        return self.template.separator.join([*head, *shown, last])

    def read(self, text: str) -> str | None:
        """The answer in an output; None where there is none."""
        return answers.extract_answer(text, kind=self.kind, mode="flexible")
