"""Where records come from: files, lists made in memory (stores: store/tasks.py)."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from cot_flax import hub
from cot_flax.chains.file_names import divided_name, record_files
from cot_flax.chains.readers import parsed
from cot_flax.chains.records import records, reject, require
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.prompts import normalize_question

Records = list[dict]


def records_source(
    make: Callable[[str], Records],
    splits: Iterable[str] | Callable[[], Iterable[str]],
    optional: Iterable[str] = (),
    left_out: Callable[[], Iterable[str]] = tuple,
) -> seqio.DataSource:
    """A source whose `make(split)` returns all records as dicts of strings and numbers.

    The `optional` splits may have no record; they have id, question, rationale and answer then.

    A split may be asked for as TFDS writes slices: `test[:10]`, `train[:5%]`, `train+test[2:]`.

    Args:
        make: returns the records of a split.
        splits: those there are, or what tells it where gin decides.
        left_out: gives the questions that gin keeps from the train split, so that a teacher's
            chains on them are no training data either.
    """
    return _RecordsSource(make, splits, optional, left_out)


class _RecordsSource(seqio.FunctionDataSource):
    def __init__(self, make, splits, optional, left_out):
        self._make, self._optional, self.left_out = make, frozenset(optional), left_out
        self._there = splits if callable(splits) else lambda: splits
        super().__init__(self._read, splits=())

    @property
    def splits(self) -> tuple[str, ...]:
        """The names, as gin binds them at this moment."""
        return tuple(self._there())

    def num_input_examples(self, split: str) -> int:
        return len(self._chosen(split))

    def _read(self, split, shuffle_files, seed=None):
        del shuffle_files, seed
        records = self._chosen(split)
        if not records and split_names(split) <= self._optional:
            names = ("id", "question", "rationale", "answer")
            return tf.data.Dataset.from_tensor_slices(
                {n: tf.constant([], tf.string) for n in names}
            )
        if not records:
            raise UserError(
                f"no records in split {split!r}", "at least one", "check the files and the sizes"
            )
        columns = {name: [record[name] for record in records] for name in records[0]}
        return tf.data.Dataset.from_tensor_slices(columns)

    def _chosen(self, split: str) -> Records:
        if split in self.splits:
            return self._make(split)
        parts = slices(split, self.splits, lambda name: len(self._make(name)))
        return [record for name, kept in parts for record in self._make(name)[kept]]


def slices(
    split: str, splits: Iterable[str], count: Callable[[str], int]
) -> list[tuple[str, slice]]:
    """What `test[:10]` or `train[:5%]+test` asks for: splits, and their records from here to there.

    Args:
        split: as TFDS spells it; percentages are rounded to the closest record.
        splits: those there are.
        count: gives the number of records of one of them.

    Raises:
        UserError: a split that is not there, or a slice that reaches beyond it.
    """
    names = split_names(split) & set(splits)
    infos = {name: SimpleNamespace(num_examples=count(name)) for name in names}
    try:
        if not infos or re.search(r"\dshard", split):  # there are no files to count
            raise ValueError
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError, AssertionError) as error:  # TFDS raises all three
        sizes = ", ".join(f"{name} of {info.num_examples:,}" for name, info in infos.items())
        raise UserError(
            f"split {split!r}" + (f" ({sizes} records)" if sizes else ""),
            f"one of {tuple(splits)} or a slice of it, such as test[:10] or train[:5%]",
            "correct the split",
        ) from error
    return [(part.splitname, slice(part.from_, part.to)) for part in parts]


def split_names(split: str) -> set[str]:
    """The splits that `test[:10]` or `train[:5%]+test` names."""
    return set(re.findall(r"(\w+)(?:\[[^]]*\])?", split))


def read_fields(directory: str, name: str, fields: Iterable[str]) -> Records:
    """Reads the file `name` of a directory (see `record_files`), keeping `fields` of every record.

    Raises:
        UserError: no such file, an empty or a malformed one, or a missing field, with its place.
    """
    return [
        {field: require(record, field, str, place) for field in fields}
        for path in record_files(directory, name)
        for place, record in records(path)
    ]


@dataclass(frozen=True)
class PublicFile:
    """Where the records of a public data set, or of one of its splits, lie.

    Attributes:
        names: of the file without its suffix; the first one that a folder has is read.
        origin: the repository and the licence, for who has to bring it.
        macro: what gin calls the folder.
        hub: the data set's name on the Hugging Face hub; "" where its records are not there.
        patterns: of the split's files there.
    """

    names: tuple[str, ...]
    origin: str
    macro: str
    hub: str = ""
    patterns: tuple[str, ...] = ("*.parquet",)

    def paths(self, directory: str | None) -> list[str]:
        """The files of a folder; without one, those of the hub.

        Raises:
            UserError: they are not there; it says which file is expected, and from where.
        """
        named = " or ".join(f"{name}.json(l)" for name in self.names)
        remedy = f"set {self.macro} to a folder with it"
        if directory is None:
            if not self.hub:
                raise UserError(f"no {self.macro}", f"{named} of {self.origin}", remedy)
            try:
                return hub.data_files(self.hub, patterns=self.patterns)
            except UserError as error:
                why = str(error).removeprefix("got ").partition("; expected ")[0]
                got = f"no {self.macro}, and from the hub: {why}"
                raise UserError(got, f"{named} of {self.origin}", remedy) from error
        there = stems(directory)
        for name in self.names:
            if any(re.fullmatch(rf"{re.escape(name)}(-\d+-of-\d+.*)?", stem) for stem in there):
                return record_files(directory, name)
        raise UserError(f"{directory} without {named}", f"this file of {self.origin}", remedy)

    def read(self, directory: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (place, record) of all its files; errors as `paths`, and of a malformed file."""
        for path in self.paths(directory):
            yield from records(path)


def stems(directory: str | os.PathLike) -> list[str]:
    """The names of a folder's files without their suffixes; [] where there is no folder."""
    try:
        return sorted({divided_name(path)[0] for path in path_at(directory).iterdir()})
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_json(path: str | os.PathLike) -> Any:
    """One JSON value that is no list of records, such as a split's indices.

    Raises:
        UserError: no such file, or no JSON.
    """
    try:
        return json.loads(path_at(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"no file {path}", "this file", "check the folder") from error
    except ValueError as error:
        raise UserError(f"{path}, no JSON ({error})", "JSON", "fetch the file again") from error


def first_field(record: Mapping[str, Any], names: Sequence[str], kind: Any, place: str) -> Any:
    """The field of the first name that the record has.

    Raises:
        UserError: it has none of them, or of another type; the message names the place.
    """
    there = [name for name in names if record.get(name) is not None]
    if not there:
        found = ", ".join(map(str, record)) or "nothing"
        reject("missing_field", place, f"fields {found}", f"one of {', '.join(names)}")
    return require(record, there[0], kind, place)


def number_text(value: float | str) -> str:
    """A gold number as it is written: `43` for 43.0, `9.43`; a text as it is."""
    if isinstance(value, str):
        return value.strip()
    return str(int(value)) if value == int(value) else repr(value)


def with_choices(question: str, choices: Iterable[tuple[str, str]], before: str = "") -> str:
    """A multiple-choice question as Ho et al. 2022 write it (arXiv 2212.10071, appendix).

    Args:
        question: without its choices.
        choices: (letter, text) of each.
        before: stands between the two, such as BIG-bench's `\\nWhich choice is true?`.
    """
    listed = ", ".join(f"({letter}) {text.strip()}" for letter, text in choices)
    return f"{question.strip()}{before} Answer choices: {listed}."


def bigbench_records(directory: str | None, file: PublicFile) -> Records:
    """The items of a BIG-bench task: `question`, `rationale` ("") and `answer`.

    Read are BIG-bench's own JSON, whose choices are put in a random order by seed 0 and into the
    question, BIG-Bench Hard's, and a list of {question, answer}.

    Raises:
        UserError: as `PublicFile.paths`; a file of another form, or an item without an answer.
    """
    found = []
    rng = np.random.RandomState(0)
    for path in file.paths(directory):
        is_json = divided_name(path)[1] == ".json"
        value = read_json(path) if is_json else [record for _, record in records(path)]
        items = value.get("examples") if isinstance(value, dict) else value
        if not isinstance(items, list) or not items:
            raise UserError(f"{path} without examples", "a list of them", "fetch the file again")
        for i, item in enumerate(items):
            found.append(_bigbench(item, f"{path}, example {i}", rng))
    return found


def _bigbench(item: dict, place: str, rng: np.random.RandomState) -> dict:
    question = first_field(item, ("input", "question"), str, place).strip()
    if "target_scores" not in item:
        answer = first_field(item, ("target", "answer"), str, place).strip()
        return {"question": question, "rationale": "", "answer": answer}
    scores = item["target_scores"]
    texts = [str(text) for text in rng.permutation(list(scores))]
    choices = [(chr(ord("A") + i), text) for i, text in enumerate(texts)]
    right = [letter for letter, text in choices if scores[text] == 1]
    if len(right) != 1:
        reject("no_answer", place, f"{len(right)} choices of score 1", "one")
    question = with_choices(question, choices, "\nWhich choice is true?")
    return {"question": question, "rationale": "", "answer": right[0]}


def random_split(count: int, share: float = 0.7, seed: int = 0) -> dict[str, list[int]]:
    """Splits records as Ho et al. 2022 do: indices by `RandomState(seed).permutation`, sorted.

    Args:
        count: of all records.
        share: of the training split, whose size is rounded.
        seed: of NumPy's legacy generator, whose stream is frozen.
    """
    order = np.random.RandomState(seed).permutation(count).tolist()
    train = round(count * share)
    return {"train": sorted(order[:train]), "test": sorted(order[train:])}


def given_rationales(path: str) -> Records:
    """The questions, rationales and answers of a file that `chains.readers` knows, FLAN's TSV say.

    Raises:
        UserError: the file cannot be used; BadRecord at the first record that cannot.
    """
    return [
        {"id": s.id, "question": s.question, "rationale": s.text, "answer": s.gold_answer}
        for s in parsed(path)
    ]


def is_held_out(question: str, share: float) -> bool:
    """Whether a question is of the seeded share that is held out, however it is written."""
    digest = hashlib.blake2b(normalize_question(question).encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
