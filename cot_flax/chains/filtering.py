"""Which teacher samples a student may learn from: the rules that judge a sample by itself.

What depends on the other samples of its question stands in `selection`; whether a chain is too
long is known where the student's vocabulary is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cot_flax.chains.samples import Sample
from cot_flax.errors import UserError
from cot_flax.text.answers import (
    MARKED,
    answers_match,
    extract_answer,
    family,
    gold_answer,
    is_kind,
    kind_of_gold,
    kinds_said,
    marked_kind,
)
from cot_flax.text.equations import find_equations
from cot_flax.text.formulas import Undecided

KEPT = "kept"
Rules = Literal["own", "default", "fu2023", "ho2022", "kim2023", "none"]
OWN = "own"
BY_GOLD = "gold"
UNREADABLE_GOLD = "unreadable_gold_answer"
"""Why a chain is dropped whose gold answer is none of its kind."""


@dataclass(frozen=True)
class Filters:
    """The settings of one filtering; in quotes, the reasons that a setting gives.

    Whatever they are, a "malformed" (by its reader) and an "empty" chain are rejected. A record of
    a question and its answer alone (`Sample.is_direct`) has no chain to judge: only its gold
    answer, its split and its lack of log-probabilities count.

    Attributes:
        rules: whose rules judge the answer and the text, a name of `RULES`:
            `default`: not cut at the token limit; an answer, and where the gold one is known the
                same (`extract_answer`'s flexible mode). Magister et al. 2022 (2212.08410) ask for
                no more.
            `fu2023`: the last number is the gold answer's last (2301.12726, code `test_answer`).
            `ho2022`: the cleansed answer is the cleansed gold one (2212.10071, `Evaluator`).
            `kim2023`: f1, f2, f3 and f5 of the paper's `filter` (2305.14045), for a rationale that
                was written with the answer in sight. Their `filter_instance` (`[Answer]` and
                `[Rationale]` within, over 25 characters) is for whole examples, not rationales.
            `none`: no rule of this kind.
            `own`: those that a record's file has by default, `readers.Format.rules`; `of` puts them
                in its place.
        answer_kind: the kind of the answers: "number", "choice", "yes_no" or "text", one that was
            added, or "gold": of each sample the kind that its gold answer looks like
            (`answers.kind_of_gold`). A sample that says its kind itself is judged by that.
        held_out_splits: drop chains whose sample says that its question is of one of these splits,
            on which a student is to be tested: "held_out".
        require_logprobs: drop chains without log-probabilities, which a run with KL needs:
            "no_logprobs".
        majority: of a question without a gold answer, keep only the chains whose answer more of
            its samples give than any other: "minority_answer", and "no_majority" where none is
            (self-consistency; Wang et al. 2022, 2203.11171).
        consistent: drop chains with an equation that does not hold: "inconsistent_step".
        similarity: drop a chain whose word n-grams have at least this Jaccard similarity, in
            (0, 1], with those of an earlier kept one of the question: "near_identical". 1.0 drops
            only the same words in the same order: "repeated". None drops neither, as Fu et al. and
            Ho et al. do.
        per_question: the most chains of a question, those that reason differently first:
            "over_limit".
        balance: the most chains of a question with the same sequence of equations, so that its
            weight grows with its different solutions, not with how easy it is: "unbalanced".

    Raises:
        UserError: an unknown name, or a number out of its range.
    """

    rules: Rules = "default"
    answer_kind: str = "number"
    held_out_splits: Sequence[str] = ("validation", "test")
    require_logprobs: bool = False
    majority: bool = False
    consistent: bool = False
    similarity: float | None = 1.0
    per_question: int | None = None
    balance: int | None = None

    def __post_init__(self):
        names = not isinstance(self.held_out_splits, str)
        self._check("held_out_splits", names, "names of splits in brackets")
        object.__setattr__(self, "held_out_splits", tuple(self.held_out_splits))  # JSON has lists
        self._check("rules", self.rules in (OWN, *RULES), f"one of {(OWN, *RULES)}")
        known = self.answer_kind == BY_GOLD or is_kind(self.answer_kind)
        self._check("answer_kind", known, f"{BY_GOLD}, or {kinds_said()}")
        similarity = 1.0 if self.similarity is None else self.similarity
        self._check("similarity", 0 < similarity <= 1, "a number in (0, 1], or None")
        for name in ("per_question", "balance"):
            most = getattr(self, name)
            right = most is None or (isinstance(most, int) and most >= 1)
            self._check(name, right, "an integer from 1, or None")

    def of(self, rules: str) -> "Filters":
        """These settings for the records of a file that has these rules by default."""
        return replace(self, rules=rules) if self.rules == OWN else self

    def kind_of(self, sample: Sample) -> str:
        """The kind of a sample's answer."""
        own = sample.answer_kind
        if not own and self.answer_kind == BY_GOLD:
            own = kind_of_gold(sample.gold_answer)
        if not own:
            return self.answer_kind
        marked = MARKED.get(self.answer_kind)
        return marked_kind(own, marked.markers, marked.stop) if marked else own

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise UserError(f"{name} = {getattr(self, name)!r}", expected, "correct the setting")


def rejection(sample: Sample, filters: Filters) -> str | None:
    """Returns the name of the first rule that the sample breaks, or None where it breaks none.

    Args:
        filters: whose rules are not `own`.
    """
    judged = RULES[filters.rules]
    if sample.is_direct:
        judged = tuple(rule for rule in judged if rule[0] in _OF_GOLD)
    rules = (*_FIRST, *judged, *_LAST)
    return next((reason for reason, breaks in rules if breaks(sample, filters)), None)


def _malformed(sample: Sample, filters: Filters) -> bool:
    return sample.finish_reason == "malformed"


def _empty(sample: Sample, filters: Filters) -> bool:
    return not sample.text.strip() and not sample.is_direct


def _held_out(sample: Sample, filters: Filters) -> bool:
    return sample.split in filters.held_out_splits


def _unlabelled(sample: Sample, filters: Filters) -> bool:
    return not sample.gold_answer


def _truncated(sample: Sample, filters: Filters) -> bool:
    return sample.finish_reason == "length"


def _unreadable_gold(sample: Sample, filters: Filters) -> bool:
    gold, kind = sample.gold_answer, filters.kind_of(sample)
    return bool(gold) and gold_answer(gold, kind=kind) is None


def _no_answer(sample: Sample, filters: Filters) -> bool:
    return extract_answer(sample.text, kind=filters.kind_of(sample), mode="flexible") is None


def _undecided(sample: Sample, filters: Filters) -> bool:
    """A formula whose comparison was ended: it may be right."""
    if family(filters.kind_of(sample)) != "math":
        return False
    try:
        _wrong_answer(sample, filters)
    except Undecided:
        return True
    return False


def _wrong_answer(sample: Sample, filters: Filters) -> bool:
    return bool(sample.gold_answer) and not _right(sample, sample.text, filters, "flexible")


def _fu2023_wrong(sample: Sample, filters: Filters) -> bool:
    return not _right(sample, sample.text, filters, "fu2023")


def _ho2022_wrong(sample: Sample, filters: Filters) -> bool:
    """Reads the first candidate behind the prefix that the teacher was given, else the last one.

    The prefix is the zero-shot teacher's second prompt, or the few-shot exemplars' own wording.
    """
    text = sample.text
    for cut in (text.rpartition("Therefore, the answer is"), text.partition("The answer is")):
        if cut[1]:
            text = f"--> {cut[2]}"  # the prefix of the student, which is what the mode looks for
            break
    return not _right(sample, text, filters, "ho2022")


def _kim2023_answer_first(sample: Sample, filters: Filters) -> bool:
    return sample.gold_answer in sample.text.partition(".")[0]


def _kim2023_no_answer(sample: Sample, filters: Filters) -> bool:
    return sample.gold_answer not in sample.text


def _kim2023_unfinished(sample: Sample, filters: Filters) -> bool:
    return not sample.text.rstrip().endswith((".", ",", "!", "?"))


def _no_logprobs(sample: Sample, filters: Filters) -> bool:
    return filters.require_logprobs and sample.logprobs is None


def _inconsistent(sample: Sample, filters: Filters) -> bool:
    return filters.consistent and not all(step.right for step in find_equations(sample.text))


def _right(sample: Sample, text: str, filters: Filters, mode: str) -> bool:
    kind = filters.kind_of(sample)
    answer = extract_answer(text, kind=kind, mode=mode)
    return answers_match(answer, sample.gold_answer, kind=kind, mode=mode)


_Rule = tuple[str, Callable[[Sample, Filters], bool]]

# (reason, does the sample break the rule?); the first broken rule gives the reason.
_FIRST: tuple[_Rule, ...] = (
    ("malformed", _malformed),
    ("empty", _empty),
    ("held_out", _held_out),
)
RULES: dict[Rules, tuple[_Rule, ...]] = {
    "default": (
        (UNREADABLE_GOLD, _unreadable_gold),
        ("truncated", _truncated),
        ("no_answer", _no_answer),
        ("undecided_answer", _undecided),
        ("wrong_answer", _wrong_answer),
    ),
    "fu2023": (("unlabelled", _unlabelled), ("fu2023_wrong_answer", _fu2023_wrong)),
    "ho2022": (("unlabelled", _unlabelled), ("ho2022_wrong_answer", _ho2022_wrong)),
    "kim2023": (
        ("unlabelled", _unlabelled),
        ("kim2023_f1_answer_first", _kim2023_answer_first),
        ("kim2023_f2_no_answer", _kim2023_no_answer),
        ("kim2023_f3_unfinished", _kim2023_unfinished),
    ),
    "none": (),
}
_OF_GOLD = {UNREADABLE_GOLD}
_LAST: tuple[_Rule, ...] = (("no_logprobs", _no_logprobs), ("inconsistent_step", _inconsistent))
