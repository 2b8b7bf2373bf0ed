"""Which of the good samples of one question a student learns from: repetitions, limits, balance.

Two chains reason differently if their sequences of equations differ, however they are worded.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from cot_flax.chains.filtering import Filters
from cot_flax.chains.samples import Sample
from cot_flax.text.answers import extract_answer
from cot_flax.text.equations import Equation, find_equations
from cot_flax.text.numerals import format_number
from cot_flax.text.prompts import normalize_question

NGRAM = 3

Ngrams = frozenset[tuple[str, ...]]


def select(samples: Sequence[Sample], filters: Filters) -> list[str | None]:
    """Returns for each sample the name of the first rule that drops it, or None where it is kept.

    First the samples of an unlabelled question vote, where that is asked for. The rules then go in
    the order of `RULES`, each over what those before it left. What is kept would be kept again.

    Args:
        samples: those samples of one question that `filtering.rejection` does not reject, in order.
        filters: the settings.
    """
    reasons = _minorities(samples, filters)
    for rule in RULES:
        left = [place for place, reason in enumerate(reasons) if reason is None]
        texts = [samples[place].text for place in left]
        for place, reason in zip(left, rule(texts, filters), strict=True):
            reasons[place] = reason
    return reasons


def equation_sequence(text: str) -> tuple[str, ...]:
    """Returns the equations of a chain in order, such as ("48/2=24", "48+24=72").

    Wording, spacing, `$`, units, separators of thousands and GSM8K's `<<...>>` marks do not count.
    Operands and operators do, in their order, and so does the value: a right result, however it is
    rounded, stands as the exact value, a wrong one as it is stated.
    """
    # A step and the mark inside it end in the same result: they are one equation.
    steps = groupby(find_equations(text), key=lambda step: step.results[-1].start)
    return tuple(_canonical(next(same)) for _, same in steps)


def distinct_chains(texts: Iterable[str]) -> int:
    """Counts the chains of a question that differ in their reasoning.

    Ho et al. 2022 call all samples of a temperature of 0.7 diverse reasoning, and count copies.
    """
    return len({_reasoning(text) for text in texts})


def ngrams(normalized: str) -> Ngrams:
    """Returns the different runs of three words of a normalized text, or all of a shorter text.

    A number and an operator are each a word. Words rather than characters, for `24` and `26` share
    half of their characters and mean different things; three of them, so that order counts while
    one changed word spoils no more than three runs of a chain's few dozen. Broder 1997 ("On the
    resemblance and containment of documents") calls them shingles.
    """
    words = normalized.split()
    return frozenset(tuple(words[at : at + NGRAM]) for at in range(max(1, len(words) - NGRAM + 1)))


def jaccard(one: Ngrams, other: Ngrams) -> float:
    """Returns which share of the n-grams in either set is in both, from 0 to 1."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _minorities(samples: Sequence[Sample], filters: Filters) -> list[str | None]:
    """What the samples of an unlabelled question vote down, each with its answer."""
    if not filters.majority or any(sample.gold_answer for sample in samples):
        return [None] * len(samples)
    answers = [
        extract_answer(sample.text, kind=filters.kind_of(sample), mode="flexible")
        for sample in samples
    ]
    votes = Counter(filter(None, answers)).most_common(2)
    if len(votes) == 2 and votes[0][1] == votes[1][1]:
        return ["no_majority"] * len(samples)
    return [None if votes and answer == votes[0][0] else "minority_answer" for answer in answers]


def _copies(texts: Sequence[str], filters: Filters) -> list[str | None]:
    """Kim et al. 2023, f5: of a rationale that was written twice, no copy is kept.

    The paper looks for copies among all samples; its other rules reject all of them or none.
    """
    if filters.rules != "kim2023":
        return [None] * len(texts)
    times = Counter(filter(None, texts))  # no chain is no copy
    return ["kim2023_f5_repeated" if times[text] > 1 else None for text in texts]


def _repetitions(texts: Sequence[str], filters: Filters) -> list[str | None]:
    if filters.similarity is None:
        return [None] * len(texts)
    kept: dict[str, Ngrams] = {}
    reasons: list[str | None] = []
    for text in texts:
        normalized = normalize_question(text)
        grams = ngrams(normalized)
        reason = None
        if normalized in kept:
            reason = "repeated"
        elif filters.similarity < 1 and _near(grams, kept.values(), filters.similarity):
            reason = "near_identical"
        else:
            kept[normalized] = grams
        reasons.append(reason)
    return reasons


def _unbalanced(texts: Sequence[str], filters: Filters) -> list[str | None]:
    if filters.balance is None:
        return [None] * len(texts)
    return ["unbalanced" if n >= filters.balance else None for n in _occurrences(texts)]


def _over_limit(texts: Sequence[str], filters: Filters) -> list[str | None]:
    """Keeps the first chain of every reasoning in order, then the second of each, and so on."""
    if filters.per_question is None:
        return [None] * len(texts)
    occurrences = _occurrences(texts)
    ranked = sorted(range(len(texts)), key=occurrences.__getitem__)
    kept = set(ranked[: filters.per_question])
    return [None if place in kept else "over_limit" for place in range(len(texts))]


def _near(grams: Ngrams, others: Iterable[Ngrams], similarity: float) -> bool:
    return any(jaccard(grams, other) >= similarity for other in others)


def _occurrences(texts: Sequence[str]) -> list[int]:
    """Returns for each chain how many before it have the same reasoning."""
    seen: Counter[tuple[str, ...]] = Counter()
    occurrences = []
    for text in texts:
        key = _reasoning(text)
        occurrences.append(seen[key])
        seen[key] += 1
    return occurrences


def _reasoning(text: str) -> tuple[str, ...]:
    """Returns what makes a chain's reasoning its own: its equations, or without any its words."""
    return equation_sequence(text) or tuple(normalize_question(text).split())


def _canonical(step: Equation) -> str:
    operands = (
        part.kind if part.value is None else format_number(part.value) for part in step.operands
    )
    return f"{''.join(operands)}={format_number(step.value if step.right else step.stated)}"


# (texts of the chains, settings) -> for each the reason to drop it, or None.
RULES: tuple[Callable[[Sequence[str], Filters], list[str | None]], ...] = (
    _copies,
    _repetitions,
    _unbalanced,
    _over_limit,
)
