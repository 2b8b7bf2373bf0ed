"""What the scored predictions of a task come to: pure, and without a model."""

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from cot_flax.evaluation import statistics
from cot_flax.evaluation.statistics import Answered
from cot_flax.text import scoring
from cot_flax.text.answers import MARKED, describe_kind, family, gold_answer
from cot_flax.text.prompts import is_cot
from cot_flax.text.templates import TEMPLATES
from cot_flax.text.wording import ENGLISH, LANGUAGES

_OPENING, _BARE = 3, 12  # words
_CLOSINGS = (
    "answer is",
    *(known.wording.head.strip().casefold() for known in LANGUAGES.values()),
    *(head.casefold() for known in TEMPLATES.values() for head in known.worded(ENGLISH).heads),
)
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese
_LABELS = 20  # in results.json


def summarize(rows: Sequence[Mapping]) -> dict:
    """What `predict`'s rows of one task come to.

    Returns:
        Shares between 0 and 1, and counts:

        - `accuracy`, `accuracy_low`, `accuracy_high`, its 95% interval, `parse_failure_rate` and
          `count`: of all rows, and in `by_steps` by number of steps. Answers to one of the
          `questions`, or of one `cluster` where rows name it, are alike: intervals are those of
          clusters.
        - `undecided`: rows whose comparison was ended without a verdict, where there are some.
        - `strict_accuracy`, `flexible_accuracy`, and `mode_disagreement_rate`, the share of rows in
          which these two do not read the same.
        - `off_format_rate`, the share of chains where an answer alone was asked for, or the
          reverse.
        - Of several samples a question, `maj_at_k` and `pass_at_k`: for some k of them the
          `accuracy`, with its interval, of the most frequent answer and of the best one.
        - Where answers are labels or texts, `labels` has for each of the most frequent ones the
          rows that have it as `gold`, the rows in which it was `given`, and the `right` ones;
          `majority` is the share of the most frequent gold, which a student has right that always
          says the same.
        - `answer_kinds`: those of the rows, as of `answers.describe_kind`.
    """
    steps = sorted({row["steps"] for row in rows if "steps" in row})
    by_steps = {str(n): _accuracy([r for r in rows if r.get("steps") == n]) for n in steps}
    chains = [is_chain(row["text"], row["answer_kind"]) for row in rows]
    asked = [is_cot(row["format"]) for row in rows]
    off_format = sum(map(operator.ne, chains, asked)) / len(rows)
    added = {"off_format_rate": off_format, **_modes(rows), **_samples(rows), **_labels(rows)}
    kinds = map(describe_kind, sorted({row["answer_kind"] for row in rows}))
    return _accuracy(rows) | added | {"by_steps": by_steps, "answer_kinds": list(kinds)}


def cluster_of(row: Mapping) -> str:
    """What its answer is alike with: other draws of a template, or samples of a question."""
    return row.get("cluster", row["id"])


def _accuracy(rows: Sequence[Mapping]) -> dict:
    found = scoring.summarize(
        (row["right"], row["extracted"], row.get("undecided", False)) for row in rows
    )
    totals = Counter(map(cluster_of, rows))
    if len(totals) < len(rows):
        right = Counter(cluster_of(row) for row in rows if row["right"])
        ends = statistics.clustered_interval([right[c] for c in totals], list(totals.values()))
        found |= dict(zip(("accuracy_low", "accuracy_high"), ends, strict=True))
    return found | {"questions": len({row["id"] for row in rows})}


def _modes(rows: Sequence[Mapping]) -> dict:
    """Both of our ways to read, whichever counts."""
    read = {mode: [_read(row, mode) for row in rows] for mode in ("strict", "flexible")}
    shares = {
        f"{mode}_accuracy": sum(score.right for score in scores) / len(rows)
        for mode, scores in read.items()
    }
    differ = sum(a.extracted != b.extracted for a, b in zip(*read.values(), strict=True))
    return shares | {"mode_disagreement_rate": differ / len(rows)}


def _read(row: Mapping, mode: str) -> scoring.Score:
    """A gold that cannot be read, which a paper's own mode allows, is never met."""
    kind = row["answer_kind"]
    if gold_answer(row["gold"], kind=kind) is None:
        return scoring.Score(False, None)
    return scoring.score([row["text"]], [row["gold"]], kind=kind, mode=mode)[0]


def _samples(rows: Sequence[Mapping]) -> dict:
    """`maj_at_k` and `pass_at_k` for k of 1, 2, 4, ... and all samples."""
    of_question = defaultdict(list)
    clusters = {row["id"]: cluster_of(row) for row in rows}
    for row in rows:
        of_question[row["id"]].append(Answered(row["extracted"], row["right"]))
    count = min(map(len, of_question.values()))
    if count == 1:
        return {}
    found: dict[str, dict] = {"maj_at_k": {}, "pass_at_k": {}}
    for k in sorted({2**i for i in range(count.bit_length())} | {count}):
        chances = {
            "maj_at_k": {id: statistics.majority_at_k(some, k) for id, some in of_question.items()},
            "pass_at_k": {
                id: statistics.pass_at_k(len(some), sum(answer.right for answer in some), k)
                for id, some in of_question.items()
            },
        }
        for name, by_id in chances.items():
            right, total = Counter(), Counter()
            for id, chance in by_id.items():
                right[clusters[id]] += chance
                total[clusters[id]] += 1
            ends = statistics.clustered_interval([right[c] for c in total], list(total.values()))
            mean = sum(by_id.values()) / len(by_id)
            found[name][str(k)] = {
                "accuracy": mean, "accuracy_low": ends[0], "accuracy_high": ends[1]
            }  # fmt: skip
    return found


def is_chain(text: str, kind: str = "number") -> bool:
    """Whether an output reasons: more than three words before its last `answer is`.

    `So the answer is` has fewer. Without this sentence, in the language or the template of the
    task, or a marker of its answer kind, more than a dozen words are taken for a chain that did not
    end.
    """
    text = text.casefold()
    own = MARKED[kind].markers if kind in MARKED else ()
    if (end := max(map(text.rfind, (*_CLOSINGS, *own)))) >= 0:
        return _words(text[:end]) > _OPENING
    return _words(text) > _BARE


def _words(text: str) -> int:
    """Scripts without spaces have two characters a word."""
    return len(re.findall(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]+", text))


def _labels(rows: Sequence[Mapping]) -> dict:
    if any(family(row["answer_kind"]) == "number" for row in rows):
        return {}
    golds = [gold_answer(r["gold"], kind=r["answer_kind"]) for r in rows]
    counts, given = Counter(golds), Counter(row["extracted"] for row in rows)
    right = Counter(gold for gold, row in zip(golds, rows, strict=True) if row["right"])
    for unread in (counts, given):
        del unread[None]
    names = [name for name, _ in (counts + given).most_common(_LABELS)]
    labels = {n: {"gold": counts[n], "given": given[n], "right": right[n]} for n in names}
    return {"majority": max(counts.values(), default=0) / len(rows), "labels": labels}
