"""Which worked questions a teacher is shown before the one that it is asked."""

from collections.abc import Iterable, Mapping, Sequence

from cot_flax.errors import UserError
from cot_flax.teacher.questions import Question
from cot_flax.text.equations import find_equations
from cot_flax.text.prompts import normalize_question


def worked(questions: Iterable[Question]) -> list[Question]:
    """The questions that have rationale and answer, the first of each wording, in their order."""
    first: dict[str, Question] = {}
    for question in questions:
        if question.rationale and question.answer:
            first.setdefault(normalize_question(question.question), question)
    return list(first.values())


def complex_exemplars(questions: Iterable[Question]) -> list[Question]:
    """The worked questions, those of the most steps first.

    A step is a line of the rationale; in a rationale of one line, an equation. Among as many steps
    the normalized question decides, so that the order of the file does not.

    Source: Fu et al. 2022, "Complexity-Based Prompting for Multi-Step Reasoning" (arXiv
    2210.00720); the order among equals is ours.
    """
    return sorted(worked(questions), key=lambda q: (-_steps(q), normalize_question(q.question)))


def by_category(questions: Iterable[Question]) -> Mapping[str, list[Question]]:
    """The worked questions of each category, in their order."""
    groups: dict[str, list[Question]] = {}
    for question in worked(questions):
        groups.setdefault(question.category, []).append(question)
    return groups


def others(
    ranked: Sequence[Question], question: Question, *, least: int, most: int
) -> list[Question]:
    """The first `most` of `ranked` that do not ask what `question` asks.

    Raises:
        UserError: fewer than `least` there are.
    """
    own = normalize_question(question.question)
    near = ranked[: most + 1]  # worked() left no wording twice, so one of these at most is it
    found = [item for item in near if normalize_question(item.question) != own][:most]
    if len(found) < least:
        category = f" of its category {question.category!r}" if question.category else ""
        raise UserError(
            f"{len(found)} worked questions{category} to show before {question.id}",
            f"{least} with rationale and answer, and none of them that question",
            "give an exemplars file with more of them, or show fewer (shots)",
        )
    return found


def _steps(question: Question) -> int:
    lines = len([line for line in question.rationale.splitlines() if line.strip()])
    return lines if lines > 1 else max(1, len(find_equations(question.rationale)))
