"""How question, chain and answer become a student's input and target: a template has it all.

A template carries input, target, answer marker, separator and stop text together, so that prompts,
targets, the closing of a teacher's chains and the reading of answers cannot disagree. The papers'
templates have names; a user's own is a `Template` of gin or an object in a scenario's settings.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cot_flax.errors import UserError
from cot_flax.text.wording import PLACE, Wording

_NAME = re.compile(r"\{(\w+)\}")
_INPUT = {"cue", "question"}
_TARGETS = {"cot_target": "{rationale} --> {answer}", "answer_target": "{answer}"}


@dataclass(frozen=True)
class Template:
    """The layout of the four formats.

    `{question}` stands once in each input and `{answer}`, or `{closing}`, once in each target.
    `{cue}` and `{closing}` are those of the task's wording; a template that spells out its own
    words leaves them out. The answer marker is what stands before the answer in a target.

    Attributes:
        cot_input: asks for a chain.
        answer_input: asks for the answer alone.
        few_shot_answer_input: the same behind exemplars; "" is `answer_input`.
        cot_target: begins with `{rationale}`, and has a marker before the answer.
        answer_target: the answer alone.
        cot_gap: stands between input and target of an exemplar with a chain, and of a decoder.
        answer_gap: the same without a chain.
        separator: stands behind the instruction and behind each exemplar.
        stop: ends every target, where an end id is not enough; no answer has it.
        full_stop: whether a rationale without a full stop gets one.

    Raises:
        UserError: a place that is missing, unknown or doubled, or no marker.
    """

    cot_input: str = "Q: {question}\n{cue}"
    answer_input: str = "Q: {question} A:"
    few_shot_answer_input: str = ""
    cot_target: str = "{rationale}\n{closing}"
    answer_target: str = "{closing}"
    cot_gap: str = "\n"
    answer_gap: str = " "
    separator: str = " ### "
    stop: str = ""
    full_stop: bool = False

    def __post_init__(self):
        for name in ("cot_input", "answer_input", "few_shot_answer_input"):
            if text := getattr(self, name):
                _check_places(name, text, {"question"}, _INPUT, "Q: {question}")
        for name, example in _TARGETS.items():
            text = getattr(self, name)
            wanted = {"answer"} if "{answer}" in text else {"closing"}
            wanted |= {"rationale"} if name == "cot_target" else set()
            _check_places(name, text, wanted, wanted, example)
        if not self.cot_target.startswith("{rationale}") or self.closing.startswith(PLACE):
            raise UserError(
                f"cot_target {self.cot_target!r} of a template",
                "{rationale} first, then a marker and the answer",
                f"write it like {_TARGETS['cot_target']!r}",
            )

    @property
    def join(self) -> str:
        """The white space between rationale and closing."""
        behind = self.cot_target.removeprefix("{rationale}")
        return behind[: len(behind) - len(behind.lstrip())]

    @property
    def closing(self) -> str:
        """What follows the rationale, with `{answer}` in its place."""
        return self.cot_target.removeprefix("{rationale}").lstrip()

    @property
    def heads(self) -> tuple[str, ...]:
        """All words, without spaces around them, behind which the targets have their answer."""
        heads = (text.partition(PLACE)[0].strip() for text in (self.closing, self.answer_target))
        return tuple(dict.fromkeys(filter(None, heads)))

    def worded(self, wording: Wording) -> "Template":
        """With a wording's words in the places of `{cue}` and `{closing}`."""
        words = {"cue": wording.cue, "closing": wording.closing}
        texts = (field.name for field in dataclasses.fields(self) if field.type is str)
        filled: dict[str, Any] = {name: fill(getattr(self, name), **words) for name in texts}
        return dataclasses.replace(self, **filled)


def _check_places(name: str, text: str, wanted: set[str], known: set[str], example: str) -> None:
    found = _NAME.findall(text)
    if not (wanted <= set(found) <= known and len(set(found)) == len(found)):
        raise UserError(
            f"{name} {text!r} of a template",
            f"{' and '.join(f'{{{place}}}' for place in sorted(wanted))} once"
            + (", and no other place but {cue}" if known > wanted else " and no other place"),
            f"write it like {example!r}",
        )


def fill(text: str, **values: str) -> str:
    """Puts values in the places of their names; a value's own braces are text."""
    return _NAME.sub(lambda place: values.get(place[1], place[0]), text)


_HO = Template(
    cot_input="{question}",
    answer_input="{question}",
    cot_target=_TARGETS["cot_target"],
    answer_target=_TARGETS["answer_target"],
    cot_gap=" ",
)
_FU = Template(few_shot_answer_input="Q: {question}\nA:", separator="\n\n")

DEFAULT_NAME = "t5"
TEMPLATES = {
    # T5's vocabulary has no newline, so `fu2023`'s blank line is no more than a space there.
    "t5": dataclasses.replace(_FU, separator=" ### "),
    # Fu et al. 2023 (arXiv 2301.12726), the authors' `process_data_format`.
    "fu2023": _FU,
    # Ho et al. 2022 (arXiv 2212.10071), the authors' `ft_cot_token` and `ft_token`. Their students
    # see no exemplars: how these are shown is ours.
    "ho2022": _HO,
    "ho2022_decoder_only": dataclasses.replace(
        _HO,
        cot_input="{question} ###",
        answer_input="{question} ###",
        separator="\n\n",
        stop=" END",
    ),
    # Kim et al. 2023 (arXiv 2305.14045), the authors' `Datasets_end2end.py`.
    "kim2023": Template(
        cot_input="{question}\n\nLet's think step by step.\n",
        answer_input="{question}\n[ANSWER] ",
        cot_target="{rationale}\n[ANSWER] {answer}",
        answer_target="{answer}",
        cot_gap="",
        answer_gap="",
        full_stop=True,
    ),
    # Magister et al. 2022 (arXiv 2212.08410) learn question to chain and answer. They did not
    # publish the words between the two: these are assumed, those of Wei et al. 2022.
    "magister2022": Template(
        cot_input="{question}",
        answer_input="{question}",
        cot_target="{rationale} The answer is {answer}.",
        answer_target="The answer is {answer}.",
        cot_gap=" ",
    ),
}


def find_template(given: str | Mapping | Template) -> Template:
    """The template of a name, or of an object with a template's fields.

    Raises:
        UserError: an unknown name or field, or a field that cannot be.
    """
    if isinstance(given, Template):
        return given
    if isinstance(given, str):
        if given not in TEMPLATES:
            raise UserError(
                f"template {given!r}", f"one of {', '.join(TEMPLATES)}", "correct the name"
            )
        return TEMPLATES[given]
    kinds = {field.name: field.type for field in dataclasses.fields(Template)}
    if not isinstance(given, Mapping) or given.keys() - kinds.keys():
        raise UserError(
            f"template {given!r}",
            f"a name of {', '.join(TEMPLATES)}, or an object with only {', '.join(kinds)}",
            "correct it",
        )
    for name, value in given.items():
        if type(value) is not kinds[name]:
            kind = "true or false" if kinds[name] is bool else "a text"
            raise UserError(f"{name} {value!r} of a template", kind, "correct it")
    return Template(**given)


def named(template: Template) -> str | Template:
    """The name of one of `TEMPLATES`, and any other as it is."""
    return next((name for name, known in TEMPLATES.items() if known == template), template)
