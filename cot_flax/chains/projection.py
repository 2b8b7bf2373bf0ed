"""Projects a teacher's top-k token probabilities onto a student's vocabulary.

Shape letters: T target positions, K entries of a position, M pieces of the text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from typing import Literal, get_args

import numpy as np

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.text.pieces import ABSENT_ID
from cot_flax.text.tokenizers import Tokenizer

Rule = Literal["fu2023", "paths"]
RULES = get_args(Rule)
KINDS = ("soft", "end", "no_token", "inside_token", "several_tokens", "other_string")
"""What a target position is: soft, or one-hot because it is the end of the sequence, has no
teacher token, starts inside one, spans several, or is another string than its token."""

Row = dict[int, float]
_LOGPROB = itemgetter(1)


@dataclass(frozen=True)
class Projection:
    """A teacher's top-k on the T target positions of a student.

    Attributes:
        ids_TK: int32, student ids by falling probability; ABSENT_ID (-1) where there is no entry.
        logprobs_TK: float32 natural logs of the teacher's own probabilities, never renormalised;
            0.0 where the entry is absent.
        kinds_T: int8, indices into KINDS: what a position is and why.
        kept_mass_T: float32, the sum of the row's probabilities. The rest is the tail.
    """

    ids_TK: np.ndarray
    logprobs_TK: np.ndarray
    kinds_T: np.ndarray
    kept_mass_T: np.ndarray

    @property
    def soft_T(self) -> np.ndarray:
        """bool, True where the row is the teacher's, False where it is one-hot."""
        return self.kinds_T == 0


def project_top_k(
    alignment: Sequence[Sequence[int]],
    logprobs: Logprobs,
    student_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    k: int,
    rule: str,
    end_id: int | None,
) -> Projection:
    """Projects the teacher's top-k onto the student's vocabulary.

    By the rule `fu2023`, paper [1]'s, a position is soft where exactly one teacher token is aligned
    and is the same string as the piece, spaces counting as word marks, and the piece is in the
    vocabulary. Its row is the union of the sampled token and the top-k, as far as they are pieces;
    of two that name one id the first counts.

    By the rule `paths`, along token paths, more positions are soft. Let tokens s_1 .. s_n be those
    of the piece, s_1 beginning where the piece does. For every m <= n and every alternative x of
    s_m, the teacher goes on with s_1 .. s_(m-1) x with probability p(s_1) .. p(s_(m-1)) p(x); and
    with s_1 .. s_n with p(s_1) .. p(s_n). These events exclude each other, as any two differ at
    their first different token, and each is one product of the teacher's own conditionals. So the
    probability that the student's next piece is v is the sum over the events whose string starts
    with v: exact wherever that first piece is settled by the string alone. It is settled where the
    next token begins a word, since pieces never reach over a word mark; elsewhere the teacher's
    token boundary is taken for a piece boundary, which is the paper's own assumption for m = n = 1.
    Two cases win most: several tokens that spell one piece (`/`, `2` and `/2`; a newline or the
    start of the text and `If`), and a token that starts with the piece (` apples` gives its mass to
    ` apple`, and ` apple` adds its own). A piece that starts inside a token stays one-hot: its
    probability is a ratio in which the teacher's unknown tail stands below the line. So does one
    whose tokens do not start with it when they are tokenized alone.

    Every other row is one-hot on the student's own id. Of more than k entries the k likeliest stay,
    so the sampled token can fall out: k = 6 holds all of a top-5.

    Args:
        alignment: as `align` or `align_by_bytes` returns it, for the M pieces.
        logprobs: the teacher's, for the text that was aligned.
        student_ids: of the M pieces of that text.
        tokenizer: the student's.
        k: the entries a row.
        rule: one of RULES.
        end_id: appends a one-hot row on this id, where it is not None.

    Returns:
        The projection, of T = M positions, or M + 1 with the end.

    Raises:
        UserError: k is below 1, or alignment and ids differ in length.

    Source: Fu et al. 2023, notebook cell 32. They skip an unknown piece likewise: their tokenizer
    spells it "<unk>", which no teacher token equals.
    """
    if k < 1:
        raise UserError(f"k = {k}", "k of at least 1", "give the number of entries a position")
    if len(alignment) != len(student_ids):
        raise UserError(
            f"{len(alignment)} alignments, {len(student_ids)} ids",
            "one of each a position",
            "tokenize and align the same text",
        )
    if rule == "fu2023":
        id_of = cache(tokenizer.whole_piece)
        rows = [
            _matched_row(tokens, logprobs, own_id, id_of)
            for tokens, own_id in zip(alignment, student_ids, strict=True)
        ]
    else:
        rows = [
            _paths_row(alignment, j, logprobs, student_ids, tokenizer)
            for j in range(len(student_ids))
        ]
    own_ids = list(student_ids)
    if end_id is not None:
        rows.append("end")
        own_ids.append(end_id)
    return _packed(rows, own_ids, k)


def _matched_row(tokens: Sequence[int], logprobs: Logprobs, own_id: int, id_of) -> Row | str:
    """Returns {student id: log-probability}, or the kind of a one-hot position.

    Args:
        id_of: gives the id of a token that is a piece as it stands, None for another one.
    """
    if len(tokens) != 1:
        return "several_tokens" if tokens else "no_token"
    index = tokens[0]
    # An unknown piece's id is no string's, so that it is never met.
    if id_of(logprobs.tokens[index]) != own_id:
        return "other_string"
    row = {own_id: logprobs.token_logprobs[index]}
    for token, logprob in logprobs.top_logprobs[index].items():
        student_id = id_of(token)
        if student_id is not None and student_id not in row:
            row[student_id] = logprob
    return row


def _paths_row(
    alignment: Sequence[Sequence[int]],
    j: int,
    logprobs: Logprobs,
    student_ids: Sequence[int],
    tokenizer: Tokenizer,
) -> Row | str:
    tokens = alignment[j]
    if not tokens:
        return "no_token"
    if j and tokens[0] in alignment[j - 1]:
        return "inside_token"
    before = _before(alignment, j, logprobs, student_ids, tokenizer)
    first_piece = tokenizer.first_piece
    if before is not None:
        first_piece = partial(first_piece, before=before)
    path, path_logprob = "", 0.0
    row: Row = {}
    for index in tokens:
        token = logprobs.tokens[index]
        for other, logprob in logprobs.top_logprobs[index].items():
            if other != token and (student_id := first_piece(path + other)) is not None:
                _add(row, student_id, path_logprob + logprob)
        path += token
        path_logprob += logprobs.token_logprobs[index]
    if first_piece(path) != student_ids[j]:
        return "other_string"
    _add(row, student_ids[j], path_logprob)
    return row


def _before(alignment, j, logprobs, student_ids, tokenizer) -> str | None:
    """What stands before piece j, where that settles how it is tokenized."""
    if j == 0:
        return ""
    first = alignment[j][0]
    after_break = first > 0 and logprobs.tokens[first - 1].endswith("\n")
    # A line break may also be a part of piece j.
    if after_break and tokenizer.id_to_text(student_ids[j - 1]).endswith("\n"):
        return "\n"
    return None


def _add(row: Row, student_id: int, logprob: float) -> None:
    """Adds probabilities, given as logs."""
    if student_id in row:
        low, high = sorted((row[student_id], logprob))
        logprob = high + math.log1p(math.exp(low - high))
    row[student_id] = logprob


def _packed(rows: Sequence[Row | str], own_ids: Sequence[int], k: int) -> Projection:
    ids, logprobs, kinds = [], [], []
    absent_ids, absent_logprobs = [ABSENT_ID] * k, [0.0] * k
    for row, own_id in zip(rows, own_ids, strict=True):
        if isinstance(row, str):
            kinds.append(KINDS.index(row))
            ids += (own_id, *absent_ids[1:])
            logprobs += absent_logprobs
            continue
        kinds.append(0)
        best = sorted(row.items(), key=_LOGPROB, reverse=True)[:k]
        ids += [student_id for student_id, _ in best]
        logprobs += [logprob for _, logprob in best]
        ids += absent_ids[len(best) :]
        logprobs += absent_logprobs[len(best) :]
    ids_TK = np.array(ids, np.int32).reshape(-1, k)
    # Products and sums of the teacher's rounded figures may pass 1 by a little.
    logprobs_TK = np.minimum(np.array(logprobs, np.float32), 0.0).reshape(-1, k)
    kept_mass_T = np.sum(np.exp(logprobs_TK), axis=1, where=ids_TK != ABSENT_ID)
    return Projection(ids_TK, logprobs_TK, np.array(kinds, np.int8), kept_mass_T)
