"""How a teacher is asked: the calls that a question takes, the chain that is made of the replies.

A preset is the numbers and the template of one of four papers; `make_recipe` turns it into a
`Recipe`, with worked questions to show.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cot_flax.errors import UserError
from cot_flax.teacher import templates
from cot_flax.teacher.clipping import certain, end_at, join, split_thought, trim
from cot_flax.teacher.questions import Question
from cot_flax.teacher.requests import REFUSALS, TEACHERS_OWN, Completion, Messages, Request
from cot_flax.text.answers import ANSWER_MARKER
from cot_flax.text.equations import find_equations
from cot_flax.text.prompts import normalize_question

_REAL = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("min_p", "repetition_penalty"),
)
Paper = Literal["fu2023", "magister2022", "ho2022", "kim2023"]
BRIDGE = "Therefore, the answer is"
_LINE_END = "\n"
_BEHIND_FIRST_LINE = re.compile(r"\S[^\n]*(\n)")
_BEHIND_ANSWER_LINE = re.compile(r"answer is[^\n]*(\n)")
# Of Kim et al.'s some 45 marks of a completion that went astray, those that are no mere variants
# of white space and quotes; and their stop strings, for a teacher that knows none.
_ASTRAY = re.compile(
    r"\n\n\n|\[[Ee]xamp|\[Instruction and|\[Options\]|\[Answer\]|\[Rationale\]"
    r"|\n`|\n#|\"\"\"\n|'''\n|print\(|[ \t]{9}"
)


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


@dataclass(frozen=True)
class Numbers:
    """What a caller may change of a recipe.

    Attributes:
        samples: chains a question.
        temperature: of the chains; 0 is greedy.
        max_tokens: the most tokens of a completion.
        shots: worked questions in the prompt.
        top_p: nucleus sampling; 1.0 is off.
        presence_penalty: as in OpenAI's API.
        frequency_penalty: as in OpenAI's API.
        stop: strings that end a completion.
        top_logprobs: log-probabilities of the k likeliest tokens a position; None asks for none.
        per_request: the most completions that one call may ask for; OpenAI's limit is 128.
        top_k, min_p, repetition_penalty, seed, extra_body: as in `Request`.

    Raises:
        UserError: a number that no teacher can be asked with.
    """

    samples: int
    temperature: float
    max_tokens: int
    shots: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    per_request: int = 128
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self):
        least = {"samples": 1, "temperature": 0, "max_tokens": 1, "shots": 0, "per_request": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{name} {getattr(self, name)}", f"at least {low}", "correct it")


@dataclass(frozen=True)
class Overrides:
    """Numbers in place of a recipe's own, fields as in `Numbers`; None leaves the recipe's.

    Attributes:
        top_logprobs: 0 asks for none.
    """

    samples: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    shots: int | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: Sequence[str] | None = None
    top_logprobs: int | None = None
    per_request: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    extra_body: dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """The fields of `Numbers` to replace; in one form each, for requests are keyed by it."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if name in _REAL:
                given[name] = float(value)
        if "stop" in given:
            given["stop"] = tuple(given["stop"])
        if "top_logprobs" in given:
            given["top_logprobs"] = given["top_logprobs"] or None
        return given


@dataclass(frozen=True)
class Recipe:
    """One way to ask a teacher for chains.

    Attributes:
        name: what it is called.
        format: the format of `text.prompts.FORMATS` that the teacher saw.
        numbers: how many, how warm, how long.
        prompt: makes a question into what is sent.
        clean: makes what came back into the chain.
        two_steps: a second, greedy call draws the answer out of each chain (Zero-shot-CoT).
    """

    name: str
    format: str
    numbers: Numbers
    prompt: Callable[[Question], str | Messages]
    clean: Callable[[Completion], Completion]
    two_steps: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """The sampling parameters, for the record of a sample; what it is left is named."""
        numbers = asdict(self.numbers) | {"stop": list(self.numbers.stop)}
        del numbers["per_request"]
        own = [name for name in TEACHERS_OWN if numbers[name] is None]
        for name in (*own, *(name for name in ("seed", "extra_body") if numbers[name] is None)):
            del numbers[name]
        numbers |= {"teachers_own": own} if own else {}
        return {"recipe": self.name, **numbers}

    def first(self, question: Question) -> Request:
        """The call for one question: it asks for `samples` completions."""
        numbers = self.numbers
        return Request(
            self.prompt(question),
            n=numbers.samples,
            max_tokens=numbers.max_tokens,
            temperature=numbers.temperature,
            top_p=numbers.top_p,
            presence_penalty=numbers.presence_penalty,
            frequency_penalty=numbers.frequency_penalty,
            stop=numbers.stop,
            top_logprobs=numbers.top_logprobs,
            seed=numbers.seed,
            top_k=numbers.top_k,
            min_p=numbers.min_p,
            repetition_penalty=numbers.repetition_penalty,
            extra_body=numbers.extra_body,
        )

    def next(self, question: Question, request: Request, completion: Completion) -> Request | None:
        """The call that follows on one completion of `request`, or None where nothing does.

        Nothing follows on a refusal, or where the teacher was cut off before it wrote a text.
        Chains of the same words share it: it is greedy. A plain language model is stopped where the
        line of the answer ends, for no more of it counts.
        """
        if not self.two_steps or completion.finish_reason in REFUSALS:
            return None
        text = split_thought(completion).text
        if not text.strip() and completion.finish_reason == "length":
            return None
        if request.is_chat:
            turns = [("assistant", text), ("user", BRIDGE)]
            prompt = (*request.prompt, *messages(turns))
        else:
            prompt = f"{request.prompt}{text}\n{BRIDGE}"
            stop = (_LINE_END, *(string for string in request.stop if _LINE_END not in string))
            request = replace(request, stop=stop)
        return replace(request, prompt=prompt, n=1, temperature=0.0)

    def next_line(self, follow_up: Request, completion: Completion) -> Request | None:
        """The second step without its stop, where its first line is empty; else None."""
        if _LINE_END not in follow_up.stop or completion.text.strip():
            return None
        if completion.finish_reason != "stop":
            return None
        return replace(follow_up, stop=tuple(s for s in follow_up.stop if s != _LINE_END))

    def sample_of(
        self,
        question: Question,
        completion: Completion,
        follow_up_request: Request | None = None,
        follow_up: Completion | None = None,
    ) -> Completion:
        """The chain as it is stored: cleaned, and in two steps with the answer behind it.

        The words between the steps have log-probability 0 and no alternatives. Of a second
        completion that is no chat's the first line counts: a plain language model runs on. A chain
        of which either step hit the token limit has finish_reason "length". What was thought apart
        stays apart.
        """
        chain = self.clean(split_thought(completion))
        if follow_up is None:
            return chain
        follow_up = split_thought(follow_up)
        is_chat = follow_up_request.is_chat
        answer = trim(follow_up) if is_chat else end_at(follow_up, _BEHIND_FIRST_LINE)
        cut = "length" in (chain.finish_reason, answer.finish_reason)
        bridge = certain(_bridge(answer.text, is_chat))
        return join([chain, bridge, answer], "length" if cut else answer.finish_reason)


def messages(turns: Iterable[tuple[str, str]]) -> Messages:
    """(role, content) pairs as messages of a chat."""
    return tuple({"role": role, "content": content} for role, content in turns)


def _bridge(answer: str, is_chat: bool) -> str:
    """What stands between chain and answer: a chat may have answered in a whole sentence."""
    if is_chat and ANSWER_MARKER.search(answer):
        return "\n"
    return f"\n{BRIDGE}" + " " * (not answer.startswith(" "))


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
PRESETS: dict[Paper, Preset] = {
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


def ho2022_temperature(samples: int) -> float:
    """Of paper [3]'s chains: a single one is greedy, several are drawn."""
    return 0.0 if samples == 1 else PRESETS["ho2022"].numbers.temperature


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
    if exemplars and len(ranked) == shots:  # all are shown, but for the question itself
        least = min(least, max(1, shots - 1))
    return lambda q: others(ranked, q, least=least, most=shots)
