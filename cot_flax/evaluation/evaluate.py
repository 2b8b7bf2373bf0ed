"""Decodes held-out questions and scores them.

`predictions.jsonl` has one line a prediction, `results.json` the accuracies with 95% intervals.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import seqio

from cot_flax.axes import MeshRules
from cot_flax.data.batches import find_task
from cot_flax.data.cards import TaskCard
from cot_flax.data.features import fingerprint, tokenizer_of
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.files import make_folder, new_file, write_whole
from cot_flax.generation.beam import RULES
from cot_flax.generation.generator import Beams, Generator, place_keys
from cot_flax.generation.sampling import Sampling
from cot_flax.run_folder import PREDICTIONS, RESULTS
from cot_flax.students.student import Student
from cot_flax.text import scoring
from cot_flax.text.answers import MODES
from cot_flax.training import hosts, sharding, state
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, load


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
        beams: of beam search, whose best answer counts; 1 is greedy or sampled decoding.
        length_penalty: of beam search; None is the default of its rule.
        beam_rule: "huggingface" or "t5x": whose beam search it is.
        seed: of the sampling; a prompt's samples depend on it and on the prompt's place alone.
        mode: of answers.extract_answer: "flexible", "strict" or a paper's rule by name.
    """

    max_tokens: int | None = 256
    batch_size: int = 32
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float | None = None
    beam_rule: str = "huggingface"
    seed: int = 0
    mode: str = "flexible"

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
        if self.beams < 1:
            raise UserError(f"{self.beams} beams", "1 or more", "set NUM_BEAMS=1 to be greedy")
        if self.beams > 1 and (self.samples > 1 or self.temperature > 0):
            raise UserError(
                f"{self.beams} beams, {self.samples} samples, temperature {self.temperature}",
                "1 sample at temperature 0 with beam search, which draws nothing",
                "set NUM_SAMPLES=1 and TEMPERATURE=0, or NUM_BEAMS=1",
            )


def evaluate(
    *,
    checkpoint_path: str,
    output_dir: str,
    mixture_or_task_name: str | Sequence[str],
    split: str = "test",
    decoding: Decoding = Decoding(),
    max_examples: int | None = None,
    mesh: sharding.MeshConfig = sharding.MeshConfig(),  # noqa: B008 (frozen)
    access: Access = Access(),  # noqa: B008 (frozen)
) -> dict:
    """Evaluates a checkpoint on tasks, or on all tasks of mixtures; writes and returns the results.

    Args:
        checkpoint_path: a checkpoint of ours, of Hugging Face or its hub, or of T5X.
        mesh: the devices, of all processes, share out the prompts and the parameters.
        access: what reading it may do.

    Raises:
        UserError: no checkpoint, an unknown task, a task of another vocabulary than the checkpoint,
            a folder that cannot be written to.
    """
    source = open_source(checkpoint_path, access)
    student = source.student
    tasks = task_names(mixture_or_task_name)
    cards = {task: cot_task(task) for task in tasks}  # all before the first is decoded
    for task, card in cards.items():
        _max_tokens(decoding, card)
        _check_split(task, split)
        _check_vocabulary(task, source)
    devices = sharding.make_mesh(mesh)
    if hosts.is_first():
        make_folder(output_dir)  # what cannot be written should not be decoded first
    with MeshRules(devices, mesh.rules()).active():
        params = load(source, state.abstract_params(student, devices, mesh.rules()))
        predictions = {
            task: predict(student, params, task, split, decoding, max_examples) for task in tasks
        }
    results = {
        "checkpoint": source.place,
        "split": split,
        "decoding": dataclasses.asdict(decoding),
        "cards": {task: card.to_json() for task, card in cards.items()},
        "tasks": {task: summarize(rows) for task, rows in predictions.items()},
    }
    if hosts.is_first():
        write(output_dir, itertools.chain(*predictions.values()), results)
    return results


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
        id, question, prompt, gold, sample, text, extracted, right, and steps where the data set
        has them.

    Raises:
        UserError: no limit of tokens, neither of the decoding nor of the task.
    """
    card = cot_task(task)
    max_tokens = _max_tokens(decoding, card)
    examples = read_examples(task, split, max_examples)
    vocabulary = seqio.get_mixture_or_task(task).output_features["targets"].vocabulary
    texts = _decode_all(student, params, examples, vocabulary, decoding, max_tokens)
    golds = [example["answer"].decode() for example in examples]
    rows = []
    for sample in range(decoding.samples):
        drawn = [samples[sample] for samples in texts]
        scores = scoring.score(drawn, golds, kind=card.answer_kind, mode=decoding.mode)
        for example, gold, text, score in zip(examples, golds, drawn, scores, strict=True):
            row = {
                "task": task,
                "dataset": card.dataset,
                "format": card.format,
                "role": card.role,
                "answer_kind": card.answer_kind,
                "id": example["id"].decode(),
                "question": example["question"].decode(),
                "prompt": example["inputs_pretokenized"].decode(),
                "gold": gold,
                "sample": sample,
                "text": text,
                "extracted": score.extracted,
                "right": score.right,
            }
            rows.append(row | ({"steps": int(example["steps"])} if "steps" in example else {}))
    return rows


def summarize(rows: Sequence[Mapping]) -> dict:
    """Accuracy with its interval and parse failures: of all rows, and by number of steps."""

    def summary(chosen):
        return scoring.summarize((row["right"], row["extracted"]) for row in chosen)

    steps = sorted({row["steps"] for row in rows if "steps" in row})
    by_steps = {str(n): summary([r for r in rows if r.get("steps") == n]) for n in steps}
    return summary(rows) | {"by_steps": by_steps}


def write(output_dir: str, rows, results: dict) -> None:
    """Writes predictions.jsonl and results.json, each whole or not at all."""
    folder = make_folder(output_dir)
    with new_file(folder / PREDICTIONS) as path, path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(folder / RESULTS, json.dumps(results, indent=2) + "\n")


def task_names(names: str | Sequence[str]) -> list[str]:
    """The tasks behind names of tasks and mixtures."""
    found = []
    for name in [names] if isinstance(names, str) else names:
        provider = find_task(name)
        found += [task.name for task in getattr(provider, "tasks", [provider])]
    return list(dict.fromkeys(found))


def read_examples(task: str, split: str, max_examples: int | None) -> list[dict]:
    """The examples of a split as NumPy values, uncut."""
    _check_split(task, split)
    dataset = find_task(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1
    )
    return list(itertools.islice(dataset.as_numpy_iterator(), max_examples))


def _decode_all(student, params, examples, vocabulary, decoding, max_tokens) -> list[list[str]]:
    """Texts [examples][samples]."""
    beams = Beams(decoding.beams, decoding.length_penalty, decoding.beam_rule)
    drawn = Generator(student, params, tokenizer_of(vocabulary)).generate(
        [example["inputs"].tolist() for example in examples],
        max_tokens=max_tokens,
        sampling=Sampling(decoding.temperature, decoding.top_k, decoding.top_p),
        samples=decoding.samples,
        beams=beams if decoding.beams > 1 else None,
        slots=decoding.batch_size,
        keys=place_keys(decoding.seed, len(examples)),
    )
    return [[continuation.text for continuation in samples] for samples in drawn]


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
