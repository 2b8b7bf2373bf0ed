"""Turns the samples of one question into what a student trains on. Pure, one question at a time.

The same function runs in the processes of `prepare` and in the Beam pipeline.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from cot_flax.chains.alignment import METHODS, Method, align, align_by_bytes
from cot_flax.chains.filtering import KEPT, Filters, rejection
from cot_flax.chains.projection import KINDS, RULES, Projection, Rule, project_top_k
from cot_flax.chains.readers import Format, Raw
from cot_flax.chains.records import BadRecord
from cot_flax.chains.samples import Logprobs, Sample, source_of
from cot_flax.chains.selection import distinct_chains, select
from cot_flax.chains.tally import UNKNOWN_CHARACTERS, Tally
from cot_flax.chains.thoughts import PARTS, Part, chain_of
from cot_flax.errors import UserError
from cot_flax.text.answers import extract_answer
from cot_flax.text.equations import find_equations
from cot_flax.text.pieces import Pieces
from cot_flax.text.plain import Edit, apply
from cot_flax.text.prompts import DEFAULT, build_target
from cot_flax.text.replacement import before_edits, find_edits, unknown_characters
from cot_flax.text.templates import Template
from cot_flax.text.tokenizers import Tokenizer
from cot_flax.text.wording import ENGLISH

_SHOWN_POSITIONS, _SHOWN_CHARACTERS = 120, 1200


@dataclass(frozen=True)
class Preparation:
    """The settings of one preparation.

    Attributes:
        filters: which chains stay.
        chain: of a sample whose teacher thought apart from its text, which part is the chain:
            "text", "thought" or "both"; see `thoughts.chain_of`.
        max_thought_tokens: of a thought in a chain only the sentences within so many tokens of the
            student; None keeps all.
        top_k: teacher entries a target position.
        alignment: "bytes", or "fu2023" for the paper's dynamic program.
        projection: "paths", or "fu2023" for the paper's rule; see `project_top_k`.
        max_target_tokens: longer chains, end included, are dropped as "too_long"; None keeps all.
        max_question_tokens: likewise for questions.
        columns: how chains of one's own call what `readers.NAMES` lists.
        max_unknown: the share of a target's characters, white space aside, that the vocabulary may
            lack after `replacement.find_edits`; chains with more are dropped as
            "unknown_characters".
        template: of the targets, with the words of their closing.

    Raises:
        UserError: an unknown name, top_k below 1, or a share beyond [0, 1].
    """

    filters: Filters = field(default_factory=Filters)
    top_k: int = 5
    alignment: Method = "bytes"
    projection: Rule = "paths"
    max_target_tokens: int | None = None
    max_question_tokens: int | None = None
    columns: Mapping[str, str] | None = None
    max_unknown: float = 0.05
    chain: Part = "text"
    max_thought_tokens: int | None = None
    template: Template = field(default_factory=lambda: DEFAULT.worded(ENGLISH))

    def __post_init__(self):
        if self.top_k < 1:
            raise UserError(f"top_k {self.top_k}", "at least 1", "give the entries a position")
        if not 0 <= self.max_unknown <= 1:
            raise UserError(f"max_unknown {self.max_unknown}", "a share, 0 to 1", "correct it")
        if self.max_thought_tokens is not None and self.max_thought_tokens < 1:
            got = f"max_thought_tokens {self.max_thought_tokens}"
            raise UserError(got, "at least 1", "correct it, or leave it out")
        for name, known in (("alignment", METHODS), ("projection", RULES), ("chain", PARTS)):
            if getattr(self, name) not in known:
                got = f"{name} {getattr(self, name)!r}"
                raise UserError(got, f"one of {', '.join(known)}", "correct the name")


@dataclass(frozen=True)
class Record:
    """A kept chain, as the store holds it.

    Attributes:
        id: names the chain: the sample's id, a slash, its number.
        question: the question.
        answer: the gold answer; where there is none, the one that the chain gives.
        first: whether it is the first kept chain of its question.
        has_chain: whether the targets have one, or the answer alone.
        targets: T ids, closed by the end id.
        projection: the teacher's rows, or None where the teacher gave no log-probabilities.
    """

    id: str
    question: str
    answer: str
    first: bool
    has_chain: bool
    targets: tuple[int, ...]
    projection: Projection | None


@dataclass
class Outcome:
    """What became of some records: nothing is missing, `tally.read` counts them all."""

    kept: list[Record] = field(default_factory=list)
    dropped: list[tuple[str, Sample]] = field(default_factory=list)
    rejected: list[BadRecord] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def prepare_records(
    raws: Iterable[Raw], format: Format, tokenizer: Tokenizer, settings: Preparation
) -> Outcome:
    """Parses and prepares records; those of one question must stand together."""
    outcome = Outcome()
    for _, group in groupby(raws, key=lambda raw: raw.question):
        samples, rules = parse(((format, raw) for raw in group), outcome)
        if samples:
            prepare_question(samples, rules, tokenizer, settings, outcome)
    return outcome


def parse(raws: Iterable[tuple[Format, Raw]], outcome: Outcome) -> tuple[list[Sample], list[str]]:
    """The samples of records and the rules of their files; `outcome.rejected` has the others."""
    samples, rules = [], []
    for format, raw in raws:
        try:
            samples.append(format.parse(raw))
            rules.append(format.rules)
        except BadRecord as error:
            outcome.rejected.append(error)
            outcome.tally.rejected[error.reason] += 1
    return samples, rules


def prepare_question(
    samples: Sequence[Sample],
    rules: Sequence[str],
    tokenizer: Tokenizer,
    settings: Preparation,
    outcome: Outcome,
) -> None:
    """Filters, tokenizes, aligns and projects the samples of one question, into `outcome`.

    Args:
        rules: for each sample those that judge it where the settings' rules are `own`.
    """
    chains = [
        chain_of(
            sample,
            settings.chain,
            answer_kind=settings.filters.kind_of(sample),
            most=settings.max_thought_tokens,
            tokenizer=tokenizer,
            template=settings.template,
        )
        for sample in samples
    ]
    candidates = [_Candidate.of(chain, tokenizer, settings) for chain in chains]
    reasons = [
        _rejection(candidate, settings, settings.filters.of(own))
        for candidate, own in zip(candidates, rules, strict=True)
    ]
    standing = [i for i, reason in enumerate(reasons) if reason is None]
    selected = select([chains[i] for i in standing], settings.filters)
    for i, reason in zip(standing, selected, strict=True):
        reasons[i] = reason
    tally, kept = outcome.tally, []
    for sample, candidate, reason in zip(samples, candidates, reasons, strict=True):
        tally.add_fate(reason or KEPT, source_of(sample.teacher))
        if reason == UNKNOWN_CHARACTERS:
            tally.unknown_dropped.update(candidate.unknown)
        if reason:
            outcome.dropped.append((reason, sample))
            tally.add_dropped(_dropped_example(candidate.sample, reason, settings))
        else:
            outcome.kept.append(_record(candidate, tokenizer, settings, tally, first=not kept))
            kept.append(candidate.sample)
            if sample.thought:
                tally.thoughts.update(_thought_counts(sample.thought, candidate.sample, tokenizer))
    tally.questions += 1
    tally.kept_chains[str(len(kept))] += 1
    texts = [sample.text for sample in kept if not sample.is_direct]
    tally.distinct_chains[str(distinct_chains(texts))] += 1
    tally.datasets.update(sample.dataset for sample in kept)
    tally.teachers.update(sample.teacher["model"] for sample in kept)
    tally.prompts += sum(_hash(sample.prompt_hash) for sample in kept)


@dataclass(frozen=True)
class _Candidate:
    """A sample with the text that the student is to write, and its pieces.

    Attributes:
        sample: the sample.
        answer: its answer, as the student can write it.
        text: the target before its edits, which is the teacher's text as far as that goes.
        edits: what the vocabulary lacks.
        pieces: of the edited text.
        unknown: characters that the vocabulary lacks all the same.
        unknown_share: how many of the target's these are, from 0 to 1.
        question_ids: those of the question, without the end.
    """

    sample: Sample
    answer: str
    text: str
    edits: list[Edit]
    pieces: Pieces
    unknown: Counter
    unknown_share: float
    question_ids: list[int]

    @classmethod
    def of(cls, sample: Sample, tokenizer: Tokenizer, settings: Preparation) -> "_Candidate":
        kind = settings.filters.kind_of(sample)
        answer = sample.gold_answer or extract_answer(sample.text, kind=kind, mode="flexible") or ""
        format = "zero_shot_answer" if sample.is_direct else "zero_shot_cot"
        text = build_target(sample.text, answer, format, settings.template)
        edits = find_edits(text, tokenizer)
        edited = apply(text, edits)
        pieces = tokenizer.pieces(edited)
        unknown = unknown_characters(edited, pieces, tokenizer.unk_id)
        return cls(
            sample=sample,
            answer=apply(answer, find_edits(answer, tokenizer)).strip(),
            text=text,
            edits=edits,
            pieces=pieces,
            unknown=unknown,
            unknown_share=unknown.total() / max(1, len("".join(edited.split()))),
            question_ids=tokenizer.encode(sample.question),
        )


def _rejection(candidate: _Candidate, settings: Preparation, filters: Filters) -> str | None:
    reason = rejection(candidate.sample, filters)
    if reason or not candidate.answer:
        return reason or "no_answer"
    if candidate.unknown_share > settings.max_unknown:
        return UNKNOWN_CHARACTERS
    target_tokens = len(candidate.pieces.ids) + 1
    for tokens, limit in (
        (target_tokens, settings.max_target_tokens),
        (len(candidate.question_ids) + 1, settings.max_question_tokens),
    ):
        if limit is not None and tokens > limit:
            return "too_long"
    return None


def _record(candidate, tokenizer, settings, tally: Tally, *, first: bool) -> Record:
    sample, pieces = candidate.sample, candidate.pieces
    projection = None
    wrong = [step.written(sample.text) for step in find_equations(sample.text) if not step.right]
    if wrong:
        about = {"id": f"{sample.id}/{sample.sample}", "question": sample.question}
        tally.add_inconsistent(about | {"steps": wrong})
    if sample.logprobs is not None:
        tally.add_scores(source_of(sample.teacher), sample.logprobs)
        projection, tokens = _project(candidate, tokenizer, settings)
        tally.add_projection(projection, _example(sample, pieces, projection, tokens, wrong))
    targets = (*pieces.ids, tokenizer.special_ids.end)
    source = source_of(sample.teacher)
    tally.add_target(len(targets), source, projection, has_chain=not sample.is_direct)
    tally.add_characters(
        candidate.unknown,
        _unknown_in_question(candidate, tokenizer) if first else Counter(),
        Counter(edit.name for edit in candidate.edits if edit.name),
    )
    return Record(
        id=f"{sample.id}/{sample.sample}",
        question=sample.question,
        answer=candidate.answer,
        first=first,
        has_chain=not sample.is_direct,
        targets=targets,
        projection=projection,
    )


def _project(candidate, tokenizer, settings) -> tuple[Projection, list[list[str]]]:
    logprobs = candidate.sample.logprobs
    pieces, is_new = before_edits(candidate.pieces, candidate.text, candidate.edits)
    own = "".join(logprobs.tokens)
    if settings.alignment == "fu2023":
        logprobs = _with_certain_words(logprobs, candidate.text[len(own.strip()) :])
        alignment = align(logprobs.tokens, pieces.strings)
    else:
        margin = own[: len(own) - len(own.lstrip())]
        alignment = align_by_bytes(logprobs.tokens, pieces, skipped=len(margin.encode()))
    # The teacher wrote something else there, so that its probabilities are not of this piece.
    alignment = [[] if new else row for row, new in zip(alignment, is_new, strict=True)]
    projection = project_top_k(
        alignment,
        logprobs,
        pieces.ids,
        tokenizer,
        k=settings.top_k,
        rule=settings.projection,
        end_id=tokenizer.special_ids.end,
    )
    return projection, [[logprobs.tokens[i] for i in row] for row in alignment]


def _thought_counts(thought: str, chain: Sample, tokenizer: Tokenizer) -> dict[str, int]:
    """See `Tally.thoughts`."""
    fate = "learnt" if chain.text.startswith(thought) else "shortened"
    fate = "left_out" if chain.thought else fate
    return {fate: 1, "tokens": len(tokenizer.encode(thought))}


def _unknown_in_question(candidate: _Candidate, tokenizer: Tokenizer) -> Counter:
    if tokenizer.unk_id not in candidate.question_ids:
        return Counter()
    question = candidate.sample.question
    return unknown_characters(question, tokenizer.pieces(question), tokenizer.unk_id)


def _with_certain_words(logprobs: Logprobs, added: str) -> Logprobs:
    """Adds what `build_target` appended: the dynamic program needs a token for every piece."""
    tokens = tuple(f" {word}" for word in added.split())
    return Logprobs(
        (*logprobs.tokens, *tokens),
        (*logprobs.token_logprobs, *[0.0] * len(tokens)),
        (*logprobs.top_logprobs, *[{}] * len(tokens)),
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])


def _example(sample, pieces: Pieces, projection: Projection, tokens, wrong: list[str]) -> dict:
    shown = slice(_SHOWN_POSITIONS)
    return {
        "id": f"{sample.id}/{sample.sample}",
        "question": sample.question,
        "source": source_of(sample.teacher),
        "wrong_steps": wrong,
        # Without the end, which is never soft and weighs most in short chains.
        "soft_share": round(float(projection.soft_T[:-1].mean()), 4),
        "positions": [
            [piece, row, KINDS[kind]]
            for piece, row, kind in zip(
                pieces.strings[shown], tokens[shown], projection.kinds_T.tolist(), strict=False
            )
        ],
    }


def _dropped_example(sample: Sample, reason: str, settings: Preparation) -> dict:
    kind = settings.filters.kind_of(sample)
    return {
        "id": f"{sample.id}/{sample.sample}",
        "reason": reason,
        "source": source_of(sample.teacher),
        "question": sample.question[:_SHOWN_CHARACTERS],
        "gold_answer": sample.gold_answer[:_SHOWN_CHARACTERS],
        "read": extract_answer(sample.text, kind=kind, mode="flexible") or "",
        "text": sample.text[:_SHOWN_CHARACTERS],
        "characters": len(sample.text),
    }
