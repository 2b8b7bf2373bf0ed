"""`cot-flax experiments`: the gin files and examples that come with the package.

Gin is imported where it is needed, so that other verbs start without.
"""

import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from cot_flax.cli.common import gin_names, gin_root
from cot_flax.errors import UserError

_REQUIRED = "%gin.REQUIRED"


class _ShowByDefault(TyperGroup):
    """A name without a word before it is to be shown."""

    def parse_args(self, context, args):
        named = args and args[0] not in self.commands and not args[0].startswith("-")
        return super().parse_args(context, ["show", *args] if named else args)


app = typer.Typer(
    cls=_ShowByDefault, help="List, show and copy the gin files and examples of the package."
)


def _complete_name(incomplete: str) -> list[str]:
    """What is listed, and the short names of what has no namesake."""
    known = [*gin_names(), *(f"examples/{name}" for name in _scenarios())]
    stems = [Path(name).stem for name in known]
    short = [stem for stem in stems if stems.count(stem) == 1]
    return [name for name in (*short, *known) if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        help="As listed, or without folder and ending; your own file, too.",
        autocompletion=_complete_name,
    ),
]


@app.callback(invoke_without_command=True)
def listing(context: typer.Context):
    """List the gin files with the first line of their headers, and the examples.

    Example: cot-flax experiments
    """
    if context.invoked_subcommand is not None:
        return
    root = gin_root()
    for folder in sorted({Path(name).parent.as_posix() for name in gin_names()}, key=_order):
        about = {
            name: _first_line(root / name)
            for name in gin_names()
            if Path(name).parent.as_posix() == folder
        }
        _print_section(folder, about)
    examples = {name: _first_line(_examples() / name / "instruction.md") for name in _scenarios()}
    _print_section("examples", {f"examples/{name}": line for name, line in examples.items()})
    typer.echo(
        "`cot-flax experiments show NAME` prints one with its macros, `copy NAME` copies it."
    )


@app.command()
def show(name: Name):
    """Print a gin file, the macros that must be given, and all macros with their values.

    Example: cot-flax experiments show world_cot_kl
    """
    file = _find(name)
    if file.is_dir():
        for path in sorted(path for path in file.rglob("*") if path.is_file()):
            place = path.relative_to(file.parents[1]).as_posix()
            typer.echo(f"{place}, {path.stat().st_size:,} bytes")
        typer.echo(f"\n{(file / 'instruction.md').read_text('utf-8').rstrip()}")
        return
    macros = Macros(file)
    typer.echo(f"{file.read_text('utf-8').rstrip()}\n")
    required = macros.required()
    _print_rows("Must be given, as --gin.NAME=VALUE:", sorted(required.items()))
    _print_rows("Set by another file, one of:", sorted(macros.wanted().items()))
    _print_rows(
        "All others, with the file that sets them:",
        [
            (name, f"= {macros.resolved(name)}", macros.file(name))
            for name in sorted(macros.names - required.keys())
        ],
    )


@app.command()
def copy(
    name: Name,
    out: Annotated[
        str | None, typer.Option("--out", help="Where to; by default its name, here.")
    ] = None,
):
    """Copy a gin file or an example here, to change it. The copy of a gin file runs as it is.

    Example: cot-flax experiments copy gsm8k_teacher_kl --out my_run.gin
    """
    from cot_flax.files import new_folder, path_at, write_whole

    file = _find(name)
    if file.is_dir():
        place = out or f"examples/{file.name}"
        with new_folder(place) as folder:
            shutil.copytree(file, folder, dirs_exist_ok=True)
        typer.echo(f"{place}: --gin.SCENARIO={place}")
        return
    place = out or file.name
    if path_at(place).exists():
        raise UserError(f"{place}, which exists", "a new file", "choose another --out")
    own = _known_as(file)
    # The commands of its header run the copy.
    text = file.read_text("utf-8").replace(f"--gin_file={own}", f"--gin_file={place}")
    write_whole(place, text)
    typer.echo(f"{place}: --gin_file={place}")


class Macros:
    """What a gin file and those that it includes set and use; the last value counts.

    Raises:
        UserError: a file cannot be read, or includes what is not there.
    """

    def __init__(self, file: Path):
        from cot_flax.configuration import draft

        self._draft = draft.read([str(file)])

    @property
    def names(self) -> set[str]:
        return set(self._draft.macros)

    def file(self, name: str) -> str:
        """The one that sets a macro."""
        return _known_as(Path(self._draft.macros[name].place.rpartition(", line ")[0]))

    def value(self, name: str) -> str:
        """As the file has it."""
        return repr(self._draft.macros[name].value)

    def resolved(self, name: str) -> str:
        """A macro's value, with that of a macro that it names."""
        value = self.value(name)
        other = value.removeprefix("%")
        return f"{value} = {self.resolved(other)}" if self._is_macro(value) else value

    def _is_macro(self, value: str) -> bool:
        return value.startswith("%") and value.removeprefix("%") in self._draft.macros

    def required(self) -> dict[str, str]:
        """The file that asks for each macro without a value."""
        return {name: self.file(name) for name in self.names if self.value(name) == _REQUIRED}

    def wanted(self) -> dict[str, str]:
        """Files that set each macro that is used and not set, by folder."""
        missing = sorted(self._draft.used() - self.names - {_REQUIRED.removeprefix("%")})
        # T5X's files serve its own host alone.
        ours = (name for name in gin_names() if missing and not name.startswith("t5x/"))
        setters = {name: Macros(gin_root() / name).names for name in ours}
        return {
            name: ", ".join(
                sorted({f"{Path(file).parent}/" for file, sets in setters.items() if name in sets})
            )
            for name in missing
        }


def _known_as(file: Path) -> str:
    inside = file.is_relative_to(gin_root())
    return file.relative_to(gin_root()).as_posix() if inside else str(file)


def _find(name: str) -> Path:
    """The gin file or example of a name, which may lack folder and ending.

    Raises:
        UserError: there is none, or several.
    """
    if name.endswith(".gin") and (given := Path(name).expanduser()).is_file():
        return given
    known = {file: gin_root() / file for file in gin_names()}
    known |= {f"examples/{folder}": _examples() / folder for folder in _scenarios()}
    found = {key: path for key, path in known.items() if name in _forms(key)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(
            f"{name}, which is several", f"one of {', '.join(found)}", "name its folder, too"
        )
    by_form = {form: key for key in known for form in _forms(key)}
    near = difflib.get_close_matches(name, by_form, n=6)
    hint = ", ".join(list(dict.fromkeys(by_form[form] for form in near))[:3])
    raise UserError(
        f"no gin file or example {name}",
        f"one such as {hint}" if hint else "one of ours or your own",
        "see cot-flax experiments",
    )


def _forms(known_as: str) -> tuple[str, ...]:
    path = Path(known_as)
    return known_as, path.with_suffix("").as_posix(), path.name, path.stem


def _examples() -> Path:
    return gin_root().with_name("examples")


def _scenarios() -> list[str]:
    return sorted(path.parent.name for path in _examples().glob("*/instruction.md"))


def _order(folder: str) -> tuple[bool, str]:
    return folder != "experiments", folder


def _first_line(file: Path) -> str:
    line = re.sub("^# *", "", file.read_text("utf-8").partition("\n")[0])
    return line.removesuffix(":") if re.search("[.:]$", line) else f"{line} ..."


def _print_section(title: str, about: dict[str, str]) -> None:
    typer.secho(title, bold=True)
    width = max(map(len, about), default=0)
    for name, text in about.items():
        typer.echo("\n".join(_wrapped(f"  {name:<{width}}  {text}", width + 4)))
    typer.echo()


def _wrapped(line: str, indent: int) -> Iterator[str]:
    """A line as a terminal shows it well; whole where something else reads it."""
    if not sys.stdout.isatty():
        return iter([line])
    columns = max(shutil.get_terminal_size().columns, indent + 20)
    return iter(textwrap.wrap(line, columns, subsequent_indent=" " * indent))


def _print_rows(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    typer.secho(title, bold=True)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        typer.echo(f"  {'  '.join(cells)}".rstrip())
    typer.echo()
