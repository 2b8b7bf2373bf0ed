"""SeqIO preprocessors: from a record to `inputs`, `targets` and teacher rows.

A record has `id`, `question`, `rationale` and `answer` (strings). A record of a store
has instead of a rationale its `targets` (ids with the end id) and the teacher's rows
(store/tasks.py). T is the length of `targets`, K the entries of a row.
"""

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import seqio
import tensorflow as tf

from cot_flax.data.features import special_ids
from cot_flax.text.pieces import ABSENT_ID
from cot_flax.text.prompts import Exemplar, build_input, build_target, ends, is_cot
from cot_flax.text.templates import Template

MOST_DROPPED = 10_000
BLOCK = 64
SIDES = ("inputs", "targets")
Chains = Literal["all", "some"]
Choose = Callable[[str, str, str], Sequence[Exemplar]]
"""From a question, its record's id and its group to the exemplars that go before it."""


class ExemplarRule(Protocol):
    """How the exemplars of prompts are chosen."""

    def choice(self, format: str, layout: "Layout") -> Choose:
        """Chooses by what is bound at this moment; raises UserError where there are too few."""
        ...


class Layout(NamedTuple):
    """How the texts of a task are laid out.

    Attributes:
        template: with the words of the task's wording.
        instruction: before everything else; "" is none.
    """

    template: Template
    instruction: str = ""


_ABSENT = {"teacher_top_ids": ABSENT_ID, "teacher_top_logprobs": 0.0}


def prompter(
    format: str, rule: ExemplarRule | None, layout: Callable[[], Layout]
) -> Callable[..., str]:
    """From a question, its record's id and its group, which may be left out, to the encoder's text.

    Everything is as bound at this moment.

    Raises:
        UserError: there are too few exemplars.
    """
    template, instruction = laid_out = layout()
    choose = rule.choice(format, laid_out) if rule else None
    zero_shot = format.replace("few_shot", "zero_shot")

    def prompt(question: str, id: str, group: str = "") -> str:
        shown = choose(question, id, group) if choose else ()
        asked = format if shown else zero_shot  # the only exemplar may be the question itself
        return build_input(question, asked, shown, template, instruction=instruction)

    return prompt


def write_prompt(
    dataset: tf.data.Dataset,
    *,
    format: str,
    rule: ExemplarRule | None,
    layout: Callable[[], Layout],
    chains: Chains = "all",
    cuts: bool = False,
    group: str = "",
) -> tf.data.Dataset:
    """Adds `inputs_pretokenized`, and `targets_pretokenized` where the record has no tokens.

    Exemplars may depend on the question and the record's id and group alone, so neither sharding
    nor a restart changes them.

    Args:
        rule: how a few-shot format has them chosen, None in a zero-shot one. It is asked when the
            data set is built: an error from inside tf.data reaches nobody in one line.
        layout: gives the task's.
        chains: "all": every record has a rationale; "some": one without is asked for the answer
            alone, whatever the format.
        cuts: adds the texts that `cut` keeps, too: "inputs_end" and "targets_end".
        group: the field by which the rule groups records; "" is none.
    """
    template = layout().template
    answer_only = format.removesuffix("_cot") + "_answer" if is_cot(format) else format
    # An exemplar rule reads its pool: asked once for each format that can come up.
    formats = {format, answer_only} if chains == "some" else {format}
    prompts = {name: prompter(name, rule, layout) for name in formats}

    def of(rationale):
        return format if chains == "all" or rationale.strip() else answer_only

    def inputs(rationale, *texts):
        return prompts[of(rationale)](*(text.decode() for text in texts)).encode()

    def targets(rationale, answer):
        asked = of(rationale)
        return build_target(rationale.decode(), answer.decode(), asked, template).encode()

    def end(side, rationale, answer):
        return ends(answer.decode(), of(rationale), template)[side].encode()

    def add(block):
        answer = block["answer"]
        rationale = block.get("rationale", tf.fill(tf.shape(answer), "-"))
        if "has_chain" in block and "rationale" not in block:  # a stored one is tokens
            rationale = tf.where(block["has_chain"] == 1, rationale, "")
        named = [block[name] for name in ("question", "id", group) if name in block]
        block["inputs_pretokenized"] = _strings(inputs, rationale, *named)
        if "rationale" in block or not is_cot(format):
            block["targets_pretokenized"] = _strings(targets, rationale, answer)
        for side in SIDES if cuts else ():
            place = SIDES.index(side)
            block[f"{side}_end"] = _strings(functools.partial(end, place), rationale, answer)
        return block

    return _in_blocks(dataset, add)


def tokenize(
    dataset: tf.data.Dataset,
    *,
    vocabulary: seqio.Vocabulary,
    format: str,
    rows: Callable[[], int] | None = None,
) -> tf.data.Dataset:
    """Adds token ids, each closed by the end id, and teacher rows [T, K], absent entries at first.

    The texts that `cut` keeps become their numbers of tokens, the end included.

    Args:
        rows: gives K; None where the task has no rows.
    """
    top_k = rows() if rows else 0
    end = special_ids(vocabulary).end  # what is wrong with them is no error from inside tf.data

    def encode(texts):
        ids = _encode(vocabulary, texts)
        return tf.concat([ids, tf.fill([ids.nrows(), 1], end)], axis=1)

    def add(block):
        stored = is_cot(format) and "targets" in block
        block["inputs"] = encode(block["inputs_pretokenized"])
        if stored:
            padded = block["targets"].to_tensor(end)
            block["targets_pretokenized"] = vocabulary.decode_tf(padded)
        else:
            block["targets"] = encode(block["targets_pretokenized"])
        for side in SIDES:
            if f"{side}_end" in block:
                block[f"{side}_end"] = tf.cast(encode(block[f"{side}_end"]).row_lengths(), tf.int32)
        for name in _ABSENT if top_k else ():
            lengths = block["targets"].row_lengths()
            known = [block[name]] if stored else []
            # A stored chain without log-probabilities has no rows either.
            missing = lengths - known[0].row_lengths() if stored else lengths
            absent = tf.fill([tf.reduce_sum(missing), top_k], _ABSENT[name])
            known.append(tf.RaggedTensor.from_row_lengths(absent, missing))
            block[name] = tf.concat(known, axis=1)
        return block

    return _in_blocks(dataset, add)


def widen_rows(dataset: tf.data.Dataset, *, top_k: int) -> tf.data.Dataset:
    """Makes a teacher's rows [T, top_k]: absent entries are added, to nothing where none are."""

    def add(example):
        length = tf.size(example["targets"])
        for name, value in _ABSENT.items():
            rows = example.get(name)
            if rows is None:
                rows = tf.fill([length, 0], value)
            more = [[0, 0], [0, top_k - rows.shape[1]]]
            example[name] = tf.pad(rows, more, constant_values=value)
        return example

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def first_samples(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps one record a question: the answer formats need no second chain (paper [1], 1.1)."""
    return dataset.filter(lambda record: record.get("first", 1) == 1)


def with_chains(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Leaves out the records of a chain format that say that they have none (`has_chain` 0)."""
    if "has_chain" not in dataset.element_spec:
        return dataset
    complaint = "without a chain of thought; expected some to learn from; name their column, or "
    complaint += "train the answer formats alone"
    return filter_or_stop(dataset, lambda record: record["has_chain"] == 1, complaint)


class Cuts:
    """How many examples of each task this process has cut; thread-safe."""

    def __init__(self):
        self._lock, self._counts = threading.Lock(), {}

    def forget(self, task: str) -> None:
        """Counts a task from 0 on."""
        with self._lock:
            self._counts.pop(task, None)

    def counts(self, task: str) -> tuple[int, int, int, int]:
        """Examples read, of which cut in the inputs, in the targets, with too long an answer."""
        return tuple(self._counts.get(task, np.zeros(4, np.int64)).tolist())

    def report(self, task: str) -> str:
        """The counts in words; "" where nothing was cut."""
        read, *found = self.counts(task)
        names = ("inputs", "targets before their answer", "answers too long to be learnt")
        parts = [f"{n:,} {name}" for n, name in zip(found, names, strict=True) if n]
        return f"{task}: cut of {read:,} examples: {', '.join(parts)}" if parts else ""

    def add(self, task: str, *flags_B: np.ndarray) -> None:
        """Counts the examples of a block; says after 1,000, 10,000, ... how many were cut."""
        with self._lock:
            before = self._counts.setdefault(task, np.zeros(4, np.int64))
            self._counts[task] = before + np.array([len(flags_B[0]), *map(np.sum, flags_B)])
            then, now = before[0], self._counts[task][0]
        if any(then < 10**n <= now for n in range(3, 12)) and (text := self.report(task)):
            logging.getLogger(__name__).warning(text)


CUTS = Cuts()


def cut(
    dataset: tf.data.Dataset,
    sequence_length: dict[str, int] | None = None,
    *,
    lengths: Callable[[], Mapping[str, int]],
    task: str,
) -> tf.data.Dataset:
    """Cuts the question of long inputs and the rationale of long targets, and nothing behind them.

    So the words that ask for a chain stay, and the answer does: paper [4]'s rule. A target whose
    answer alone is too long stays as it is, for `drop_overlong`; `CUTS` counts all three.

    Args:
        sequence_length: the run's, where SeqIO knows it; the smaller length counts.
        lengths: gives those of the task, in tokens with the end.
        task: its name, under which is counted.
    """
    limits = {
        side: min(
            length for length in (lengths()[side], (sequence_length or {}).get(side)) if length
        )
        for side in SIDES
    }

    def shorten(block):
        flags = {}
        for side, limit in limits.items():
            size, end = block[side].row_lengths(), tf.cast(block[f"{side}_end"], tf.int64)
            flags[side] = (size > limit) & (end <= limit)
        size = block["targets"].row_lengths()
        lost = (size > limits["targets"]) & ~flags["targets"]
        # Its outputs are used: a function that has none would be left out.
        cut_in, cut_out = tf.numpy_function(
            count, [flags["inputs"], flags["targets"], lost], [tf.bool] * 2, stateful=False
        )
        for side, flag in zip(SIDES, (cut_in, cut_out), strict=True):
            flag = tf.ensure_shape(flag, [None])
            end = tf.cast(block.pop(f"{side}_end"), tf.int64)
            size = block[side].row_lengths()
            places = tf.ragged.range(size)
            head, tail = limits[side] - end, size - end
            keep = ~flag[:, None] | (places < head[:, None]) | (places >= tail[:, None])
            names = (side, *(_ABSENT if side == "targets" else ()))
            for name in names:
                if name in block:
                    block[name] = tf.ragged.boolean_mask(block[name], keep)
        return block

    def count(cut_in, cut_out, lost):
        CUTS.add(task, cut_in, cut_out, lost)
        return cut_in, cut_out

    return _in_blocks(dataset, shorten)


def drop_overlong(
    dataset: tf.data.Dataset, sequence_length: dict[str, int] | None = None
) -> tf.data.Dataset:
    """Drops examples longer than the run's lengths: a cut chain would lose its answer.

    Only the sides that have a length count: SeqIO's decoder-only converters give `targets` alone.
    Our own trainer asks for no lengths here; it drops and counts by itself (batches.py). Nor does
    SeqIO's evaluator where it is to find the greatest length; it needs the default for that. Where
    nothing fits, a data set that repeats for ever would be searched for ever: it stops with
    InvalidArgumentError.
    """
    sides = [side for side in ("inputs", "targets") if side in (sequence_length or {})]
    if not sides:
        return dataset

    def fits(example):
        return tf.reduce_all([tf.size(example[side]) <= sequence_length[side] for side in sides])

    return filter_or_stop(
        dataset,
        fits,
        f"longer than {dict(sequence_length)} tokens; expected some that fit; "
        "raise TASK_FEATURE_LENGTHS or show fewer exemplars",
    )


def filter_or_stop(
    dataset: tf.data.Dataset, keeps: Callable[[dict], tf.Tensor], complaint: str
) -> tf.data.Dataset:
    """Filters; raises InvalidArgumentError where MOST_DROPPED examples in a row are dropped."""

    def judge(dropped, example):
        kept = keeps(example)
        dropped = tf.where(kept, 0, dropped + 1)
        text = f"got {MOST_DROPPED} examples in a row {complaint}"
        with tf.control_dependencies([tf.debugging.Assert(dropped < MOST_DROPPED, [text])]):
            return dropped, (tf.identity(kept), example)

    judged = dataset.scan(tf.constant(0), judge)
    # A line each, or TensorFlow warns that it cannot tell them apart.
    kept = judged.filter(lambda kept, example: kept)
    return kept.map(lambda kept, example: example)


def _in_blocks(dataset: tf.data.Dataset, add: Callable[[dict], dict]) -> tf.data.Dataset:
    """Maps `add` over BLOCK records at a time: a call costs as much as several records do.

    Fields of one length are tensors [BLOCK], those of several RaggedTensors.
    """
    blocks = dataset.ragged_batch(BLOCK)
    return blocks.map(add, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def _encode(vocabulary: seqio.Vocabulary, texts: tf.Tensor) -> tf.RaggedTensor:
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.encode_tf(texts)
    ids = tf.RaggedTensorSpec([None], tf.int32, ragged_rank=0)  # others take one text only
    return tf.map_fn(vocabulary.encode_tf, texts, fn_output_signature=ids)


def _strings(function, *columns):
    def apply(*columns):
        return np.array([function(*values) for values in zip(*columns, strict=True)], object)

    result = tf.numpy_function(apply, columns, tf.string, stateful=False)
    return tf.ensure_shape(result, [None])
