"""From one line to a recipe: reads the questions, opens the student, asks what a server does."""

import dataclasses
import hashlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_flax.chains.samples import read_samples, write_samples
from cot_flax.distill import defaults, questions, recipe, write
from cot_flax.distill.questions import Item, Splits
from cot_flax.distill.run import COMMAND
from cot_flax.distill.stages import State, is_free
from cot_flax.distill.student import open_student
from cot_flax.errors import UserError
from cot_flax.files import path_at, write_whole
from cot_flax.teacher import findings
from cot_flax.teacher.journal import journal_path
from cot_flax.teacher.questions import Question
from cot_flax.teacher.scenario import read_scenario, read_test
from cot_flax.text.answers import GoldKind, kind_of_golds, normal_text
from cot_flax.text.prompts import normalize_question
from cot_flax.text.tokenizers import SentencePieceTokenizer

RECIPE = "recipe.gin"
_VOCABULARY = "spiece.model"
_MEASURED = 2000  # texts of which the length is taken
_ROOM = 32  # tokens of a prompt beside its question, and of a target beside its chain
_LONGEST = {"inputs": 1024, "targets": 512}
_TAUGHT = 256  # tokens of a teacher's chain


@dataclass(frozen=True)
class Options:
    """What the command was given.

    Attributes:
        data: a file, or the folder of a scenario.
        out: the folder of the recipe and all that it makes.
        student: a checkpoint, a name on the hub, or a gin file of models/ for random weights.
        columns: fields of the file, by their names in `readers.NAMES`.
        url: of the teacher's server; with `model` None there is no teacher.
        ask: what is added to each question; None decides.
        vocabulary: of a student from random weights.
    """

    data: str
    out: str
    student: str
    columns: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    model: str | None = None
    chat: bool = True
    kind: str | None = None
    ask: str | None = None
    vocabulary: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Started:
    """The recipe that was written or found, and lines for the user."""

    file: str
    lines: tuple[str, ...]
    asks: bool


def start(options: Options, command: Sequence[str], *, dry_run: bool, redo: bool) -> Started:
    """Writes a recipe and its questions to `out`, unless they are there from the same command.

    Args:
        command: the words of the command, for the recipe's header.
        dry_run: asks no server anything that costs.
        redo: replaces what another command wrote.

    Raises:
        UserError: data, student or teacher that cannot be used; what another command wrote.
    """
    recipe.check_folder(options.out)
    student = open_student(options.student, options.vocabulary)
    asked = _scenario(options) if is_scenario(options.data) else _file(options)
    splits, answers, shown = asked.splits, asked.answers, len(asked.exemplars)
    worked = sum(bool(item.rationales) for item in splits.train)
    if options.model is None and not worked:
        raise UserError(
            f"{options.data} without chains, and no teacher",
            "one of the two",
            "name a teacher (--teacher http://HOST/v1 --model NAME), or the field with the "
            "reasoning (--rationale FIELD)",
        )
    ask = options.ask or ""
    if options.ask is None and options.model is not None and not shown:
        ask = questions.ask_for(answers.labels, splits.train)
    if ask and not asked.folder:
        splits = Splits(*(questions.with_ask(part, ask) for part in splits))
    teacher, teaching = _teacher(options, asked, dry_run=dry_run)
    count = len(splits.train) * asked.chains if teacher else _chains(splits.train)
    folder = asked.folder or f"{options.out}/scenario"
    files = {} if asked.folder else write.scenario_files(asked.name, splits, answers, shown)
    told = files.get("instruction.md") or (path_at(folder) / "instruction.md").read_text()
    tokens = _longest(splits, student.vocabulary, [told, *asked.exemplars])
    plan = defaults.training(
        count,
        len(splits.train) if teacher else worked,
        student.parameters,
        few_shot=_no_few_shot(shown, tokens["few_shot"]),
        from_scratch=student.start is None,
        validation=len(splits.validation),
    )
    is_few_shot = "few_shot_cot" in plan.rates
    lengths = {
        "inputs": tokens["few_shot" if is_few_shot else "inputs"],
        "targets": max(tokens["targets"], _TAUGHT * bool(teacher)),
    }
    lines = [
        f"questions: {sum(map(len, splits)):,} of {options.data}"
        + "".join(f"; {note}" for note in asked.notes),
        f"answers: {answers.kind}, for {answers.why}",
        f"held out: {len(splits.test):,} questions for the test, {len(splits.validation):,} for "
        f"validation ({asked.held_out}); {len(splits.train):,} to learn from",
        *([f"each question ends with: {ask}"] if ask else []),
        *teaching,
        *([f"chains: {worked:,} questions have {count:,}"] if not teacher else []),
        *plan.reasons,
    ]
    given = not teacher and questions.is_samples(options.data, options.columns)
    soft = bool(teacher and teacher.top_logprobs)
    samples = None
    if not teacher:
        samples = f"{folder}/{'samples.jsonl.gz' if given else 'chains.jsonl'}"
    text = write.recipe(
        command=shlex.join(["cot-flax", *command]),
        out=options.out,
        scenario=folder,
        dataset=asked.name,
        student=dataclasses.replace(student, vocabulary=f"{options.out}/{_VOCABULARY}"),
        teacher=teacher,
        samples=samples,
        soft=soft or (given and _is_soft(options.data)),
        training=plan,
        lengths={name: min(_LONGEST[name], _rounded(count)) for name, count in lengths.items()},
        notes=[*lines],
        seed=options.seed,
    )
    note = _write(
        options, text, files, student.vocabulary, plan.examples, redo=redo, is_draft=dry_run
    )
    if samples and given and (redo or not path_at(samples).exists()):
        _write_samples(options.data, samples, splits.train, asked.name)
    return Started(f"{options.out}/{RECIPE}", (*lines, *note), teacher is not None)


def _answers(kind: str | None, items: Sequence[Item]) -> GoldKind:
    if kind is None:
        return kind_of_golds(item.answer for item in items)
    known = ("number", "choice", "yes_no", "text", "labels")
    if kind not in known:
        raise UserError(f"--kind {kind}", f"one of {', '.join(known)}", "correct it")
    if kind == "labels":
        labels = sorted({normal_text(item.answer) for item in items})
        return GoldKind("labels", tuple(labels), f"--kind says so ({len(labels)} different ones)")
    return GoldKind(kind, (), "--kind says so")


@dataclass(frozen=True)
class _Asked:
    """A user's questions, of a file or of a scenario.

    Attributes:
        exemplars: worked examples for the teacher, as texts.
        chains: to ask for, a question.
        held_out: how questions were held out.
        folder: of the scenario, where it is one; "" of a file.
    """

    name: str
    splits: Splits
    answers: GoldKind
    exemplars: list[str]
    chains: int
    notes: list[str]
    held_out: str
    folder: str = ""


def is_scenario(data: str) -> bool:
    return (path_at(data) / "instruction.md").is_file()


def _file(options: Options) -> _Asked:
    items, notes = questions.read(options.data, options.columns)
    answers = _answers(options.kind, items)
    items, others = questions.of_kind(items, answers.name, options.data)
    questions.check_enough(items, options.data)
    splits = questions.split(items, options.seed)
    return _Asked(
        name=re.sub(r"\W", "_", path_at(options.out).name),
        splits=splits,
        answers=answers,
        exemplars=list(map(_worked, write.exemplars(splits.train))),
        chains=write.CHAINS,
        notes=notes + others,
        held_out=f"by question, seed {options.seed}",
    )


def _scenario(options: Options) -> _Asked:
    read, test = read_scenario(options.data), read_test(options.data)
    if options.model is None:
        remedy = "name one: --teacher http://HOST/v1 --model NAME"
        raise UserError(f"the scenario {options.data} without a teacher", "a teacher", remedy)
    train, validation, held_out = (
        [Item(q.id, q.question, q.answer) for q in some]
        for some in (read.inputs, read.validation, test)
    )
    settings = read.settings
    shown = sorted(map(_worked, read.exemplars), key=len, reverse=True)
    kind = "labels" if settings.labels else settings.answer_kind
    return _Asked(
        name=settings.dataset,
        splits=Splits(train, validation, held_out),
        answers=GoldKind(kind, settings.labels, "its settings say so"),
        exemplars=shown[: settings.shots or len(shown)],
        chains=settings.samples,
        notes=read.notes,
        held_out="as the scenario has it",
        folder=options.data.rstrip("/"),
    )


def _worked(item: Item | Question) -> str:
    return f"{item.question}\n{item.rationale}\n{item.answer}"


def _chains(items: Sequence[Item]) -> int:
    return sum(len(item.rationales) for item in items)


def _teacher(
    options: Options, asked: _Asked, *, dry_run: bool
) -> tuple[write.Teacher | None, list[str]]:
    """Who is asked, as far as the server has been seen, and what to say of it."""
    if options.model is None:
        return None, []
    out, shown = f"{options.out}/samples.jsonl.gz", len(asked.exemplars)
    if not dry_run:
        _probe(options, out)
    kept = findings.read_kept(
        findings.path_beside(journal_path(out)),
        findings.server_of(options.url),
        options.model,
        options.chat,
    )
    top = min(5, kept.top_k or 0) if kept and kept.shape and not kept.problem else 0
    if kept is None:
        soft = "a probe of at most 20 small requests will say whether it gives log-probabilities"
    elif top:
        soft = f"it gives log-probabilities: top-{top} KL"
    else:
        soft = "it gives no log-probabilities: cross entropy on its chains"
    how = (
        f"instruction and {shown} worked examples"
        if shown
        else "zero-shot chains in two calls each, as paper [3]: no question has a rationale to show"
    )
    teacher = write.Teacher(
        options.model,
        options.url,
        options.chat,
        shown,
        top,
        options.price_in,
        options.price_out,
        options.max_cost,
    )
    return teacher, [
        f"teacher: {options.model} at {options.url or 'OpenAI'}, {asked.chains} chains a question"
        f"{'' if asked.folder else ' (D of paper [3])'}; {how}; {soft}"
    ]


def _probe(options: Options, out: str) -> None:
    """Asks the server what it does, once; its findings are kept beside the journal."""
    place = findings.path_beside(journal_path(out))
    server = findings.server_of(options.url)
    if findings.read_kept(place, server, options.model or "", options.chat):
        return
    words = ["teach", "probe", "--model", options.model or "", "--out", out]
    words += ["--base-url", options.url] if options.url else []
    words += ["--chat"] if options.chat else []
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        raise SystemExit(done.returncode)


def _longest(splits: Splits, vocabulary: str, shown: Sequence[str]) -> dict[str, int]:
    """Tokens of the longest question with its instruction, with all exemplars too, and of a chain.

    Args:
        shown: the instruction, and the exemplars.
    """
    tokenizer = SentencePieceTokenizer(vocabulary)

    def counts(texts: Sequence[str]) -> list[int]:
        return [len(tokenizer.encode(text)) + _ROOM for text in texts[:_MEASURED]]

    items = [item for part in splits for item in part]
    question = max(counts([item.question for item in items]), default=0)
    instruction, *exemplars = counts(shown)
    return {
        "inputs": question + instruction,
        "few_shot": question + instruction + sum(exemplars),
        "targets": max(counts([c for item in items for c in item.rationales]), default=0),
    }


def _no_few_shot(shown: int, tokens: int) -> str:
    """Why the student gets no few-shot prompts; "" where it does."""
    if shown < 2:  # an exemplar is never shown to itself
        return "there are no worked examples to show"
    most = _LONGEST["inputs"]
    return f"{shown} worked examples make {tokens:,} tokens, above {most:,}" * (tokens > most)


def _rounded(count: int) -> int:
    return -(-count // 32) * 32


def _write(
    options: Options,
    text: str,
    files: Mapping[str, str],
    vocabulary: str,
    examples: int,
    *,
    redo: bool,
    is_draft: bool,
) -> list[str]:
    """Writes recipe and questions, but for those that are there from the same command.

    What a dry run wrote is a draft: it does not know yet what the server does.
    """
    place = path_at(options.out) / RECIPE
    state = State.read(options.out)
    written = state.written
    made = {"all": _hash([_essence(text), files]), "text": _hash(text), "examples": examples}
    if place.exists() and not redo:
        is_as_written = _hash(place.read_text()) == written.get("text")
        if not written.get("is_draft") and written.get("all") != made["all"]:
            raise UserError(
                f"{place} of another command, or of other questions",
                "the same again",
                f"run it (--gin_file={options.out}/{RECIPE}), choose another --out, or pass "
                "--redo, which writes it anew",
            )
        if not is_as_written:
            return [f"{place} was changed since it was written: it is run as it is"]
        if not written.get("is_draft") and written["text"] == made["text"]:
            return []
    for name, content in files.items():
        write_whole(path_at(options.out) / "scenario" / name, content)
    write_whole(path_at(options.out) / _VOCABULARY, Path(vocabulary).read_bytes())
    write_whole(place, text)
    state.written = made | {"is_draft": is_draft}
    state.write(options.out)
    return []


def _essence(text: str) -> list[str]:
    """The lines of a recipe that what comes of it depends on: neither comments nor server."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return [line for line in lines if not is_free(line.partition(" ")[0])]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_soft(samples: str) -> bool:
    """Whether a samples file begins with log-probabilities."""
    return any(s.logprobs is not None for s in itertools.islice(read_samples(samples), 20))


def _write_samples(data: str, out: str, train: Sequence[Item], name: str) -> None:
    """The samples of the training questions, as of the scenario's data set."""
    known = {normalize_question(item.question) for item in train}
    kept = (
        dataclasses.replace(sample, dataset=name, split="train")
        for sample in read_samples(data)
        if normalize_question(sample.question) in known
    )
    write_samples(out, kept)
