"""What gin files and `NAME=VALUE` bindings say, before anything that they name is imported."""

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin

import cot_flax
from cot_flax.errors import UserError

MALFORMED = (ValueError, SyntaxError, tokenize.TokenError)
REQUIRED = "gin.REQUIRED"
_PARTS = ("models", "objectives")
_OPENING = tuple("([{'\"@%")
_WORD = re.compile(r"""(?<![\w'"@%./-])[A-Za-z_~][\w./~-]*(?![\w'"])""")


@dataclass(frozen=True)
class Reference:
    """`@name` or `@name()` in a value; `module` is what its file imports by that name, or ""."""

    name: str
    evaluate: bool
    module: str = ""

    def __repr__(self):
        return f"@{self.name}" + "()" * self.evaluate


@dataclass(frozen=True)
class Macro:
    """`%NAME` in a value."""

    name: str

    def __repr__(self):
        return f"%{self.name}"


@dataclass(frozen=True)
class Binding:
    """One value, bound to a macro or to a parameter.

    Attributes:
        name: as it is written: `TRAIN_STEPS`, `train/loop.train.seed`.
        value: Python's, with `Reference` and `Macro` in it.
        place: file and line; "" of the command line.
    """

    name: str
    value: Any
    place: str = ""

    @property
    def is_macro(self) -> bool:
        return "." not in self.name

    @property
    def parameter(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def selector(self) -> str:
        """Of what has the parameter, without a scope."""
        return self.name.rpartition(".")[0].rpartition("/")[2]


@dataclass
class Draft:
    """All bindings of files, the later in place of the earlier.

    Attributes:
        macros: by name.
        parameters: by scope, module, function or class ("" where no import says so) and name.
        modules: that files import, by what they are called there.
    """

    macros: dict[str, Binding] = field(default_factory=dict)
    parameters: dict[tuple[str, str, str, str], Binding] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)

    def bind(self, binding: Binding, modules: dict[str, str] | None = None) -> None:
        """Takes a binding; `modules` are those of its file."""
        if binding.is_macro:
            self.macros[binding.name] = binding
            return
        module, name = self.resolve(binding.selector, modules)
        scope = binding.name.rpartition(".")[0].rpartition("/")[0]
        self.parameters[scope, module, name, binding.parameter] = binding

    def used(self) -> set[str]:
        """The names of all macros in values."""
        bindings = (*self.macros.values(), *self.parameters.values())
        return {name for binding in bindings for name in _macros_in(binding.value)}

    def resolve(self, selector: str, modules: dict[str, str] | None = None) -> tuple[str, str]:
        """The module and the name that a selector means; "" for a module that is not known."""
        called, _, name = selector.rpartition(".")
        known = self.modules if modules is None else modules
        if called in known:
            return known[called], name
        # gin takes any end of the full name that is the only one.
        ends = {m for m in self.modules.values() if f".{m}".endswith(f".{called}") and called}
        return (ends.pop() if len(ends) == 1 else ""), name

    def resolved(self, value: Any) -> tuple[str | None, Any]:
        """The macro that holds a value, None where none does; and the value, without macros."""
        holder = None
        seen: set[str] = set()
        while isinstance(value, Macro) and value.name in self.macros and value.name not in seen:
            holder = value.name
            seen.add(holder)
            value = self.macros[holder].value
        return holder, self._filled(value)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            items = type(value)(self.resolved(item)[1] for item in value)
            return value if items == value else items
        if isinstance(value, dict):
            filled = {key: self.resolved(item)[1] for key, item in value.items()}
            return value if filled == value else filled
        return value


def _macros_in(value: Any) -> Iterator[str]:
    if isinstance(value, Macro):
        yield value.name
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _macros_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _macros_in(item)


def gin_root() -> Path:
    """The folder of our gin files: inside the package when installed, beside it in a checkout."""
    package = Path(cot_flax.__file__).parent
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


def read(files: Sequence[str], search_paths: Sequence[str] = ()) -> Draft:
    """Reads files in order, with those that they include.

    Raises:
        UserError: a file is not there or cannot be read, or one of models/ or objectives/ has no
            effect, since a later file has its own.
    """
    draft = Draft()
    parts: list[tuple[str, dict]] = []
    now: dict[Any, str] = {}
    for file in files:
        before = now
        _read_file(file, draft, search_paths)
        now = {key: repr(b.value) for key, b in (draft.macros | draft.parameters).items()}
        kind = Path(file).parent.name
        for part, then in parts:
            lost = {key for key, value in then.items() if now[key] != value}
            if lost and kind != Path(part).parent.name:
                raise UserError(
                    f"{part} before {file}, which has its own",
                    f"a file of {Path(part).parent.name}/ after what it replaces",
                    f"name it later: --gin_file={file} --gin_file={part}",
                )
        if kind in _PARTS:
            parts.append((file, {k: v for k, v in now.items() if before.get(k) != v}))
    return draft


def find(file: str, search_paths: Sequence[str] = (), asked: str = "--gin_file") -> Path:
    """Where a gin file lies: as given, under a search path, or under `gin_root()`.

    Raises:
        UserError: nowhere; it names those that are alike.
    """
    folders = [Path(), *map(Path, search_paths), gin_root()]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    known = [
        path.relative_to(folder).as_posix()
        for folder in folders[1:]
        for path in sorted(folder.rglob("*.gin"))
    ]
    # By their own names, too: a folder in front says nothing of how alike two files are.
    near = difflib.get_close_matches(file, known, n=3)
    own = {Path(name).name: name for name in known}
    near += [own[name] for name in difflib.get_close_matches(Path(file).name, own, n=3)]
    experiments = [name for name in known if name.startswith("experiments/")] or known
    hint = ", ".join(list(dict.fromkeys(near))[:3]) or ", ".join(experiments[:3]) + ", ..."
    searched = ", ".join(map(str, folders))
    raise UserError(
        f"no gin file {file} within {searched}", f"one such as {hint}", f"correct {asked}"
    )


def value_of(text: str) -> Any:
    """The value of a text as gin files have it.

    Raises:
        ValueError, SyntaxError, tokenize.TokenError: it is none.
    """
    statements = list(gin.config_parser.ConfigParser(f"NAME = {text}", _Values({})))
    if len(statements) != 1:
        raise SyntaxError("Expected one value.")
    return statements[0].value


def is_bare(text: str) -> bool:
    """Whether a value is a text without quotes."""
    if not text or text.startswith(_OPENING):
        return False
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return True
    return False


def with_quotes(text: str) -> str | None:
    """A list, tuple or dict with quotes around its bare words; None where that makes no value."""
    if not text.startswith(("(", "[", "{")):
        return None
    constants = ("True", "False", "None")
    quoted = _WORD.sub(lambda m: m[0] if m[0] in constants else repr(m[0]), text)
    try:
        value_of(quoted)
    except MALFORMED:
        return None
    return quoted if quoted != text else None


def first_line(error: BaseException) -> str:
    """What an error of gin's parser says, with its place in a file."""
    text = str(error).strip()
    place = re.search(r'In file (".*?", line \d+)', text)
    first = text.splitlines()[0] if text else type(error).__name__
    return f"{first} ({place[1]})" if place else first


class _Values(gin.config_parser.ParserDelegate):
    """Takes references and macros for what they are called, in a file that imports modules."""

    def __init__(self, modules: Mapping[str, str]):
        self._modules = modules

    def configurable_reference(self, scoped_name, evaluate):
        called = scoped_name.rpartition("/")[2].rpartition(".")[0]
        return Reference(scoped_name, evaluate, self._modules.get(called, ""))

    def macro(self, name):
        return Macro(name)


def _read_file(
    file: str,
    draft: Draft,
    search_paths: Sequence[str],
    asked: str = "--gin_file",
    includers: tuple[Path, ...] = (),
) -> None:
    path = find(file, search_paths, asked)
    if path in includers:
        raise UserError(
            f"{path}, which includes itself", "files one below another", f"correct {asked}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} ({error})", "a text in UTF-8", "save it as UTF-8") from error
    modules: dict[str, str] = {}
    try:
        stream = io.StringIO(text)
        stream.name = str(path)  # type: ignore[attr-defined]
        for statement in gin.config_parser.ConfigParser(stream, _Values(modules)):
            place = f"{file}, line {statement.location.line_num}"
            match statement:
                case gin.config_parser.IncludeStatement(filename=included):
                    asked = f"the include of {place}"
                    _read_file(included, draft, search_paths, asked, (*includers, path))
                case gin.config_parser.ImportStatement(module=module):
                    if not module.startswith("__gin__."):
                        whole = statement.is_from or statement.alias
                        called = statement.bound_name() if whole else module
                        modules[called] = module
                        # What two files call so is either, on the command line.
                        known = draft.modules.setdefault(called, module)
                        draft.modules[called] = module if known == module else ""
                case gin.config_parser.BindingStatement():
                    scope = f"{statement.scope}/" if statement.scope else ""
                    parameter = f".{statement.arg_name}" if statement.arg_name else ""
                    name = f"{scope}{statement.selector}{parameter}"
                    draft.bind(Binding(name, statement.value, place), modules)
    except tokenize.TokenError as error:
        problem, (line, _) = error.args
        raise _unreadable(f"{problem} ({file}, line {line})") from error
    except (ValueError, SyntaxError) as error:
        line = getattr(error, "lineno", None)
        at = f" ({file}, line {line})" if line else f" ({file})"
        raise _unreadable(f"{getattr(error, 'msg', None) or error}{at}") from error


def _unreadable(problem: str) -> UserError:
    return UserError(f"gin: {problem}", "NAME = VALUE, include or import", "correct the gin file")
