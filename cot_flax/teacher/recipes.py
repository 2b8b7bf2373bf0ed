"""How four papers ask their teacher: what is sent, and what of the reply is kept.

A preset is the numbers and the template of one paper; `make_recipe` turns it into a `Recipe`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cot_flax.errors import UserError
from cot_flax.teacher import templates
from cot_flax.teacher.clipping import end_at, trim
from cot_flax.teacher.demonstrations import by_category, complex_exemplars, others, worked
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipe import Numbers, Recipe, messages
from cot_flax.teacher.requests import Completion, Messages

_BEHIND_ANSWER_LINE = re.compile(r"answer is[^\n]*(\n)")
# Of Kim et al.'s some 45 marks of a completion that went astray, those that are no mere variants
# of white space and quotes; and their stop strings, for a teacher that knows none.
_ASTRAY = re.compile(
    r"\n\n\n|\[[Ee]xamp|\[Instruction and|\[Options\]|\[Answer\]|\[Rationale\]"
    r"|\n`|\n#|\"\"\"\n|'''\n|print\(|[ \t]{9}"
)


@dataclass(frozen=True)
class Preset:
    """A paper's recipe before it knows its exemplars.

    Attributes:
        format: as in `Recipe`.
        numbers: the paper's.
        template: (question, worked questions) -> prompt.
        clean: as in `Recipe`.
        needs_answer: the right answer is part of the prompt.
        by_category: the worked questions are those of the question's category, in their order;
            else those of the most steps.
        least_shots: fewer worked questions than this are an error; None is all of `shots`.
        two_steps: as in `Recipe`.
    """

    format: str
    numbers: Numbers
    template: Callable[[Question, Sequence[Question]], str]
    clean: Callable[[Completion], Completion]
    needs_answer: bool = False
    by_category: bool = False
    least_shots: int | None = None
    two_steps: bool = False


def to_answer_line(completion: Completion) -> Completion:
    """Keeps what stands up to the end of the first line with `answer is` (Fu et al. 2023)."""
    return end_at(completion, _BEHIND_ANSWER_LINE)


def to_stray_mark(completion: Completion) -> Completion:
    """Keeps what stands before the first mark of code or of a next example (Kim et al. 2023)."""
    return end_at(completion, _ASTRAY)


# The stop strings of fu2023 and magister2022 are ours: they end what the cleaning would cut off.
# max_tokens and the temperature of magister2022 are ours too; the paper has one chain a question.
# In ho2022 8 is the paper's D; for MultiArith and SVAMP it is 64. kim2023 shows 4 to 12.
PRESETS = {
    "fu2023": Preset(
        "few_shot_cot",
        Numbers(40, 0.5, 256, shots=8, top_logprobs=5, stop=("\nQuestion:",)),
        templates.fu2023,
        to_answer_line,
    ),
    "magister2022": Preset(
        "few_shot_cot",
        Numbers(1, 0.0, 256, shots=8, stop=("\nQ:",)),
        templates.magister2022,
        to_answer_line,
        needs_answer=True,
    ),
    "ho2022": Preset("zero_shot_cot", Numbers(8, 0.7, 128), templates.ho2022, trim, two_steps=True),
    "kim2023": Preset(
        "few_shot_cot",
        Numbers(
            5,
            0.7,
            1024,
            shots=8,
            top_p=0.95,
            presence_penalty=1.0,
            frequency_penalty=1.0,
            stop=("\n\n\n\n", "\n\n\n"),
            top_logprobs=1,
        ),
        templates.kim2023,
        to_stray_mark,
        needs_answer=True,
        by_category=True,
        least_shots=4,
    ),
}


def make_recipe(
    name: str,
    *,
    exemplars: Iterable[Question] = (),
    pool: Iterable[Question] = (),
    chat: bool = False,
    **numbers: Any,
) -> Recipe:
    """Returns the recipe of a paper.

    A question is never shown as its own exemplar.

    Args:
        name: one of `PRESETS`.
        exemplars: worked questions to show, in this order.
        pool: worked questions from which the recipe takes its own choice, where no `exemplars`
            are given: training items, or the questions themselves if they have rationales.
        chat: sends the same text as one message of a user.
        **numbers: fields of `Numbers`, in place of the paper's.

    Raises:
        UserError: an unknown name, or a number that cannot be. From the recipe's `first`: too few
            worked questions, or no answer where the prompt needs it.
    """
    if name not in PRESETS:
        raise UserError(f"recipe {name!r}", f"one of {', '.join(PRESETS)}", "correct the name")
    preset = PRESETS[name]
    asked, exemplars = replace(preset.numbers, **numbers), list(exemplars)
    if bool(preset.numbers.shots) != bool(asked.shots) or (exemplars and not asked.shots):
        raise UserError(
            f"{asked.shots} shots and {len(exemplars)} exemplars for {name}",
            "at least one shot in a few-shot recipe, and nothing shown in ho2022",
            "change shots, leave out the exemplars, or take another recipe",
        )
    choose = _chooser(preset, asked.shots, exemplars, pool)

    def prompt(question: Question) -> str | Messages:
        if preset.needs_answer and not question.answer:
            raise UserError(
                f"question {question.id} without an answer",
                f"a labelled question: {name} shows the teacher the right answer",
                "label it, leave it out, or take fu2023 or ho2022",
            )
        text = preset.template(question, choose(question))
        return messages([("user", text)]) if chat else text

    return Recipe(name, preset.format, asked, prompt, preset.clean, preset.two_steps)


def _chooser(
    preset: Preset, shots: int, exemplars: list[Question], pool: Iterable[Question]
) -> Callable[[Question], list[Question]]:
    least = shots if preset.least_shots is None else min(shots, preset.least_shots)
    if not shots:
        return lambda question: []
    if preset.by_category:
        groups = by_category(exemplars or pool)
        return lambda q: others(groups.get(q.category, []), q, least=least, most=shots)
    ranked = worked(exemplars) if exemplars else complex_exemplars(pool)
    return lambda q: others(ranked, q, least=least, most=shots)
