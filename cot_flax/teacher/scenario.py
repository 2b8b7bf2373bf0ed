"""A user's own reasoning to distil: a folder with an instruction, worked exemplars and inputs."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from cot_flax.chains.records import reject, require
from cot_flax.errors import UserError
from cot_flax.teacher.clipping import end_at
from cot_flax.teacher.questions import Question, placed_questions
from cot_flax.teacher.recipes import Numbers, Recipe, messages, others, worked
from cot_flax.teacher.requests import Completion, Messages
from cot_flax.text.answers import KINDS, answers_match, extract_answer
from cot_flax.text.prompts import Exemplar, build_input, build_target

_FORMAT = "few_shot_cot"
_BEHIND_ANSWER_LINE = re.compile(r"^The answer is[^\n]*(\n)", re.MULTILINE)


@dataclass(frozen=True)
class Settings:
    """What `settings.json` may say.

    Attributes:
        dataset: the name of the data set; by default the folder's.
        answer_kind: "number", "choice", "yes_no" or "text", see text/answers.py.
        samples: chains an input.
        temperature: of the teacher.
        max_tokens: the most tokens of a chain.
    """

    dataset: str
    answer_kind: str = "text"
    # Several different chains for an input teach a student more than one (Ho et al. 2022, diverse
    # reasoning: 8 at this temperature).
    samples: int = 8
    temperature: float = 0.7
    max_tokens: int = 512


class Scenario(NamedTuple):
    """A scenario's folder, read: the instruction, worked exemplars, inputs, settings."""

    instruction: str
    exemplars: list[Question]
    inputs: list[Question]
    settings: Settings


def read_scenario(folder: str | os.PathLike) -> Scenario:
    """Reads the folder of a scenario.

    `instruction.md` says what to do. `exemplars.jsonl` has {"input", "reasoning", "answer"} a
    line, `inputs.jsonl` {"input"} with "answer" where it is known; both may have "id" and
    "category". `settings.json`, which may be absent, is one object with fields of `Settings`.

    Raises:
        UserError: a file is missing or of another shape, an exemplar is incomplete, or an answer
            is none of the answer kind; the message names file and line.
    """
    folder = Path(folder)
    settings = _settings(folder)
    instruction = _instruction(folder / "instruction.md")
    exemplars = list(_items(folder / "exemplars.jsonl", "exemplars", settings))
    inputs = list(_items(folder / "inputs.jsonl", "train", settings))
    return Scenario(instruction, exemplars, inputs, settings)


def read_test(folder: str | os.PathLike) -> list[Question]:
    """Reads the scenario's `test.jsonl`: inputs with answers that no teacher is asked about.

    Raises:
        UserError: the file is missing or of another shape, or an input has no answer.
    """
    folder = Path(folder)
    items = list(_items(folder / "test.jsonl", "test", _settings(folder)))
    for item in items:
        if not item.answer:
            got, wanted = f"input {item.id} without an answer", "a label to compare with"
            raise _unusable(folder / "test.jsonl", got, wanted)
    return items


def scenario_recipe(scenario: Scenario, *, chat: bool = False, **numbers: Any) -> Recipe:
    """Returns the recipe that shows the instruction, all exemplars worked out, and then an input.

    Exemplars and input look as in the student's few-shot format (`text.prompts`, style fu2023). A
    chat gets the instruction as its system message and the exemplars as turns. What the teacher
    writes behind its line "The answer is ..." is cut off.

    Args:
        scenario: what `read_scenario` read.
        chat: sends messages.
        **numbers: fields of `Numbers`, in place of the settings; all exemplars are always shown.

    Raises:
        UserError: a number that cannot be. From the recipe's `first`: no exemplar is left, because
            the only one is the input itself.
    """
    if "shots" in numbers:
        raise UserError(
            f"{numbers['shots']} shots of a scenario",
            "none given: all its exemplars are shown",
            "leave shots out, or take exemplars out of exemplars.jsonl",
        )
    settings, exemplars = scenario.settings, worked(scenario.exemplars)
    given = {name: getattr(settings, name) for name in ("samples", "temperature", "max_tokens")}
    given |= {"stop": () if chat else ("\nQ:",), "shots": len(exemplars)}
    layout = _chat if chat else _text

    def prompt(question: Question) -> str | Messages:
        shown = others(exemplars, question, least=1, most=len(exemplars))
        worked_out = [Exemplar(item.question, item.rationale, item.answer) for item in shown]
        return layout(scenario.instruction, worked_out, question.question)

    return Recipe("scenario", _FORMAT, Numbers(**given | numbers), prompt, _clean)


def _clean(completion: Completion) -> Completion:
    return end_at(completion, _BEHIND_ANSWER_LINE)


def _text(instruction: str, exemplars: list[Exemplar], asked: str) -> str:
    return f"{instruction}\n\n{build_input(asked, _FORMAT, exemplars, style='fu2023')}"


def _chat(instruction: str, exemplars: list[Exemplar], asked: str) -> Messages:
    turns = [("system", instruction)]
    for item in exemplars:
        answered = build_target(item.rationale, item.answer, _FORMAT)
        turns += [("user", item.question), ("assistant", answered)]
    return messages([*turns, ("user", asked)])


def _instruction(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error), "a text that says what to do") from error
    if not text:
        raise _unusable(path, "an empty file", "a text that says what to do")
    return text


def _settings(folder: Path) -> Settings:
    path, record = folder / "settings.json", {}
    if path.exists():
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise _unusable(path, str(error), "one JSON object") from error
    kinds = {field.name: field.type for field in fields(Settings)} | {"temperature": int | float}
    if not isinstance(record, dict) or record.keys() - kinds.keys():
        raise _unusable(path, f"{record}", f"an object with only {', '.join(kinds)}")
    values = {name: require(record, name, kinds[name], str(path)) for name in record}
    settings = Settings(**{"dataset": folder.resolve().name} | values)
    if settings.answer_kind not in KINDS:
        raise _unusable(path, f"answer_kind {settings.answer_kind!r}", f"one of {KINDS}")
    return settings


def _items(path: Path, split: str, settings: Settings) -> Iterator[Question]:
    for place, item in placed_questions(path, dataset=settings.dataset, split=split):
        if split == "exemplars" and not (item.rationale and item.answer):
            got = "an exemplar without reasoning or answer"
            reject("incomplete_exemplar", place, got, "both: it shows how to reason")
        if item.answer and not _readable(item.answer, settings.answer_kind):
            wanted = f"one of kind {settings.answer_kind!r}"
            reject("unreadable_answer", place, f"the answer {item.answer!r}", wanted)
        yield item


def _readable(answer: str, kind: str) -> bool:
    """Says whether the closing line with this answer gives this answer."""
    line = build_target("", answer, _FORMAT)
    found = extract_answer(line, kind=kind, mode="strict")
    return found is not None and answers_match(found, answer, kind=kind)


def _unusable(path: Path, got: str, expected: str) -> UserError:
    return UserError(f"{path}: {got}", expected, "write or repair this file")
