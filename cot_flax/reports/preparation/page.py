"""The HTML page of a preparation's report, made of page.html.jinja and page.css."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import cot_flax
from cot_flax.chains.tally import MASS_BINS
from cot_flax.reports.preparation import histogram, meanings
from cot_flax.reports.preparation.histogram import Histogram

TEMPLATE = "page.html.jinja"
# The evaluation's report lends its style sheet, which page.css adds to.
_FOLDERS = (Path(__file__).parent, Path(__file__).parent.parent / "comparison")
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {
    ord(" "): "▁", ord("\n"): "⏎", ord("\t"): "⇥",
}  # fmt: skip
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def render(manifest: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The page as text; `figures` is what `figures.summarize` gave for the manifest."""
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            **figures,
            manifest=manifest,
            settings=manifest["plan"]["settings"],
            histograms=_histograms(figures),
            worst=manifest["tally"]["worst"],
            shown_kinds=shown_kinds(manifest["tally"]["worst"]),
            reasons=meanings.REASONS,
            kinds=meanings.KINDS,
            version=cot_flax.__version__,
        )
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


def shown_kinds(worst: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kinds that occur in the examples, in the order of the table."""
    found = {kind for example in worst for _, _, kind in example["positions"]}
    return [kind for kind in meanings.KINDS if kind in found]


def _histograms(figures: Mapping[str, Any]) -> dict[str, Histogram]:
    bins = {str(i): n for i, n in enumerate(figures["kept_mass"]["bins"])}
    questions, targets = figures["questions"], figures["targets"]
    return {
        "kept_mass": histogram.of_ranges(bins, 1, lambda i: f"{i / MASS_BINS:.2f}"),
        "kept_chains": histogram.of_numbers(questions["kept_chains"]["counts"]),
        "distinct_chains": histogram.of_numbers(questions["distinct_chains"]["counts"]),
        "target_tokens": histogram.of_ranges(targets["counts"], targets["bin_tokens"], str),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDERS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = (visible, percent, decimal, grouped, size, moment, setting)
    environment.filters.update({function.__name__: function for function in named})
    return environment
