"""From one line to a recipe: reads the questions, opens the student, asks what a server does."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_flax.chains.samples import read_samples, write_samples
from cot_flax.configuration import draft
from cot_flax.distill import defaults, questions, write
from cot_flax.distill.questions import Item, Splits
from cot_flax.distill.run import COMMAND
from cot_flax.distill.stages import State, is_free
from cot_flax.errors import UserError
from cot_flax.files import path_at, write_whole
from cot_flax.teacher import findings
from cot_flax.teacher.journal import journal_path
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
_SHAPE = (
    *("vocab_size", "emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers"),
    *("head_dim", "mlp_dim", "mlp_activations", "bias_per_layer", "logits_via_embedding"),
)
_FAMILIES = ("t5_1_0", "t5_1_1", "lora")  # of models/, what others include


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
    student = open_student(options)
    asked = _scenario(options) if is_scenario(options.data) else _file(options)
    splits, answers, shown = asked.splits, asked.answers, asked.shown
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
    plan = defaults.training(count, student.parameters, from_scratch=student.start is None)
    folder = asked.folder or f"{options.out}/scenario"
    files = {} if asked.folder else write.scenario_files(asked.name, splits, answers, shown)
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
        lengths=_lengths(
            splits,
            student.vocabulary,
            files.get("instruction.md") or (path_at(folder) / "instruction.md").read_text(),
            taught=bool(teacher),
        ),
        notes=[*lines],
        seed=options.seed,
    )
    note = _write(options, text, files, student.vocabulary, redo=redo, is_draft=dry_run)
    if samples and given and (redo or not path_at(samples).exists()):
        _write_samples(options.data, samples, splits.train, asked.name)
    return Started(f"{options.out}/{RECIPE}", (*lines, *note), teacher is not None)


def open_student(options: Options) -> write.Student:
    """The student that the command names; fetches one of the hub.

    Raises:
        UserError: there is none, or of no family or vocabulary that this takes.
    """
    if options.student.endswith(".gin"):
        shape = _shape(draft.read([str(draft.find(options.student, (), "--student"))]))
        if options.vocabulary is None:
            raise UserError(
                f"{options.student} without a vocabulary",
                "the SentencePiece model that the student is to have",
                "pass --vocabulary FILE",
            )
        vocabulary = _vocabulary(options.vocabulary)
        ids = SentencePieceTokenizer(vocabulary).vocab_size
        if ids > shape["vocab_size"]:
            raise UserError(
                f"a vocabulary of {ids:,} ids in {vocabulary} for the {shape['vocab_size']:,} rows "
                f"of {options.student}",
                "a row an id at least",
                "set t5.T5Config.vocab_size in a gin file of your own, or take another vocabulary",
            )
        return write.Student(f"include {options.student!r}", None, vocabulary, 0)
    from cot_flax.weights import tokenizer_files
    from cot_flax.weights.opening import open_source

    source = open_source(options.student)
    if source.student.family != "t5":
        raise UserError(
            f"{options.student}, a student of the family {source.student.family}",
            "a T5 or Flan-T5",
            "write a recipe for it: see docs/distill.md",
        )
    vocabulary = tokenizer_files.find(source, options.vocabulary)
    tokenizer_files.read(source, vocabulary)  # one of another student is found now
    parameters = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    model = model_lines(dataclasses.asdict(source.student.config))
    return write.Student(model, options.student, _vocabulary(str(vocabulary)), parameters)


def model_lines(config: Mapping) -> str:
    """Lines of gin that make a T5 of a shape: a file of models/ that has it, or its numbers."""
    known = sorted((draft.gin_root() / "models").glob("*.gin"))
    of_t5_first = sorted(known, key=lambda path: not path.stem.startswith("t5"))
    for path in (path for path in of_t5_first if path.stem not in _FAMILIES):
        shape = _shape(draft.read([str(path)]))
        if all(_same(shape[name], config[name]) for name in _SHAPE):
            return f"include 'models/{path.name}'"
    family = "t5_1_0" if config["logits_via_embedding"] else "t5_1_1"
    numbers = "\n".join(f"  {name} = {config[name]!r}" for name in _SHAPE)
    return (
        f"from cot_flax.students import t5\ninclude 'models/{family}.gin'\nt5.T5Config:\n{numbers}"
    )


def _shape(read: draft.Draft) -> dict[str, Any]:
    """The numbers of the T5 that gin files make."""
    from cot_flax.students.t5.config import T5Config

    given = {
        parameter: read.resolved(binding.value)[1]
        for (_, _, owner, parameter), binding in read.parameters.items()
        if owner == "T5Config"
    }
    return {name: (dataclasses.asdict(T5Config()) | given)[name] for name in _SHAPE}


def _same(one, other) -> bool:
    as_list = [list(value) if isinstance(value, (list, tuple)) else value for value in (one, other)]
    return as_list[0] == as_list[1]


def _vocabulary(path: str) -> str:
    if not path_at(path).is_file():
        raise UserError(f"no file {path}", "a SentencePiece model", "correct --vocabulary")
    if not path.endswith(".model"):
        raise UserError(
            f"the tokenizer {path}", "a SentencePiece model", "take a T5 with a spiece.model"
        )
    return path


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
        shown: worked examples for the teacher.
        chains: to ask for, a question.
        held_out: how questions were held out.
        folder: of the scenario, where it is one; "" of a file.
    """

    name: str
    splits: Splits
    answers: GoldKind
    shown: int
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
        shown=len(write.exemplars(splits.train)),
        chains=write.CHAINS,
        notes=notes + others,
        held_out=f"by question, seed {options.seed}",
    )


def _scenario(options: Options) -> _Asked:
    read, test = read_scenario(options.data), read_test(options.data)
    if options.model is None:
        remedy = "name one: --teacher http://HOST/v1 --model NAME"
        raise UserError(f"the scenario {options.data} without a teacher", "a teacher", remedy)
    train, held_out = (
        [Item(q.id, q.question, q.answer) for q in some] for some in (read.inputs, test)
    )
    settings = read.settings
    kind = "labels" if settings.labels else settings.answer_kind
    return _Asked(
        name=settings.dataset,
        splits=Splits(train, [], held_out),
        answers=GoldKind(kind, settings.labels, "its settings say so"),
        shown=len(read.exemplars),
        chains=settings.samples,
        notes=read.notes,
        held_out="those of its test file",
        folder=options.data.rstrip("/"),
    )


def _chains(items: Sequence[Item]) -> int:
    return sum(len(item.rationales) for item in items)


def _teacher(
    options: Options, asked: _Asked, *, dry_run: bool
) -> tuple[write.Teacher | None, list[str]]:
    """Who is asked, as far as the server has been seen, and what to say of it."""
    if options.model is None:
        return None, []
    out = f"{options.out}/samples.jsonl.gz"
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
        f"instruction and {asked.shown} worked examples"
        if asked.shown
        else "zero-shot chains in two calls each, as paper [3]: no question has a rationale to show"
    )
    teacher = write.Teacher(
        options.model,
        options.url,
        options.chat,
        asked.shown,
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


def _lengths(splits: Splits, vocabulary: str, instruction: str, *, taught: bool) -> dict[str, int]:
    """TASK_FEATURE_LENGTHS that hold the longest question with its instruction, and chain.

    They go up to what is usual; what is longer is counted and left out.
    """
    tokenizer = SentencePieceTokenizer(vocabulary)

    def longest(texts: Sequence[str]) -> int:
        return max((len(tokenizer.encode(text)) for text in texts[:_MEASURED]), default=0)

    items = [item for part in splits for item in part]
    found = {
        "inputs": longest([item.question for item in items]) + longest([instruction]),
        "targets": max(
            longest([chain for item in items for chain in item.rationales]),
            _TAUGHT if taught else 0,
        ),
    }
    return {
        name: min(_LONGEST[name], -(-(count + _ROOM) // 32) * 32) for name, count in found.items()
    }


def _write(
    options: Options,
    text: str,
    files: Mapping[str, str],
    vocabulary: str,
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
    made = {"all": _hash([_essence(text), files]), "text": _hash(text)}
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
