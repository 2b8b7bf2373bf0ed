"""Decodes held-out questions and scores them.

`predictions.jsonl` has one line a prediction, `results.json` the accuracies with 95% intervals.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np
import seqio
from jax.experimental import multihost_utils

import cot_flax
from cot_flax import run_folder
from cot_flax.axes import MeshRules
from cot_flax.data.cards import TaskCard
from cot_flax.data.features import fingerprint, tokenizer_of
from cot_flax.data.mixtures import Tasks, find_task, task_names
from cot_flax.data.registration import cot_task, kind_of
from cot_flax.errors import UserError
from cot_flax.evaluation import error_classes
from cot_flax.evaluation.outputs import Outputs, Reporter
from cot_flax.evaluation.summary import summarize
from cot_flax.files import cleared_on_error, is_bucket
from cot_flax.generation.beam import RULES, RuleName
from cot_flax.generation.generator import Beams, Continuation, Generator, place_keys
from cot_flax.generation.sampling import Sampling
from cot_flax.students.student import Student
from cot_flax.text import scoring
from cot_flax.text.answers import MODES, Mode
from cot_flax.training import hosts, interruption, sharding, state
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, load

_DATE = "%Y-%m-%dT%H:%M:%SZ"
_FITS = "lower DECODE_BATCH_SIZE, NUM_SAMPLES or MAX_DECODE_LENGTH, or spread it (MESH_MODEL, FSDP)"
_LISTED = 3  # gold answers in a message


Calculator = Literal["decoding"]


@dataclass(frozen=True)
class Decoding:
    """How answers are made and read.

    Attributes:
        max_tokens: of a chain with its answer; None takes the limit of each task's card.
        batch_size: prompts decoded at once.
        samples: chains a prompt.
        temperature: 0 is greedy.
        top_k: only the k likeliest tokens are drawn; 0 is off.
        top_p: only the fewest likeliest tokens that together have this probability; 1 is off.
        no_repeat_ngram: no so many tokens in a row come twice in an answer; 0 is off.
        min_new_tokens: so many tokens come before the end.
        beams: of beam search, whose best answer counts; 1 is greedy or sampled decoding.
        length_penalty: of beam search; None is the default of its rule.
        beam_rule: "huggingface" or "t5x": whose beam search it is.
        calculator: "decoding" has a calculator write the results behind the student's `=`; None
            leaves them to it.
        seed: of the sampling; a prompt's samples depend on it and on the prompt's place alone.
        mode: of answers.extract_answer: "flexible", "strict" or a paper's rule by name.
    """

    max_tokens: int | None = 256
    batch_size: int = 32
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    min_new_tokens: int = 0
    beams: int = 1
    length_penalty: float | None = None
    beam_rule: RuleName = "huggingface"
    calculator: Calculator | None = None
    seed: int = 0
    mode: Mode = "flexible"

    def __post_init__(self):
        if self.mode not in MODES:
            raise UserError(f"extraction mode {self.mode!r}", f"one of {MODES}", "correct the name")
        if self.beam_rule not in RULES:
            raise UserError(
                f"beam rule {self.beam_rule!r}", f"one of {tuple(RULES)}", "correct the name"
            )
        if self.temperature < 0:
            raise UserError(f"temperature {self.temperature}", "0 or more", "set TEMPERATURE")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}", "1 or more, or 0 to be off", "set TOP_K")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}", "above 0, at most 1", "set TOP_P")
        if self.no_repeat_ngram < 0:
            raise UserError(
                f"no_repeat_ngram {self.no_repeat_ngram}", "1 or more, or 0", "set NO_REPEAT_NGRAM"
            )
        most = self.max_tokens if self.max_tokens is not None else self.min_new_tokens + 1
        if not 0 <= self.min_new_tokens < most:
            raise UserError(
                f"min_new_tokens {self.min_new_tokens} of max_tokens {self.max_tokens}",
                "0 or more, and fewer than the most",
                "set MIN_NEW_TOKENS or MAX_DECODE_LENGTH",
            )
        if self.beams > 1 and (self.no_repeat_ngram or self.min_new_tokens):
            raise UserError(
                f"{self.beams} beams with no_repeat_ngram {self.no_repeat_ngram}, min_new_tokens "
                f"{self.min_new_tokens}",
                "greedy or sampled decoding with these",
                "set NUM_BEAMS=1",
            )
        if self.calculator not in (None, *get_args(Calculator)):
            raise UserError(
                f"calculator {self.calculator!r}", 'None or "decoding"', "correct CALCULATOR"
            )
        if self.beams > 1 and self.calculator:
            raise UserError(
                f"{self.beams} beams with a calculator",
                "greedy or sampled decoding with one",
                "set NUM_BEAMS=1, or CALCULATOR=None",
            )
        if self.beams < 1:
            raise UserError(f"{self.beams} beams", "1 or more", "set NUM_BEAMS=1 to be greedy")
        if self.beams > 1 and (self.samples > 1 or self.temperature > 0):
            raise UserError(
                f"{self.beams} beams, {self.samples} samples, temperature {self.temperature}",
                "1 sample at temperature 0 with beam search, which draws nothing",
                "set NUM_SAMPLES=1 and TEMPERATURE=0, or NUM_BEAMS=1",
            )


@interruption.memory_named(_FITS)
def evaluate(
    *,
    checkpoint_path: str,
    output_dir: str,
    mixture_or_task_name: Tasks,
    split: str = "test",
    decoding: Decoding = Decoding(),
    max_examples: int | None = None,
    overwrite: bool = False,
    mesh: sharding.MeshConfig = sharding.MeshConfig(),  # noqa: B008 (frozen)
    access: Access = Access(),  # noqa: B008 (frozen)
) -> dict:
    """Evaluates a checkpoint on tasks, or on all tasks of mixtures; writes and returns the results.

    What was decoded is in files at once: see `outputs.Outputs`. Called again with the same settings
    it goes on with the questions that are not there; an answer depends on its place alone.

    Args:
        checkpoint_path: a checkpoint of ours, of Hugging Face or its hub, or of T5X.
        max_examples: the first so many of each split; None takes all.
        overwrite: replaces the results that another evaluation left in `output_dir`.
        mesh: the devices, of all processes, share out the prompts and the parameters.
        access: what reading it may do.

    Returns:
        results.json; in a process that is not the first, of the tasks that it helped to decode.

    Raises:
        UserError: no checkpoint, an unknown task, a task of another vocabulary than the checkpoint,
            no examples, gold answers that cannot be read, a folder that cannot be written to or
            that holds the results of another evaluation.
    """
    source = open_source(checkpoint_path, access)
    student = source.student
    tasks = task_names(mixture_or_task_name)
    cards = {task: cot_task(task) for task in tasks}  # all before the first is decoded
    for task, card in cards.items():
        _max_tokens(decoding, card)
        _check_split(task, split)
        _check_vocabulary(task, source)
    facts = {
        "checkpoint": source.place,
        "checkpoint_date": _written(source.place),
        "split": split,
        "decoding": dataclasses.asdict(decoding),
        "max_examples": max_examples,
        "versions": {"cot_flax": cot_flax.__version__, "jax": jax.__version__},
        "date": datetime.now(UTC).strftime(_DATE),
        "cards": {task: card.to_json() for task, card in cards.items()},
        "leaks": _leaks(source.place, cards.values(), split),
    }
    devices = sharding.make_mesh(mesh)
    with cleared_on_error(output_dir):
        outputs = (
            Outputs(output_dir, facts, tasks, overwrite=overwrite) if hosts.is_first() else None
        )
        # What cannot be written or scored should not be decoded first.
        examples = {task: read_examples(task, split, max_examples) for task in tasks}
        check_golds(examples, decoding.mode)
        left = _of_first_process(tasks, [not outputs or task not in outputs.rows for task in tasks])
        summaries = {}
        reporter = Reporter({task: len(examples[task]) for task in left}, quiet=outputs is None)
        with MeshRules(devices, mesh.rules()).active(), reporter:
            if len(left) < len(tasks):
                kept = f"{len(tasks) - len(left)} of {len(tasks)} tasks"
                reporter.say(f"{kept} are in {output_dir}; --overwrite decodes them again")
            abstract = state.abstract_params(student, devices, mesh.rules())
            params = load(source, abstract) if left else {}
            for warning in facts["leaks"]:
                reporter.say(warning)
            for task in left:
                kept = _by_place(outputs.begun(task), examples[task], decoding) if outputs else {}
                places = range(len(examples[task]))
                asked = _of_first_process(places, [place not in kept for place in places])
                reporter.begin_task(task)
                for rows in kept.values():
                    reporter.add(rows)
                with outputs.growing(task) if outputs else contextlib.nullcontext(_ignore) as add:

                    def ended(rows, add=add):
                        add(rows)
                        reporter.add(rows)

                    new = _answer(student, params, task, examples[task], decoding, asked, ended)
                if not (by_place := kept | new):
                    continue  # another process knows them all
                rows = _in_order(by_place)
                summaries[task] = (
                    summarize(rows)
                    | error_classes.summarize(rows, mode=decoding.mode)
                    | count_unknown(task, examples[task])
                )
                if lacking := summaries[task].get("prompts_with_unknown"):
                    reporter.say(
                        f"{lacking:,} of {len(examples[task]):,} prompts of {task} hold characters "
                        "that the student's vocabulary lacks"
                    )
                if outputs:
                    outputs.end_task(task, rows, summaries[task])
        return outputs.results() if outputs else facts | {"tasks": summaries}


def _leaks(checkpoint: str, cards: Iterable[TaskCard], split: str) -> list[str]:
    """A sentence for each data set whose questions the training data give away, or may."""
    known = run_folder.leaks_of(checkpoint)
    warnings = []
    for dataset, may_leak in dict.fromkeys((card.dataset, card.may_leak) for card in cards):
        found = known.get(f"{dataset}/{split}")
        if found and found.any:
            warnings.append(f"{dataset}/{split}: {found}")
        if may_leak:
            warnings.append(f"{dataset} may share questions with its training data: {may_leak}")
    return warnings


def predict(
    student: Student,
    params: dict,
    task: str,
    split: str,
    decoding: Decoding,
    max_examples: int | None = None,
) -> list[dict]:
    """Decodes and scores a split of one task.

    Returns:
        A dict a prediction, in the order of the data: task, dataset, format, role, answer_kind,
        id, question, prompt, gold, sample, text, cut_off (it met the limit of tokens), extracted,
        right, and steps where the data set has them.

    Raises:
        UserError: no limit of tokens, neither of the decoding nor of the task; no examples, or gold
            answers that cannot be read.
    """
    _max_tokens(decoding, cot_task(task))
    examples = read_examples(task, split, max_examples)
    check_golds({task: examples}, decoding.mode)
    places = range(len(examples))
    return _in_order(_answer(student, params, task, examples, decoding, places, _ignore))


def check_golds(examples: Mapping[str, Sequence[Mapping]], mode: str) -> None:
    """Raises UserError, with their number and the first few, where gold answers cannot be read.

    Args:
        examples: by task, as `read_examples` gives them.
        mode: of the decoding; in a paper's own a gold that cannot be read is never matched.
    """
    unreadable: dict[tuple[str, str], str] = {}  # a question of several formats counts once
    for task, some in examples.items():
        card = cot_task(task)
        for example in some:
            gold, id = example["answer"].decode(), example["id"].decode()
            try:
                scoring.score([""], [gold], kind=kind_of(task, example), mode=mode)
            except UserError:
                shown = f"{gold[:80]!r} of {id} in {task} (kind {kind_of(task, example)})"
                unreadable.setdefault((card.dataset, id), shown)
    if unreadable:
        listed = list(unreadable.values())
        dots = "; ..." if len(listed) > _LISTED else ""
        raise UserError(
            f"{len(listed)} gold answers that cannot be read: {'; '.join(listed[:_LISTED])}{dots}",
            "an answer of the task's kind in each",
            "correct the data, or the answer_kind of the task",
        )


def _answer(
    student: Student,
    params: dict,
    task: str,
    examples: Sequence[Mapping],
    decoding: Decoding,
    places: Sequence[int],
    ended: Callable[[list[dict]], None],
) -> dict[int, list[dict]]:
    """The rows of the examples at some places; they go to `ended` as soon as they are decoded."""
    card = cot_task(task)
    by_place: dict[int, list[dict]] = {}

    def score(i: int, drawn: Sequence[Continuation]) -> None:
        by_place[places[i]] = _rows(card, examples[places[i]], drawn, decoding.mode)
        ended(by_place[places[i]])

    if not places:
        return {}
    vocabulary = seqio.get_mixture_or_task(task).output_features["targets"].vocabulary
    beams = Beams(decoding.beams, decoding.length_penalty, decoding.beam_rule)
    Generator(student, params, tokenizer_of(vocabulary)).generate(
        [examples[place]["inputs"].tolist() for place in places],
        max_tokens=_max_tokens(decoding, card),
        sampling=Sampling(*(getattr(decoding, name) for name in Sampling._fields)),
        samples=decoding.samples,
        beams=beams if decoding.beams > 1 else None,
        calculator=decoding.calculator is not None,
        slots=decoding.batch_size,
        keys=place_keys(decoding.seed, len(examples))[np.array(places)],
        ended=score,
    )
    return by_place


def _in_order(by_place: Mapping[int, list[dict]]) -> list[dict]:
    """All first samples in the order of the data, then all second ones, and so on."""
    ordered = [by_place[place] for place in sorted(by_place)]
    return [row for rows in zip(*ordered, strict=True) for row in rows]


def _by_place(
    rows: Iterable[dict], examples: Sequence[Mapping], decoding: Decoding
) -> dict[int, list[dict]]:
    """Rows that were left, by the places of their examples; of those alone that have all samples.

    Examples that are equal in id and prompt have none: their samples cannot be told apart.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, example in enumerate(examples):
        key = example["id"].decode(), example["inputs_pretokenized"].decode()
        places.setdefault(key, []).append(place)
    found: dict[int, list[dict]] = {}
    for row in rows:
        if len(at := places.get((row["id"], row["prompt"]), ())) == 1:
            found.setdefault(at[0], []).append(row)
    return {place: some for place, some in found.items() if len(some) == decoding.samples}


def _rows(card: TaskCard, example: Mapping, drawn: Sequence[Continuation], mode: str) -> list[dict]:
    """A row of `predict` for each continuation of one example."""
    texts = [continuation.text for continuation in drawn]
    gold = example["answer"].decode()
    kind = kind_of(card.name, example)
    scores = scoring.score(texts, [gold] * len(texts), kind=kind, mode=mode)
    steps = {"steps": int(example["steps"])} if "steps" in example else {}
    return [
        {
            "task": card.name,
            "dataset": card.dataset,
            "format": card.format,
            "role": card.role,
            "answer_kind": kind,
            "id": example["id"].decode(),
            "question": example["question"].decode(),
            "prompt": example["inputs_pretokenized"].decode(),
            "gold": gold,
            "sample": sample,
            "text": one.text,
            "cut_off": one.cut_off,
            "extracted": score.extracted,
            "right": score.right,
            **({"undecided": True} if score.undecided else {}),
            **steps,
        }
        for sample, (one, score) in enumerate(zip(drawn, scores, strict=True))
    ]


def count_unknown(task: str, examples: Sequence[Mapping]) -> dict[str, int]:
    """`prompts_with_unknown`, where prompts hold pieces that are the vocabulary's unknown one."""
    unk_id = seqio.get_mixture_or_task(task).output_features["inputs"].vocabulary.unk_id
    count = sum(bool(np.any(example["inputs"] == unk_id)) for example in examples)
    return {"prompts_with_unknown": count} if count else {}


def _written(checkpoint: str) -> str:
    """When the newest file in a checkpoint's folder was written; "" in a bucket.

    A run that was trained again has steps of the same names.
    """
    if is_bucket(checkpoint):
        return ""
    files = [path.stat().st_mtime for path in Path(checkpoint).iterdir() if path.is_file()]
    newest = max(files, default=Path(checkpoint).stat().st_mtime)
    return datetime.fromtimestamp(newest, UTC).strftime(_DATE)


def _of_first_process(things: Sequence, chosen: Sequence[bool]) -> list:
    """What the first process chose: it alone may see the folder with the results."""
    agreed = multihost_utils.broadcast_one_to_all(np.array(chosen, bool))
    return [thing for thing, is_chosen in zip(things, agreed, strict=True) if is_chosen]


def _ignore(rows: list[dict]) -> None:
    del rows


def read_examples(task: str, split: str, max_examples: int | None) -> list[dict]:
    """The examples of a split as NumPy values, uncut.

    Raises:
        UserError: there are none, or no such split.
    """
    if max_examples is not None and max_examples < 1:
        raise UserError(f"max_examples {max_examples}", "1 or more, or None", "set MAX_EXAMPLES")
    _check_split(task, split)
    dataset = find_task(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1
    )
    examples = list(itertools.islice(dataset.as_numpy_iterator(), max_examples))
    if not examples:
        raise UserError(f"no examples of {task} in {split}", "some", "check the data's files")
    return examples


def _max_tokens(decoding: Decoding, card: TaskCard) -> int:
    if decoding.max_tokens is not None:
        return decoding.max_tokens
    if card.max_tokens is None:
        raise UserError(
            f"no max_tokens, neither of the decoding nor of {card.name}",
            "one of the two",
            "set MAX_DECODE_LENGTH",
        )
    return card.max_tokens


def _check_split(task, split):
    splits = find_task(task).splits
    if split not in splits:
        raise UserError(f"split {split!r} of {task}", f"one of {sorted(splits)}", "correct it")


def _check_vocabulary(task, source):
    vocabulary = find_task(task).output_features["targets"].vocabulary
    wanted = fingerprint(vocabulary)
    if source.vocabulary and source.vocabulary != wanted:
        raise UserError(
            f"a checkpoint with vocabulary {source.vocabulary} at {source.place}",
            f"vocabulary {wanted} of {task}",
            "evaluate on tasks of the checkpoint's vocabulary",
        )
    rows, ids = source.student.config.vocab_size, vocabulary.vocab_size
    if ids > rows:
        raise UserError(
            f"{task} with a vocabulary of {ids:,} ids for the {rows:,} rows of {source.place}",
            "a row an id at least",
            "evaluate on tasks of the checkpoint's vocabulary",
        )
