"""Questions to a student of any checkpoint, in the very prompts that it was trained on."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.generation.generator import Generator, Text, place_keys
from cot_flax.generation.sampling import Sampling
from cot_flax.teacher.scenario import read_exemplars, read_instruction, read_settings
from cot_flax.text.prompting import Prompting
from cot_flax.text.prompts import Exemplar
from cot_flax.text.templates import DEFAULT_NAME
from cot_flax.training import interruption
from cot_flax.training.state import abstract_variables
from cot_flax.weights import source as weights
from cot_flax.weights import tokenizer_files
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access

MAX_TOKENS = 256
VOTING_TEMPERATURE = 0.7
"""Of several samples, where none is given: the papers' (self-consistency draws at 0.5 to 0.7)."""
FITS = "lower the number of slots or of tokens (--slots, --max-tokens)"
"""What to do where a device has too little memory."""
_LISTED = 5


@dataclass(frozen=True)
class Answer:
    """What a student said to a question.

    Attributes:
        question: as it was asked.
        prompt: the text that the student read.
        text: its chain: of several samples, of the first that gave the answer.
        answer: what was read in it, of several samples the most frequent; None where there is none.
        votes: how many samples gave each answer, the most frequent first; a sample in which none
            was found has no vote.
        tied: all answers with as many votes as the first, where there are several; of these the
            one that was drawn first is the answer.
        texts: of all samples.
    """

    question: str
    prompt: str
    text: str
    answer: str | None
    votes: dict[str, int]
    tied: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def unread(self) -> int:
        """Samples in which no answer was found."""
        return len(self.texts) - sum(self.votes.values())


class Reasoner:
    """A student with its tokenizer and prompts.

    Attributes:
        place: where its checkpoint lies.
        generator: writes and scores.
        prompting: by format; under "" for all others.
        max_tokens: of an output, where nothing else is said.
    """

    def __init__(
        self, place: str, generator: Generator, prompting: dict[str, Prompting], max_tokens: int
    ):
        self.place, self.generator, self.max_tokens = place, generator, max_tokens
        self.prompting = prompting

    def prompt_of(
        self,
        question: str,
        format: str | None = None,
        *,
        exemplars: Sequence[Exemplar] = (),
        scenario: str | os.PathLike | None = None,
    ) -> tuple[str, Prompting]:
        """A question's prompt, and how outputs are read; the arguments are those of `answer`."""
        few_shot = bool(exemplars or scenario)
        format = format or ("few_shot_cot" if few_shot else "zero_shot_cot")
        prompting = scenario_prompting(scenario) if scenario else self.prompting_of(format)
        if exemplars:
            prompting = dataclasses.replace(prompting, exemplars=tuple(exemplars), shots=0)
        return prompting.prompt(question, format), prompting

    def prompting_of(self, format: str) -> Prompting:
        """How questions are put in a format: as trained, or else as in another one of the run."""
        return self.prompting.get(format) or self.prompting[""]

    @interruption.memory_named(FITS)
    def answer(
        self,
        question: str | Sequence[str],
        *,
        format: str | None = None,
        exemplars: Sequence[Exemplar] = (),
        scenario: str | os.PathLike | None = None,
        samples: int = 1,
        temperature: float | None = None,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        seed: int = 0,
        slots: int = 32,
        ended: Callable[[int, Answer], None] | None = None,
    ) -> "Answer | list[Answer]":
        """Asks a question, or several.

        Args:
            question: one text, or several.
            format: of `prompts.FORMATS`; by default `zero_shot_cot`, and `few_shot_cot` where
                exemplars or a scenario are given.
            exemplars: worked examples in place of those that the run showed.
            scenario: a scenario's folder: its instruction, exemplars, words and answer kind.
            samples: chains a question; the most frequent answer is the answer.
            temperature: 0 is greedy; by default 0 for one sample, `VOTING_TEMPERATURE` for several.
            top_p: as in `Sampling`.
            max_tokens: of a chain with its answer.
            seed: of the draws; those of a question depend on it and on the question's place.
            slots: questions decoded at once.
            ended: is told the place and the answer of every question when it ends.

        Returns:
            An answer, or one for each question in their order.

        Raises:
            UserError: no question, several samples at temperature 0, or a few-shot format without
                exemplars.
        """
        questions = [question] if isinstance(question, str) else list(question)
        for text in questions:
            if not text.strip():
                raise UserError("an empty question", "a text", "ask something")
        temperature = _temperature(samples, temperature)
        asked = [
            self.prompt_of(text, format, exemplars=exemplars, scenario=scenario)
            for text in questions
        ]
        prompts = [prompt for prompt, _ in asked]
        found: dict[int, Answer] = {}

        def take(place, drawn):
            texts = [continuation.text for continuation in drawn]
            prompt, prompting = asked[place]
            found[place] = vote(questions[place], prompt, texts, prompting.read)
            if ended is not None:
                ended(place, found[place])

        self.generator.generate(
            prompts,
            max_tokens=max_tokens or self.max_tokens,
            sampling=Sampling(temperature, top_p=top_p),
            samples=samples,
            slots=slots,
            keys=place_keys(seed, len(prompts)),
            ended=take,
        )
        answers = [found[place] for place in range(len(questions))]
        return answers[0] if isinstance(question, str) else answers

    def generate(
        self,
        prompts: Sequence[Text],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        samples: int = 1,
        seed: int = 0,
        slots: int = 32,
    ) -> list[list[str]]:
        """Continues prompts as they are: of each as many texts as samples."""
        found = self.generator.generate(
            prompts,
            max_tokens=max_tokens or self.max_tokens,
            sampling=Sampling(temperature, top_p=top_p),
            samples=samples,
            slots=slots,
            keys=place_keys(seed, len(prompts)),
        )
        return [[continuation.text for continuation in drawn] for drawn in found]


def load(
    path: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    template: str | None = None,
    dataset: str | None = None,
    access: Access = Access(),  # noqa: B008 (frozen)
) -> Reasoner:
    """Opens a student of any checkpoint.

    Args:
        path: what `weights.opening.open_source` takes: a run (its newest step), a step,
            `RUN/best/METRIC`, a folder of Hugging Face's or a name on its hub, T5X's.
        tokenizer: a spiece.model or tokenizer.json, where none lies beside the checkpoint.
        template: of prompts, in place of what the run says; for checkpoints of others t5's.
        dataset: whose prompts, where a run was trained on several that have different ones.
        access: what reading the checkpoint may do.

    Raises:
        UserError: no checkpoint, no tokenizer or another one's, or prompts that are not known.
    """
    source = open_source(os.fspath(path), access)
    facts = run_folder.read_facts(source.folder) if source.folder else {}
    trained = _of_run(facts, dataset, f"{source.folder}/{run_folder.FACTS}")
    if template is not None or not (trained or facts):
        trained = {"": Prompting.of_template(template or DEFAULT_NAME)}
    if not trained:
        raise UserError(
            f"{source.folder}/{run_folder.FACTS}, which does not say how prompts look",
            "the name of their template",
            "pass template (--template t5 for the default one)",
        )
    found = tokenizer_files.read(source, tokenizer)
    params = weights.load(source, abstract_variables(source.student)["params"])
    longest = facts.get("data", {}).get("lengths", {}).get("targets", MAX_TOKENS)
    return Reasoner(source.place, Generator(source.student, params, found), trained, longest)


def vote(
    question: str, prompt: str, texts: Sequence[str], read: Callable[[str], str | None]
) -> Answer:
    """The most frequent answer of several texts; what has none is no vote."""
    found = [read(text) for text in texts]
    votes = dict(Counter(filter(None, found)).most_common())  # of equals the first drawn is first
    answer = next(iter(votes), None)
    tied = tuple(other for other, count in votes.items() if count == max(votes.values()))
    return Answer(
        question,
        prompt,
        next(text for text, own in zip(texts, found, strict=True) if own == answer or not votes),
        answer,
        votes,
        tied if len(tied) > 1 else (),
        tuple(texts),
    )


def scenario_prompting(folder: str | os.PathLike) -> Prompting:
    """How the questions of a scenario's folder are put; errors as `teacher.scenario`."""
    settings = read_settings(folder)
    return Prompting(
        settings.layout,
        read_instruction(folder) if settings.instruct else "",
        settings.answer_kind,
        settings.labels,
        settings.wording.heads,
        tuple(Exemplar(e.question, e.rationale, e.answer) for e in read_exemplars(folder)),
        settings.shots,
    )


def _of_run(facts: dict, dataset: str | None, place: str) -> dict[str, Prompting]:
    """The prompts that run.json tells of, by format, of one data set or of all that are alike."""
    stored = facts.get("data", {}).get("prompts", {})
    by_dataset: dict[str, dict[str, Prompting]] = {}
    for entry in stored.values():
        prompting = Prompting.from_json(entry, place)
        by_dataset.setdefault(entry["dataset"], {})[entry["format"]] = prompting
    if dataset is not None and dataset not in by_dataset:
        raise UserError(
            f"data set {dataset!r} of {place}",
            f"one of {_first(by_dataset) or 'none: it says nothing of prompts'}",
            "correct it, or leave it out",
        )
    chosen = [by_dataset[dataset]] if dataset else list(by_dataset.values())
    layouts = {dataclasses.replace(p, exemplars=()) for some in chosen for p in some.values()}
    if len(chosen) > 1 and len(layouts) > 1:
        raise UserError(
            f"a run on data sets with different prompts ({place})",
            f"one of {_first(by_dataset)}",
            "say whose prompts to write (--dataset NAME), or name a template (--template)",
        )
    merged = {format: p for some in reversed(chosen) for format, p in some.items()}
    return merged | {"": next(iter(merged.values()))} if merged else {}


def _temperature(samples: int, temperature: float | None) -> float:
    if samples < 1:
        raise UserError(f"{samples} samples", "1 or more", "correct it")
    if temperature is None:
        return VOTING_TEMPERATURE if samples > 1 else 0.0
    if temperature < 0 or (samples > 1 and temperature == 0):
        raise UserError(
            f"{samples} samples at temperature {temperature:g}",
            "a temperature of 0 or more, above 0 for samples that differ",
            "raise the temperature, or take one sample",
        )
    return temperature


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
