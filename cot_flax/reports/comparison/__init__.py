"""A comparison of runs: one self-contained HTML page, and tables for the terminal.

It reads what `train` and `evaluate` left behind and needs neither JAX nor TensorFlow.
"""

from collections.abc import Mapping
from pathlib import Path

from cot_flax import run_folder
from cot_flax.reports.comparison import page
from cot_flax.reports.comparison.terminal import print_results, print_table

__all__ = ["print_results", "print_table", "write"]


def write(path: Path, runs: Mapping[str, Path]) -> None:
    """Compares runs in one HTML file that needs nothing beside it.

    Args:
        path: the file to write; its folder is made.
        runs: model directories by label, in the order of the page. The price of specialising is
            measured against the first one whose label begins with "base".

    Raises:
        UserError: a folder that is not there, a malformed file, or no results at all.
    """
    found = run_folder.read_runs(runs)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.render(found, path), encoding="utf-8")
