"""A user's own reasoning to distil: a folder with an instruction, worked exemplars and inputs."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from cot_flax.chains.file_names import record_files
from cot_flax.chains.records import reject, require
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.teacher.clipping import end_at
from cot_flax.teacher.questions import Question, placed_questions
from cot_flax.teacher.recipes import Numbers, Recipe, messages, others, worked
from cot_flax.teacher.requests import Completion, Messages
from cot_flax.text.answers import (
    answers_match,
    extract_answer,
    gold_answer,
    is_kind,
    kind_of_golds,
    kinds_said,
    label_kind,
    marked_kind,
    normal_text,
)
from cot_flax.text.prompts import (
    Exemplar,
    ExemplarPool,
    build_input,
    build_target,
    normalize_question,
)
from cot_flax.text.templates import Template, find_template, named
from cot_flax.text.wording import LANGUAGES, PLACE, Wording, has_words, written_in

_FORMAT = "few_shot_cot"
_LISTED = 5  # ids in a note
VALIDATION, LEAST_LABELLED = 0.1, 20
_LEAST = 3  # answers that show their kind


@dataclass(frozen=True)
class Settings:
    """What `settings.json` may say.

    Attributes:
        dataset: the name of the data set; by default the folder's.
        answer_kind: "number", "choice", "yes_no" or "text", see text/answers.py; of labels, the
            kind that knows no other answers.
        labels: all answers that there are, where they are a closed list.
        samples: chains an input.
        temperature: of the teacher.
        max_tokens: the most tokens of a chain.
        language: of prompts and targets, a code of `wording.LANGUAGES`.
        cue: in place of that language's; as in `wording.Wording`.
        closing: likewise.
        markers: words behind which answers are found, beside all others.
        template: of prompts and targets: a name of `TEMPLATES`, or an object with a `Template`'s
            fields. The teacher sees it with a blank line between exemplars.
        shots: exemplars a prompt, drawn for each question anew; 0 shows all, in file order.
        instruct: whether the student's prompts begin with the instruction, as the teacher's do.
        validation: the share of inputs with answers that is held out from teacher and training,
            where no file `validation` says which. By default `VALIDATION`, of `LEAST_LABELLED` or
            more of them, else 0.
    """

    dataset: str
    answer_kind: str = "text"
    labels: tuple[str, ...] = ()
    # Several different chains for an input teach a student more than one (Ho et al. 2022, diverse
    # reasoning: 8 at this temperature).
    samples: int = 8
    temperature: float = 0.7
    max_tokens: int = 512
    language: str = "en"
    cue: str = ""
    closing: str = ""
    markers: tuple[str, ...] = ()
    template: str | Template = "t5"
    shots: int = 0
    instruct: bool = True
    validation: float | None = None

    @property
    def layout(self) -> Template:
        """The template with the scenario's words."""
        return find_template(self.template).worded(self.wording)

    @property
    def wording(self) -> Wording:
        """The words of the scenario's prompts and targets."""
        own = LANGUAGES[self.language].wording
        return Wording(self.cue or own.cue, self.closing or own.closing, self.markers)


class Scenario(NamedTuple):
    """A scenario's folder, read.

    Attributes:
        instruction: what to do.
        exemplars: inputs that are worked out.
        inputs: what the teacher is asked about, without those of validation and test.
        settings: see `Settings`.
        notes: lines that the user should read.
        validation: inputs with answers to select a student by.
    """

    instruction: str
    exemplars: list[Question]
    inputs: list[Question]
    settings: Settings
    notes: list[str]
    validation: list[Question]


def read_scenario(folder: str | os.PathLike) -> Scenario:
    """Reads the folder of a scenario.

    `instruction.md` says what to do. `exemplars.jsonl` has {"input", "reasoning", "answer"} a
    line, `inputs.jsonl` {"input"} with "answer" where it is known; both may have "id" and
    "category", and may be of another kind that is read (CSV, Parquet). `settings.json`, which may
    be absent, is one object with fields of `Settings`. What stands in the files `test` and
    `validation`, which may be absent, is held out: no teacher is asked about it.

    Raises:
        UserError: a file is missing or of another shape, an exemplar is incomplete or held out, or
            an answer is none of the answer kind; the message names file and line.
    """
    settings = read_settings(folder)
    instruction = read_instruction(folder)
    exemplars = read_exemplars(folder)
    inputs = list(_items(folder, "train", settings))
    files = {split: _labelled(folder, split, settings) for split in ("test", "validation")}
    if repeated := _questions(files["test"]) & _questions(files["validation"]):
        got = f"the input {min(repeated)!r} in the files validation and test"
        raise _unusable(folder, got, "no input in both")
    if settings.shots >= max(1, len(_questions(exemplars))):
        got = f"{settings.shots} shots of {len(exemplars)} exemplars"
        raise _unusable(folder, got, "fewer shots than exemplars; 0 shows all in file order")
    notes, new = [], inputs
    for split, items in files.items():
        held_out = _questions(items)
        for item in exemplars:
            if normalize_question(item.question) in held_out:
                got = f"the exemplar {item.id}, which stands in the {split} file"
                raise _unusable(folder, got, "exemplars that are not tested")
        before, new = new, _without(new, held_out)
        notes += _left_out(before, new, f"the {split} file")
    validation = files["validation"]
    if not validation and (validation := _share(new, exemplars, settings)):
        notes.append(
            f"held out {len(validation)} of {len(new)} inputs for validation: no teacher is asked "
            'about them; {"validation": 0} in settings.json has all asked'
        )
        new = _without(new, _questions(validation))
    notes += _closed(exemplars + inputs, settings)
    notes += _worded_otherwise([instruction, *(item.question for item in inputs)], settings)
    return Scenario(instruction, exemplars, new, settings, notes, validation)


def read_exemplars(folder: str | os.PathLike) -> list[Question]:
    """Reads the worked exemplars of a folder, in file order; errors as `read_scenario`."""
    return list(_items(folder, "exemplars", read_settings(folder)))


def _questions(items: Sequence[Question]) -> set[str]:
    return {normalize_question(item.question) for item in items}


def _without(items: Sequence[Question], questions: set[str]) -> list[Question]:
    return [item for item in items if normalize_question(item.question) not in questions]


def _share(
    inputs: Sequence[Question], exemplars: Sequence[Question], settings: Settings
) -> list[Question]:
    """Inputs with answers that are held out; whether one is depends on its question alone."""
    labelled = _without([item for item in inputs if item.answer], _questions(exemplars))
    share = settings.validation
    if share is None:
        share = VALIDATION * (len(labelled) >= LEAST_LABELLED)
    return [item for item in labelled if _place(item.question) < share]


def _place(question: str) -> float:
    """A number in [0, 1) that a question always has."""
    digest = hashlib.sha256(f"validation {normalize_question(question)}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def read_test(folder: str | os.PathLike) -> list[Question]:
    """Reads the scenario's `test.jsonl`: inputs with answers that no teacher is asked about.

    Raises:
        UserError: the file is of another shape, or an input has no answer.
    """
    return _labelled(folder, "test", read_settings(folder))


def read_validation(folder: str | os.PathLike) -> list[Question]:
    """Reads what is held out to select a student by: its file, or else its share of the inputs.

    Where there is the file no exemplars need be: a teacher can be asked without any.
    """
    given = _labelled(folder, "validation", read_settings(folder))
    return given or read_scenario(folder).validation


def _labelled(folder: str | os.PathLike, split: str, settings: Settings) -> list[Question]:
    """The items of a file whose inputs have answers; none where there is no such file."""
    if not _is_there(folder, split):
        return []
    items = list(_items(folder, split, settings))
    for item in items:
        if not item.answer:
            got, wanted = f"input {item.id} without an answer", "a label to compare with"
            raise _unusable(f"{folder}/{split}.jsonl", got, wanted)
    return items


def _is_there(folder: str | os.PathLike, name: str) -> bool:
    try:
        return bool(record_files(folder, name))
    except UserError:
        return False


def scenario_recipe(scenario: Scenario, *, chat: bool = False, **numbers: Any) -> Recipe:
    """Returns the recipe that shows the instruction, exemplars worked out, and then an input.

    Exemplars and input look as in the student's few-shot format, a blank line between them. A chat
    gets the instruction as its system message and the exemplars as turns. What the teacher
    writes behind its line "The answer is ...", in the settings' words, is cut off.

    Args:
        scenario: what `read_scenario` read.
        chat: sends messages.
        **numbers: fields of `Numbers` but `shots`, in place of the settings.

    Raises:
        UserError: a number that cannot be. From the recipe's `first`: no exemplar is left, because
            the only one is the input itself.
    """
    if "shots" in numbers:
        raise UserError(
            f"{numbers['shots']} shots of a scenario",
            "none given: its settings say so to student and teacher alike",
            "set shots in settings.json, where 0 shows all exemplars",
        )
    settings, exemplars = scenario.settings, worked(scenario.exemplars)
    given = {name: getattr(settings, name) for name in ("samples", "temperature", "max_tokens")}
    template = replace(settings.layout, separator="\n\n")
    begin = template.cot_input.partition("{question}")[0].strip()
    given |= {"stop": (f"\n{begin}",) if begin and not chat else ()}
    given |= {"shots": settings.shots or len(exemplars)}
    write = _chat if chat else _text
    heads = "|".join(map(re.escape, (*template.heads, *settings.wording.heads)))
    line = "^" * (template.join == "\n")
    behind_answer_line = re.compile(rf"{line}(?:{heads})[^\n]*(\n)", re.MULTILINE)
    pool = ExemplarPool(map(_exemplar, exemplars))

    def prompt(question: Question) -> str | Messages:
        if settings.shots:
            shown = pool.draw(question.question, settings.shots, f"0/{question.id}")
        else:
            shown = map(_exemplar, others(exemplars, question, least=1, most=len(exemplars)))
        return write(scenario.instruction, list(shown), question.question, template)

    def clean(completion: Completion) -> Completion:
        return end_at(completion, behind_answer_line)

    return Recipe(
        "scenario",
        _FORMAT,
        Numbers(**given | numbers),
        prompt,
        clean,
    )


def _exemplar(item: Question) -> Exemplar:
    return Exemplar(item.question, item.rationale, item.answer)


def _text(instruction: str, exemplars: list[Exemplar], asked: str, template: Template) -> str:
    return build_input(asked, _FORMAT, exemplars, template, instruction=instruction)


def _chat(instruction: str, exemplars: list[Exemplar], asked: str, template: Template) -> Messages:
    turns = [("system", instruction)]
    for item in exemplars:
        answered = build_target(item.rationale, item.answer, _FORMAT, template)
        turns += [("user", item.question), ("assistant", answered)]
    return messages([*turns, ("user", asked)])


def _left_out(inputs: Sequence[Question], new: Sequence[Question], file: str) -> Iterator[str]:
    if left_out := [item.id for item in inputs if item not in new]:
        listed = ", ".join(left_out[:_LISTED]) + ", ..." * (len(left_out) > _LISTED)
        yield (
            f"left out {len(left_out)} of {len(inputs)} inputs, whose text stands in {file} "
            f"too: {listed}"
        )


def _closed(items: Sequence[Question], settings: Settings) -> Iterator[str]:
    """Says so where all answers are of a narrower kind than texts and the settings do not name it.

    One or two of them say nothing.
    """
    golds = [item.answer for item in items if item.answer]
    found = kind_of_golds(golds)
    if settings.answer_kind != "text" or found.kind == "text" or len(golds) < _LEAST:
        return
    if all(gold_answer(gold, kind=found.name) is not None for gold in golds):
        narrow = {"labels": found.labels} if found.labels else {"answer_kind": found.kind}
        yield (
            f"answers: {found.kind}, for {found.why}; {json.dumps(narrow, ensure_ascii=False)} in "
            "settings.json makes that the rule: then no other text counts as an answer"
        )


def _worded_otherwise(texts: Sequence[str], settings: Settings) -> Iterator[str]:
    """Says so where the texts are in another language than the words around them."""
    found = written_in("\n".join(texts))
    if found and (settings.language, settings.cue, settings.closing) == ("en", "", ""):
        own = LANGUAGES[found].wording
        setting = json.dumps({"language": found})
        yield (
            f"prompts and targets say {settings.wording.cue!r} and {settings.wording.closing!r}; "
            f"{setting} in settings.json makes them {own.cue!r} and {own.closing!r}, and cue and "
            "closing take words of your own"
        )


def read_instruction(folder: str | os.PathLike) -> str:
    """Reads `instruction.md` of a scenario's folder; raises UserError where there is no text."""
    path = path_at(folder) / "instruction.md"
    try:
        text = path.read_bytes().decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error), "a text that says what to do") from error
    if not text:
        raise _unusable(path, "an empty file", "a text that says what to do")
    return text


def read_settings(folder: str | os.PathLike) -> Settings:
    """Reads `settings.json` of a scenario's folder; where there is none, the defaults.

    Raises:
        UserError: it is no such object.
    """
    folder = path_at(folder)
    path, record = folder / "settings.json", {}
    if path.exists():
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise _unusable(path, str(error), "one JSON object") from error
    kinds = {field.name: field.type for field in fields(Settings)}
    kinds |= {"temperature": int | float, "labels": list, "markers": list}
    kinds |= {"validation": int | float, "template": str | dict}
    if not isinstance(record, dict) or record.keys() - kinds.keys():
        raise _unusable(path, f"{record}", f"an object with only {', '.join(kinds)}")
    if not isinstance(record.get("instruct", True), bool):
        raise _unusable(path, f"instruct {record['instruct']!r}", "true or false")
    checked = record.keys() - {"instruct"}
    values = record | {name: require(record, name, kinds[name], str(path)) for name in checked}
    if not 0 <= values.get("validation", 0) < 1:
        raise _unusable(path, f"validation {values['validation']!r}", "a share from 0 up to 1")
    if values.get("shots", 0) < 0:
        raise _unusable(path, f"shots {values['shots']!r}", "0 or more; 0 shows all exemplars")
    if "template" in values:
        values["template"] = named(find_template(values["template"]))
    if "labels" in values:
        values |= _label_kind(path, values)
    if not all(isinstance(marker, str) for marker in values.get("markers", ())):
        raise _unusable(path, f"markers {values['markers']!r}", "a list of texts")
    values |= {"markers": tuple(values.get("markers", ()))}
    if values.get("language", "en") not in LANGUAGES:
        wanted = f"one of {', '.join(LANGUAGES)}, or cue and closing in your own words"
        raise _unusable(path, f"language {values['language']!r}", wanted)
    settings = Settings(**{"dataset": folder.resolve().name} | values)
    told = [values[name].partition(PLACE)[0] for name in ("cue", "closing") if name in values]
    for words in [*told, *settings.markers]:
        if not has_words(words):
            raise _unusable(path, f"cue, closing or markers with {words!r}", "words")
    if not is_kind(settings.answer_kind):
        raise _unusable(path, f"answer_kind {settings.answer_kind!r}", kinds_said())
    return settings


def _label_kind(path: str | os.PathLike, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a closed list: its labels, and their answer kind."""
    labels = values["labels"]
    known = {normal_text(label) for label in labels if isinstance(label, str)}
    if "answer_kind" in values:
        raise _unusable(path, "labels and answer_kind", "one of the two: labels are a kind")
    if len(known) < max(2, len(labels)) or "" in known:
        raise _unusable(path, f"labels {labels!r}", "two or more different texts")
    return {"labels": tuple(sorted(known)), "answer_kind": label_kind(known)}


def _items(folder: str | os.PathLike, split: str, settings: Settings) -> Iterator[Question]:
    name = {"train": "inputs"}.get(split, split)
    items = (
        placed
        for path in record_files(folder, name)
        for placed in placed_questions(path, dataset=settings.dataset, split=split)
    )
    for place, item in items:
        if split == "exemplars" and not (item.rationale and item.answer):
            got = "an exemplar without reasoning or answer"
            reject("incomplete_exemplar", place, got, "both: it shows how to reason")
        if item.answer and not _readable(item.answer, settings):
            wanted = f"one of kind {settings.answer_kind!r}"
            reject("unreadable_answer", place, f"the answer {item.answer!r}", wanted)
        yield item


def _readable(answer: str, settings: Settings) -> bool:
    """Says whether the closing line with this answer gives this answer, and no more."""
    template = settings.layout
    heads = (*template.heads, *settings.wording.heads)
    kind = marked_kind(settings.answer_kind, heads, template.stop)
    if settings.labels and normal_text(answer) not in settings.labels:
        return False
    line = build_target("", answer, _FORMAT, template)
    found = extract_answer(line, kind=kind, mode="strict")
    return found is not None and answers_match(found, answer, kind=kind)


def _unusable(path: str | os.PathLike, got: str, expected: str) -> UserError:
    return UserError(f"{path}: {got}", expected, "write or repair this file")
