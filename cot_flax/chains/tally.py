"""What a preparation counted: fates of records, kinds of positions, chains a question."""

import hashlib
import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from cot_flax.chains.projection import KINDS, Projection
from cot_flax.chains.samples import Logprobs

MASS_BINS = 20  # of kept mass, over [0, 1]
LENGTH_BIN = 16  # tokens
MOST_WORST, MOST_INCONSISTENT, MOST_RANDOM = 5, 10, 5
MOST_DROPPED = 2  # of a reason
MOST_NAMED = 10  # characters in a line
TIE = 1e-3  # nats by which a likeliest token may be below its own entry: servers round
LEAST_SCORED = 30  # With fewer tokens of a source, how likely they are says nothing.
UNKNOWN_CHARACTERS = "unknown_characters"
"""Why a chain is dropped that the vocabulary cannot write."""


@dataclass
class Tally:
    """Counts that add up over shards.

    Attributes:
        fates: records by what became of them: "kept" or the reason.
        rejected: records that could not be read, by reason.
        questions: questions with a readable sample.
        kept_chains: questions by their number of kept chains.
        distinct_chains: questions by the number of different equation sequences among these.
        kinds: target positions of chains with log-probabilities, by projection.KINDS.
        kept_mass: soft positions by kept mass, in MASS_BINS equal bins.
        mass: the sum of the kept mass over the soft positions.
        one_hot_chains: kept chains without log-probabilities.
        direct: kept records without a chain, of which the answer alone is learnt.
        target_tokens: kept chains by length in tokens, in steps of LENGTH_BIN.
        tokens: of all targets, ends included.
        teachers: kept chains by teacher.
        datasets: kept chains by data set.
        sources: by `samples.source_of`, what became of its records, as in `fates`.
        source_scored: kept chains with log-probabilities, by source.
        source_tokens: of the kept chains' targets, ends included, by source.
        source_soft: soft positions among these, by source.
        thoughts: kept chains whose teacher thought apart from the text: "left_out" of the chain,
            "learnt", "shortened" (learnt in part); and of these thoughts the student's "tokens".
        scored: teacher's tokens with a log-probability in kept chains, by `source_of`.
        millinats: minus the sum of these log-probabilities; whole numbers add up in any order.
        ranked: those of the tokens that have alternatives.
        likeliest: those of the ranked ones that no alternative exceeds.
        prompts: the sum of the prompts' hashes over the kept chains.
        unknown: characters that the vocabulary lacks, in the targets of kept chains.
        unknown_chains: kept chains with such characters in the target.
        unknown_dropped: such characters of the chains that were dropped for them.
        unknown_in_questions: such characters of the questions that have a kept chain.
        unknown_questions: how many of these questions have any.
        replaced: what `text.replacement` wrote otherwise in the targets, by its name there.
        inconsistent_chains: kept chains with an equation that does not hold.
        inconsistent: the first few of them by their ids, with these equations.
        worst: the chains with the smallest share of soft positions, side by side.
        random: kept chains with log-probabilities, side by side; the ids' hashes draw them.
        dropped_examples: a few dropped chains by reason, drawn alike.
    """

    fates: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    questions: int = 0
    kept_chains: Counter = field(default_factory=Counter)
    distinct_chains: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    kept_mass: Counter = field(default_factory=Counter)
    mass: float = 0.0
    one_hot_chains: int = 0
    direct: int = 0
    target_tokens: Counter = field(default_factory=Counter)
    tokens: int = 0
    teachers: Counter = field(default_factory=Counter)
    datasets: Counter = field(default_factory=Counter)
    sources: dict[str, Counter] = field(default_factory=dict)
    source_scored: Counter = field(default_factory=Counter)
    source_tokens: Counter = field(default_factory=Counter)
    source_soft: Counter = field(default_factory=Counter)
    thoughts: Counter = field(default_factory=Counter)
    scored: Counter = field(default_factory=Counter)
    millinats: Counter = field(default_factory=Counter)
    ranked: Counter = field(default_factory=Counter)
    likeliest: Counter = field(default_factory=Counter)
    prompts: int = 0
    unknown: Counter = field(default_factory=Counter)
    unknown_chains: int = 0
    unknown_dropped: Counter = field(default_factory=Counter)
    unknown_in_questions: Counter = field(default_factory=Counter)
    unknown_questions: int = 0
    replaced: Counter = field(default_factory=Counter)
    inconsistent_chains: int = 0
    inconsistent: list[dict] = field(default_factory=list)
    worst: list[dict] = field(default_factory=list)
    random: list[dict] = field(default_factory=list)
    dropped_examples: list[dict] = field(default_factory=list)

    @property
    def read(self) -> int:
        """All records: kept, dropped and rejected."""
        return self.fates.total() + self.rejected.total()

    @property
    def kept(self) -> int:
        return self.fates["kept"]

    @property
    def dropped(self) -> int:
        return self.fates.total() - self.kept

    @property
    def unknown_share(self) -> float:
        """Which share of the chains that are good but for that hold unknown characters."""
        dropped = self.fates[UNKNOWN_CHARACTERS]
        return (self.unknown_chains + dropped) / max(1, self.kept + dropped)

    @property
    def unknown_questions_share(self) -> float:
        """Which share of the questions with a kept chain hold unknown characters."""
        without = self.kept_chains["0"]
        return self.unknown_questions / max(1, self.questions - without)

    def add(self, other: "Tally") -> None:
        """Adds another tally to this one."""
        for name in (f.name for f in fields(self)):
            if name in _EXAMPLES:
                pick = _EXAMPLES[name]
                setattr(self, name, pick([*getattr(self, name), *getattr(other, name)]))
                continue
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(getattr(other, name))
            elif isinstance(mine, dict):
                for source, fates in getattr(other, name).items():
                    mine.setdefault(source, Counter()).update(fates)
            else:
                setattr(self, name, mine + getattr(other, name))

    def add_fate(self, fate: str, source: str) -> None:
        """Counts what became of one record."""
        self.fates[fate] += 1
        self.sources.setdefault(source, Counter())[fate] += 1

    def add_dropped(self, example: dict) -> None:
        """Shows a dropped chain, perhaps; `example` has its "id" and "reason"."""
        self.dropped_examples = _of_each_reason([*self.dropped_examples, example])

    def add_target(
        self, tokens: int, source: str, projection: Projection | None, *, has_chain: bool = True
    ) -> None:
        """Counts the target of a kept record, of so many tokens with its end."""
        self.tokens += tokens
        self.target_tokens[str(tokens // LENGTH_BIN * LENGTH_BIN)] += 1
        self.source_tokens[source] += tokens
        if not has_chain:
            self.direct += 1
        elif projection is None:
            self.one_hot_chains += 1
        else:
            self.source_scored[source] += 1
            self.source_soft[source] += int(projection.soft_T.sum())

    def add_projection(self, projection: Projection, example: dict) -> None:
        """Counts the positions of one chain; `example` is what pages show of it."""
        self.kinds.update(KINDS[kind] for kind in projection.kinds_T.tolist())
        soft_mass = projection.kept_mass_T[projection.soft_T]
        bins = np.minimum((soft_mass * MASS_BINS).astype(int), MASS_BINS - 1)
        self.kept_mass.update(str(i) for i in bins.tolist())
        self.mass += float(soft_mass.sum())
        self.worst = _worst([*self.worst, example])
        self.random = _at_random([*self.random, example])

    def add_scores(self, source: str, logprobs: Logprobs) -> None:
        """Counts how likely the teacher's tokens are; words that nobody sampled do not count."""
        rows = [
            (value, top)
            for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
            if value or top
        ]
        ranked = [(value, max(top.values())) for value, top in rows if top]
        self.scored[source] += len(rows)
        self.millinats[source] += round(-1000 * sum(value for value, _ in rows))
        self.ranked[source] += len(ranked)
        self.likeliest[source] += sum(value >= best - TIE for value, best in ranked)

    def unlikely(self, max_nats: float, min_likeliest: float) -> str:
        """Says of the first source beyond the bounds how likely its tokens are; else ""."""
        for source, tokens in self.scored.items():
            ranked = self.ranked[source]
            too_low = tokens >= LEAST_SCORED and self.nats(source) > max_nats
            seldom = self.likeliest[source] < min_likeliest * ranked and ranked >= LEAST_SCORED
            if too_low or seldom:
                return self._about_scores(source)
        return ""

    def nats(self, source: str) -> float:
        """A token of a source, on average."""
        return self.millinats[source] / 1000 / max(1, self.scored[source])

    def _about_scores(self, source: str) -> str:
        ranked = self.ranked[source]
        share = f", {self.likeliest[source] / ranked:.1%} are the likeliest there" if ranked else ""
        return (
            f"log-probabilities of {source}: {self.nats(source):.2f} nats a token, of "
            f"{self.scored[source]:,} tokens{share}"
        )

    def add_characters(self, unknown: Counter, in_question: Counter, replaced: Counter) -> None:
        """Counts what the vocabulary lacks of one kept chain and its question."""
        self.unknown.update(unknown)
        self.unknown_in_questions.update(in_question)
        self.unknown_questions += bool(in_question)
        self.unknown_chains += bool(unknown)
        self.replaced.update(replaced)

    def add_inconsistent(self, example: dict) -> None:
        """Counts a kept chain with wrong equations."""
        self.inconsistent_chains += 1
        self.inconsistent = _first([*self.inconsistent, example])

    def summary(self) -> str:
        """The counts in a few lines, of which the first adds up."""
        rejected = self.rejected.total()
        lines = [
            f"{self.read:,} read = {self.kept:,} kept + {self.dropped:,} dropped"
            f" + {rejected:,} rejected"
        ]
        dropped = Counter({name: n for name, n in self.fates.items() if name != "kept"})
        for title, counts in (("dropped", dropped), ("rejected", self.rejected)):
            if counts:
                named = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
                lines.append(f"{title}: {named}")
        if self.direct:
            lines.append(f"kept without a chain, to learn the answer alone: {self.direct:,}")
        for title, counts in (
            ("replaced in the targets", self.replaced),
            (f"unknown to the vocabulary in {self.unknown_chains:,} targets", self.unknown),
            ("unknown to the vocabulary in dropped chains", self.unknown_dropped),
            (
                f"unknown to the vocabulary in {self.unknown_questions:,} questions",
                self.unknown_in_questions,
            ),
        ):
            if counts:
                lines.append(f"{title}: {most(counts)}")
        lines += self._about_thoughts()
        if self.inconsistent_chains:
            lines.append(f"kept with a wrong equation: {self.inconsistent_chains:,} chains")
        lines += map(self._about_scores, self.scored)
        if len(self.sources) > 1:
            for source, fates in sorted(self.sources.items()):
                kept, read = fates["kept"], fates.total()
                lines.append(f"{source}: {kept:,} of {read:,} kept ({kept / read:.1%})")
        if self.kinds:
            soft = self.kinds["soft"]
            lines.append(
                f"{soft:,} of {self.tokens:,} target positions soft ({soft / self.tokens:.1%}), "
                f"mass kept there {self.mass / max(soft, 1):.3f}"
            )
        if self.kinds and self.one_hot_chains:
            lines.append(f"kept without log-probabilities: {self.one_hot_chains:,} chains")
        return "\n".join(lines)

    def _about_thoughts(self) -> list[str]:
        found = dict(self.thoughts)
        if not found:
            return []
        named = {
            "left_out": "without it (--chain learns it)",
            "learnt": "with it",
            "shortened": "with a part of it",
        }
        fates = ", ".join(
            f"{found[name]:,} {text}" for name, text in named.items() if name in found
        )
        chains = sum(found[name] for name in named if name in found)
        mean = found["tokens"] / chains
        return [f"kept, with a thought apart of {mean:,.0f} tokens on average: {fates}"]

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """Reads what `to_json` gave, after JSON."""
        read = {name: Counter(v) if isinstance(v, dict) else v for name, v in record.items()}
        read["sources"] = {name: Counter(v) for name, v in record.get("sources", {}).items()}
        return cls(**read)


def _first(examples: list[dict]) -> list[dict]:
    return heapq.nsmallest(MOST_INCONSISTENT, examples, key=lambda e: e["id"])


def _worst(examples: list[dict]) -> list[dict]:
    return heapq.nsmallest(MOST_WORST, examples, key=lambda e: (e["soft_share"], e["id"]))


def _at_random(examples: list[dict]) -> list[dict]:
    return heapq.nsmallest(MOST_RANDOM, examples, key=_drawn)


def _of_each_reason(examples: list[dict]) -> list[dict]:
    by_reason = defaultdict(list)
    for example in examples:
        by_reason[example["reason"]].append(example)
    return [
        example
        for _, same in sorted(by_reason.items())
        for example in heapq.nsmallest(MOST_DROPPED, same, key=_drawn)
    ]


def _drawn(example: dict) -> tuple[bytes, str]:
    """A key by which the same chains are drawn however the records are spread over shards."""
    id = example["id"]
    return hashlib.blake2b(id.encode(errors="replace"), digest_size=8).digest(), id


_EXAMPLES = {  # fields that hold a few examples, and which of more are kept
    "inconsistent": _first,
    "worst": _worst,
    "random": _at_random,
    "dropped_examples": _of_each_reason,
}


def most(counts: Counter) -> str:
    """The total, and the most frequent: "12 (< 8, ^ 4)"."""
    named = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(MOST_NAMED))
    more = len(counts) - MOST_NAMED
    return f"{counts.total():,} ({named}{f', {more:,} others' if more > 0 else ''})"
