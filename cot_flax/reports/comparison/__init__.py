"""A comparison of runs: one self-contained HTML page, and tables for the terminal.

It reads what `train` and `evaluate` left behind and needs neither JAX nor TensorFlow.
"""

from collections.abc import Mapping
from pathlib import Path

from cot_flax import run_folder
from cot_flax.files import write_whole
from cot_flax.reports.comparison.terminal import print_differences, print_results, print_table

__all__ = ["print_differences", "print_results", "print_table", "write"]


def write(path: str | Path, runs: Mapping[str, Path], base: str | None = None) -> None:
    """Compares runs in one HTML file that needs nothing beside it.

    Args:
        path: the file to write, on this machine or in a bucket; its folder is made.
        runs: model directories by label, in the order of the page.
        base: the label of the run that the price of specialising is measured against.

    Raises:
        UserError: a folder that is not there, a malformed file, or no results at all.
    """
    from cot_flax.reports.comparison import page  # draws: matplotlib is of no use to other callers

    found = run_folder.read_runs(runs, base)
    write_whole(path, page.render(found, path))
