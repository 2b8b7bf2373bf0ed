"""The HTML page of a preparation's report, made of page.html.jinja and style.css."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cot_flax
from cot_flax.chains.tally import MASS_BINS, MOST_DROPPED
from cot_flax.reports.pages import template
from cot_flax.reports.preparation.figures import Histogram, of_numbers, of_ranges

TEMPLATE = Path(__file__).parent / "page.html.jinja"
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {
    ord(" "): "▁", ord("\n"): "⏎", ord("\t"): "⇥",
}  # fmt: skip
_UNITS = ("bytes", "kB", "MB", "GB", "TB")
REASONS = {  # what they mean to a reader
    # dropped: filtering, selection and preparation
    "malformed": "Its reader marked it as broken.",
    "empty": "The teacher wrote nothing.",
    "held_out": "Its question is of a split that students are tested on.",
    "truncated": "The teacher was cut off at its token limit.",
    "no_answer": "The chain states no answer of the kind asked for.",
    "wrong_answer": "The chain's answer is not the gold answer.",
    "undecided_answer": "No comparison of its formula with the gold one came to an end.",
    "unlabelled": "There is no gold answer, which these rules need.",
    "unreadable_gold_answer": "The gold answer holds none of the kind asked for.",
    "fu2023_wrong_answer": "Fu et al. 2023: the last number is not the gold answer's.",
    "ho2022_wrong_answer": "Ho et al. 2022: the cleansed answer is not the cleansed gold one.",
    "kim2023_f1_answer_first": "Kim et al. 2023, f1: the first sentence gives the answer away.",
    "kim2023_f2_no_answer": "Kim et al. 2023, f2: the gold answer is not in the rationale.",
    "kim2023_f3_unfinished": "Kim et al. 2023, f3: the rationale ends without punctuation.",
    "kim2023_f5_repeated": "Kim et al. 2023, f5: the rationale was written more than once.",
    "no_logprobs": "It has no log-probabilities, and they were required.",
    "inconsistent_step": "An equation in the chain does not hold.",
    "repeated": "The same words in the same order as another chain of the question.",
    "near_identical": "Its wording is too similar to another chain of the question.",
    "unbalanced": "Enough chains of the question have the same equations.",
    "over_limit": "The question has as many chains as are wanted.",
    "unknown_characters": "The student's vocabulary lacks too many of its characters.",
    "too_long": "The chain or its question has more tokens than allowed.",
    # rejected: records and samples that cannot be read
    "bad_json": "The line is no JSON object.",
    "bad_text": "The line is not UTF-8.",
    "bad_csv": "The row's quotes are not closed as CSV wants.",
    "columns": "The line has not as many columns as the format.",
    "several_turns": "The conversation is more than one question and one answer.",
    "truncated_file": "The file breaks off here; what comes after could not be read.",
    "missing_field": "A field that every record needs is missing.",
    "unknown_field": "It has a field that the format does not know.",
    "answer_kind": "It names an answer kind that does not exist.",
    "duplicate_id": "Another question has the same id.",
    "wrong_type": "A field is of another type than the format says.",
    "lengths_differ": "Not as many log-probabilities as tokens.",
    "tokens_do_not_join": "The tokens do not join to the text.",
    "nan_or_infinite": "A log-probability is not finite.",
    "probability_above_1": "A log-probability is above 0.",
    "mass_above_1": "The probabilities of a token and its alternatives sum to more than 1.",
}


class Kind(NamedTuple):
    """How a kind of position is shown: its title, what marks it beside colour, what it means."""

    title: str
    mark: str
    meaning: str


KINDS = {
    "soft": Kind(
        "soft",
        "",
        "It has the teacher's row: the likeliest next pieces with their probabilities.",
    ),
    "end": Kind(
        "end", "■", "The end of the sequence; the teacher's log-probabilities stop before."
    ),
    "no_token": Kind(
        "no token",
        "∅",
        "No teacher token lies here: the words were added to the chain, or the teacher wrote them "
        "otherwise.",
    ),
    "inside_token": Kind(
        "inside a token",
        "⊂",
        "The piece starts inside a teacher token, where the teacher had nothing to choose.",
    ),
    "several_tokens": Kind(
        "several tokens",
        "+",
        "Several teacher tokens lie on the piece, so that no single row of theirs fits.",
    ),
    "other_string": Kind(
        "other string",
        "≠",
        "The teacher's token is another string than the piece, or the piece is unknown.",
    ),
    "no_logprobs": Kind(
        "no log-probabilities", "", "The whole chain came without log-probabilities."
    ),
}


def render(manifest: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The page as text; `figures` is what `figures.summarize` gave for the manifest."""
    tally = manifest["tally"]
    worst = tally["worst"]
    shown = {example["id"] for example in worst}
    random = [example for example in tally.get("random", []) if example["id"] not in shown]
    named = (visible, percent, decimal, grouped, size, moment, setting)
    return template(TEMPLATE, named).render(
        **figures,
        manifest=manifest,
        settings=manifest["plan"]["settings"],
        histograms=_histograms(figures),
        inconsistent=tally.get("inconsistent", []),
        worst=worst,
        random=random,
        dropped_examples=tally.get("dropped_examples", []),
        most_dropped=MOST_DROPPED,
        shown_kinds=shown_kinds([*worst, *random]),
        reasons=REASONS,
        kinds=KINDS,
        version=cot_flax.__version__,
    )


def visible(text: str) -> str:
    """A token with its white space made visible: "▁" for a space, "⏎" for a newline."""
    return text.translate(_VISIBLE)


def percent(share: float | None) -> str:
    """0.6325 as "63.2%"; what is above 0 and rounds to it as "<0.1%"."""
    if share is None:
        return "–"
    return "<0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def decimal(value: float | None, digits: int = 2) -> str:
    """1234.5 as "1,234.50"."""
    return "–" if value is None else f"{value:,.{digits}f}"


def grouped(number: int) -> str:
    """1234567 as "1,234,567"."""
    return f"{number:,}"


def size(count: float | None) -> str:
    """Bytes in steps of 1,000: 793605 as "793.6 kB"."""
    if count is None:
        return "–"
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000


def moment(nanoseconds: int) -> str:
    """A file's time as "2026-11-22 20:30 UTC"."""
    return datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%d %H:%M UTC")


def setting(value: Any) -> str:
    """A setting's value in words."""
    words = {None: "not set", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def shown_kinds(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kinds that occur in the examples, in the order of the table."""
    found = {kind for example in examples for _, _, kind in example["positions"]}
    return [kind for kind in KINDS if kind in found]


def _histograms(figures: Mapping[str, Any]) -> dict[str, Histogram]:
    bins = {str(i): n for i, n in enumerate(figures["kept_mass"]["bins"])}
    questions, targets = figures["questions"], figures["targets"]
    return {
        "kept_mass": of_ranges(bins, 1, lambda i: f"{i / MASS_BINS:.2f}"),
        "kept_chains": of_numbers(questions["kept_chains"]["counts"]),
        "distinct_chains": of_numbers(questions["distinct_chains"]["counts"]),
        "target_tokens": of_ranges(targets["counts"], targets["bin_tokens"], str),
    }
