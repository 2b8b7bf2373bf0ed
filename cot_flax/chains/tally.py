"""What a preparation counted: fates of records, kinds of positions, chains a question."""

import heapq
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from cot_flax.chains.projection import KINDS, Projection

MASS_BINS = 20  # of kept mass, over [0, 1]
LENGTH_BIN = 16  # tokens
MOST_WORST = 5


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
        target_tokens: kept chains by length in tokens, in steps of LENGTH_BIN.
        tokens: of all targets, ends included.
        teachers: kept chains by teacher.
        prompts: the sum of the prompts' hashes over the kept chains.
        worst: the chains with the smallest share of soft positions, side by side.
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
    target_tokens: Counter = field(default_factory=Counter)
    tokens: int = 0
    teachers: Counter = field(default_factory=Counter)
    prompts: int = 0
    worst: list[dict] = field(default_factory=list)

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

    def add(self, other: "Tally") -> None:
        """Adds another tally to this one."""
        for name in (f.name for f in fields(self)):
            if name == "worst":
                continue
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(getattr(other, name))
            else:
                setattr(self, name, mine + getattr(other, name))
        self.worst = _worst([*self.worst, *other.worst])

    def add_projection(self, projection: Projection, example: dict) -> None:
        """Counts the positions of one chain; `example` is what `worst` shows of it."""
        self.kinds.update(KINDS[kind] for kind in projection.kinds_T.tolist())
        soft_mass = projection.kept_mass_T[projection.soft_T]
        bins = np.minimum((soft_mass * MASS_BINS).astype(int), MASS_BINS - 1)
        self.kept_mass.update(str(i) for i in bins.tolist())
        self.mass += float(soft_mass.sum())
        self.worst = _worst([*self.worst, example])

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
        if positions := self.kinds.total():
            soft = self.kinds["soft"]
            lines.append(
                f"{soft:,} of {positions:,} target positions soft ({soft / positions:.1%}), "
                f"mass kept there {self.mass / max(soft, 1):.3f}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """Reads what `to_json` gave, after JSON."""
        return cls(**{name: Counter(v) if isinstance(v, dict) else v for name, v in record.items()})


def _worst(examples: list[dict]) -> list[dict]:
    return heapq.nsmallest(MOST_WORST, examples, key=lambda e: (e["soft_share"], e["id"]))
