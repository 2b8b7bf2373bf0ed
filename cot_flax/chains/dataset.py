"""A data set of one's own, without Python: files and columns become questions in splits.

No record is lost in silence: each is in a split, left out of one, or unusable, and counted so.
"""

import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from cot_flax.chains.file_names import files_of
from cot_flax.chains.readers import Format, find_format, solution
from cot_flax.chains.records import BadRecord, reject
from cot_flax.chains.samples import Sample
from cot_flax.chains.thoughts import PARTS, Part
from cot_flax.errors import UserError
from cot_flax.text.answers import extract_answer, gold_answer, kind_of_golds, label_kind
from cot_flax.text.prompts import normalize_question

SPLITS = ("train", "validation", "test")
_NAMES = {name: name for name in SPLITS} | {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("testing", "heldout"), "test"),
}
_OPEN = ("", "train")  # from which the splits that are missing are drawn
_SHOWN = 3
Files = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Item:
    """One question with an answer.

    Attributes:
        id: names it.
        question: what is asked.
        rationale: the chain that leads to the answer; "" where there is none.
        answer: the gold answer.
        first: 1 for the first item of a question, else 0.
    """

    id: str
    question: str
    rationale: str
    answer: str
    first: int = 1


@dataclass(frozen=True)
class Reading:
    """What was read.

    Attributes:
        splits: the items of each of `SPLITS`, in the order of the files; none is empty.
        answer_kind: of all answers.
        summary: the counts, in a few lines.
    """

    splits: Mapping[str, Sequence[Item]]
    answer_kind: str
    summary: str


@dataclass(frozen=True)
class DataSet:
    """Where a data set is, what its columns mean, and how it is divided.

    A column is the name of a field, or a template of several, such as `{body} {question}`; None is
    the first of the known names (`readers.NAMES`), or a chat's turns. A solution that ends in
    `#### N`, has its answer in `\\boxed` or behind an answer marker needs no column of answers.

    Splits are those of `data` where it maps them to files, else those of a column, else those that
    all the files have in their names, as `train-00000-of-00002.parquet` or `test/0.parquet`. A
    split that is then missing is a share of the training questions, drawn by the seed. All records
    of a question are in one split: one that stands in the test split too is left out of training.

    Attributes:
        name: the data set's.
        data: what `file_names.files_of` takes, or that by split.
        question: the column of questions.
        rationale: that of chains.
        answer: that of gold answers.
        answer_kind: a name of `answers.KINDS`; None is what they look like
            (`answers.kind_of_golds`).
        labels: in place of a kind: all answers that there are.
        split_column: the column that names splits; None is `split`, where there is one.
        validation_share: of the training questions, where no other split is for validation.
        test_share: likewise for the test.
        train_questions: so many questions of what is left for training are drawn, 8 being among the
            32 of the same seed; None is all.
        seed: of these draws.
        chain: of records with a thought apart from the text, which part is the chain: "text",
            "thought" or "both".
        max_unusable: the share of unusable records at which reading stops.

    Raises:
        UserError: no data, a share beyond (0, 1), no training question, an unknown part, or a kind
            beside labels.
    """

    data: Files | Mapping[str, Files] | None
    name: str = "your_data"
    question: str | None = None
    rationale: str | None = None
    answer: str | None = None
    answer_kind: str | None = None
    labels: Sequence[str] = ()
    split_column: str | None = None
    validation_share: float = 0.05
    test_share: float = 0.1
    train_questions: int | None = None
    seed: int = 0
    chain: Part = "text"
    max_unusable: float = 0.05

    def __post_init__(self):
        if not self.data:
            remedy = "pass --gin_file=runs/your_data.gin --gin.DATA=FILES"
            raise UserError(f"no data for {self.name}", "files of your own", remedy)
        for name in ("validation_share", "test_share"):
            if not 0 < (share := getattr(self, name)) < 1:
                raise UserError(
                    f"{name} {share}",
                    "a share between 0 and 1; a question at least is held out",
                    "give a small one, or your own files of this split",
                )
        if self.train_questions is not None and self.train_questions < 1:
            got = f"train_questions {self.train_questions}"
            raise UserError(got, "1 or more, or None for all", "correct TRAIN_QUESTIONS")
        if self.chain not in PARTS:
            got = f"chain {self.chain!r}"
            raise UserError(got, f"one of {', '.join(PARTS)}", "correct the name")
        if self.labels and self.answer_kind:
            raise UserError("labels and an answer kind", "one of the two", "leave one out")

    def read(self) -> Reading:
        """Reads all files.

        Raises:
            UserError: a file that cannot be used, a column that is not there, too many unusable
                records, a split without any, or fewer training questions than are to be drawn.
        """
        return _Reader(self).reading()

    @property
    def columns(self) -> dict[str, str]:
        """As of `readers.find_format`."""
        named = {
            "question": self.question,
            "text": self.rationale,
            "gold_answer": self.answer,
            "split": self.split_column,
        }
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}


@dataclass(slots=True)
class _Row:
    """A record on its way into a split; "" is no split, or no answer, so far.

    `text` is what the answer may stand in, which a thought alone leaves out.
    """

    place: str
    split: str
    id: str
    question: str
    rationale: str
    answer: str
    text: str


@dataclass
class _Reader:
    of: DataSet
    read: int = 0
    unusable: Counter = field(default_factory=Counter)
    first: dict[str, BadRecord] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)
    not_drawn: int = 0
    questions: dict[str, str] = field(default_factory=dict)  # by id
    thoughts: int = 0

    def reading(self) -> Reading:
        rows = list(self._rows())
        kind, why = self._kind(rows)
        rows = [row for row in rows if self._has_answer(row, kind)]
        if self.unusable.total() > self.of.max_unusable * self.read:
            shown = "; ".join(str(error) for error in list(self.first.values())[:_SHOWN])
            raise UserError(
                f"{self.unusable.total():,} of {self.read:,} records of {self.of.name} that cannot "
                f"be used ({dict(self.unusable)}): {shown}",
                f"at most {self.of.max_unusable:.1%}",
                "repair them, name other columns, or raise max_unusable (MAX_UNUSABLE)",
            )
        splits = self._divided(rows)
        return Reading(splits, kind, "\n".join(self._lines(splits, kind, why)))

    def _rows(self) -> Iterator[_Row]:
        for split, file in _divided_files(self.of.data):
            format = find_format(file, self.of.columns)
            for raw in format.read(file):
                self.read += 1
                try:
                    yield self._row(format, format.parse(raw), raw.place, split)
                except BadRecord as error:
                    self._count(error)

    def _count(self, error: BadRecord) -> None:
        self.unusable[error.reason] += 1
        self.first.setdefault(error.reason, error)

    def _row(self, format: Format, sample: Sample, place: str, split: str) -> _Row:
        if not sample.question.strip():
            reject("no_question", place, "an empty question", "a text")
        id = sample.id if "id" in format.names else f"{self.of.name}-{self.read - 1}"
        if self.questions.setdefault(id, sample.question) != sample.question:
            got, wanted = f"another question of the id {id!r}", "a different id for each question"
            reject("duplicate_id", place, got, wanted)
        if not split and "split" in format.names:
            split = _NAMES.get(sample.split.casefold(), "")
            if not split:
                got = f"the split {sample.split!r}"
                reject("unknown_split", place, got, f"one of {', '.join(_NAMES)}")
        found = solution(sample.text)
        answer = sample.gold_answer or found["gold_answer"]
        rationale = self._chain(sample, found["text"])
        has_chains = not format.names.keys().isdisjoint(("text", "messages"))
        # One column is all there is: an answer behind its reasons, or the answer alone.
        if not (answer or has_chains or extract_answer(sample.text, kind="text", mode="strict")):
            answer, rationale = sample.text.strip(), ""
        return _Row(place, split, id, sample.question, rationale, answer, found["text"])

    def _chain(self, sample: Sample, text: str) -> str:
        self.thoughts += bool(sample.thought)
        parts = {"text": [text], "thought": [sample.thought or text]}
        parts["both"] = [sample.thought, text]
        return "\n".join(filter(None, (part.strip() for part in parts[self.of.chain])))

    def _kind(self, rows: Iterable[_Row]) -> tuple[str, str]:
        """The kind of all answers, and how it is known."""
        if self.of.labels:
            return label_kind(self.of.labels), "you say so"
        if self.of.answer_kind:
            return self.of.answer_kind, "you say so"
        said = (row.answer or extract_answer(row.text, kind="text", mode="strict") for row in rows)
        found = kind_of_golds(filter(None, said))
        return found.name, found.why

    def _has_answer(self, row: _Row, kind: str) -> bool:
        """Finds the answer that stands in the chain alone; counts a row without one."""
        try:
            if not row.answer:
                row.answer = extract_answer(row.text, kind=kind, mode="strict") or ""
                if not row.answer:
                    reject("no_answer", row.place, "no answer", "a column of answers, or a marker")
            if not _is_readable(row.answer, kind):
                got = f"the answer {row.answer[:80]!r}"
                reject("unreadable_gold_answer", row.place, got, f"one of kind {kind!r}")
        except BadRecord as error:
            self._count(error)
            return False
        return True

    def _divided(self, rows: Sequence[_Row]) -> dict[str, list[Item]]:
        keys = [normalize_question(row.question) for row in rows]
        drawn = self._drawn(rows, keys)
        items: dict[str, list[Item]] = {split: [] for split in SPLITS}
        home: dict[str, str] = {}  # the split of each question
        for split in reversed(SPLITS):  # what is tested is never trained on
            for row, key in zip(rows, keys, strict=True):
                own = drawn.get(key, "train") if row.split in _OPEN else row.split
                if own != split:
                    continue
                again = key in home
                if home.setdefault(key, split) != split or (again and split != "train"):
                    self.left_out[split, home[key]] += 1
                    continue
                item = Item(row.id, row.question, row.rationale, row.answer, int(not again))
                items[split].append(item)
        for split in {row.split or "train" for row in rows} | set(drawn.values()):
            if not items[split]:
                raise self._empty(split)
        return items | {"train": self._few(items["train"])}

    def _few(self, train: list[Item]) -> list[Item]:
        """The items of the training questions that are drawn, where only some are to be."""
        if self.of.train_questions is None:
            return train
        keys = [normalize_question(item.question) for item in train]
        ranked = sorted(set(keys), key=lambda key: _random_number(f"{self.of.seed}/train/{key}"))
        if self.of.train_questions > len(ranked):
            raise UserError(
                f"train_questions {self.of.train_questions:,} of the {len(ranked):,} training "
                f"questions of {self.of.name}",
                "no more than there are",
                "lower TRAIN_QUESTIONS, or give more data",
            )
        few = set(ranked[: self.of.train_questions])
        kept = [item for item, key in zip(train, keys, strict=True) if key in few]
        self.not_drawn = len(train) - len(kept)
        return kept

    def _drawn(self, rows: Sequence[_Row], keys: Sequence[str]) -> dict[str, str]:
        """The training questions that become the splits which are not there, and which of them."""
        given = {row.split for row in rows}
        held_out = {key for key, row in zip(keys, rows, strict=True) if row.split not in _OPEN}
        pool = {key for key, row in zip(keys, rows, strict=True) if row.split in _OPEN} - held_out
        ranked = sorted(pool, key=lambda key: _random_number(f"{self.of.seed}/{key}"))
        found: dict[str, str] = {}
        for split, share in (
            ("test", self.of.test_share),
            ("validation", self.of.validation_share),
        ):
            if split not in given and pool:
                count, start = max(1, round(share * len(pool))), len(found)
                found |= dict.fromkeys(ranked[start : start + count], split)
        return found

    def _empty(self, split: str) -> UserError:
        return UserError(
            f"no record in the split {split!r} of {self.of.name} ({self.read:,} read, "
            f"{self.unusable.total():,} unusable, {self.left_out.total():,} left out)",
            "one at least",
            "give more data, name the splits' files (DATA = {'train': ..., 'test': ...}), or "
            "correct the column of splits",
        )

    def _lines(self, splits: Mapping[str, Sequence[Item]], kind: str, why: str) -> Iterator[str]:
        parts = " + ".join(f"{len(items):,} {split}" for split, items in splits.items())
        yield (
            f"{self.of.name}: {self.read:,} records read = {parts} + "
            f"{self.left_out.total() + self.not_drawn:,} left out + "
            f"{self.unusable.total():,} unusable; answers are of kind {kind}, for {why}"
        )
        for (split, other), count in self.left_out.items():
            where = "there already" if split == other else f"in {other}, too"
            yield f"left out of {split}: {count:,} whose question stands {where}"
        if self.not_drawn:
            few = f"{self.of.train_questions:,} questions (TRAIN_QUESTIONS)"
            yield f"left out of train: {self.not_drawn:,}, for {few} were drawn by the seed"
        for reason, count in self.unusable.most_common():
            yield f"unusable: {reason} {count:,}, the first: {self.first[reason]}"
        without = sum(not item.rationale for item in splits["train"])
        if without == len(splits["train"]) > 0:
            yield "no record of train has a chain: name RATIONALE, or train answer formats alone"
        elif without:
            yield f"{without:,} of train without a chain: for the answer formats alone"
        if self.thoughts and self.of.chain == "text":
            yield f"{self.thoughts:,} with a thought apart, which is left out (CHAIN learns it)"


@functools.lru_cache(maxsize=2**14)  # few answers come again and again in most data
def _is_readable(answer: str, kind: str) -> bool:
    return gold_answer(answer, kind=kind) is not None


def _divided_files(data: Files | Mapping[str, Files]) -> list[tuple[str, str]]:
    """(split, file) of all files, "" for a split that neither a mapping nor all names tell."""
    if isinstance(data, Mapping):
        if unknown := data.keys() - _NAMES.keys():
            raise UserError(
                f"splits {', '.join(sorted(map(str, unknown)))}",
                f"names of {', '.join(_NAMES)}",
                "correct DATA",
            )
        return [(_NAMES[split], file) for split, named in data.items() for file in files_of(named)]
    files = files_of(data)
    splits = [_split_of(file) for file in files]
    told = "" not in splits and len(set(splits)) > 1 and "train" in splits
    return [(split if told else "", file) for split, file in zip(splits, files, strict=True)]


def _split_of(file: str) -> str:
    """The split that a file has in its name, or else in that of its folder; "" for none."""
    path = PurePath(os.fspath(file))
    for part in (path.name, path.parent.name):
        words = re.split(r"[^a-z]+", part.casefold())
        if found := [_NAMES[word] for word in words if word in _NAMES]:
            return found[0]
    return ""


def _random_number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest())
