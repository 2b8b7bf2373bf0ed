"""The look of all tables on a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def heading(console: Console, text: str) -> None:
    """Prints a line in bold; brackets in it are no markup."""
    console.print(Text(text, style="bold"))


def new_table() -> Table:
    """A table without a frame: a line under its header alone."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
