"""Reading gin: files, search paths, command-line bindings, and one clear line on an error."""

import ast
import copy
import difflib
import json
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import gin

import cot_flax
from cot_flax import annotations
from cot_flax.errors import UserError, missing_extra

_MALFORMED = (ValueError, SyntaxError, tokenize.TokenError)
_MACRO, _REQUIRED = "gin.macro", "%gin.REQUIRED"
_TRAINER = "loop.train"
_RUN_FACTS = {
    "data": {"store": "TEACHER_STORE"},
    "training": {
        "optimizer": "OPTIMIZER",
        "schedule": "SCHEDULE",
        "learning_rate": "LEARNING_RATE",
    },
}
_KNOWN_OTHERWISE = ("TEACHER_STORE", "T5_VOCABULARY_FILE")  # by fingerprints of what is there
_PARTS = ("models", "objectives")
_OPENING, _CLOSING = tuple("([{'\"@%"), tuple(")]}'\"")


class NoValue(UserError):
    """A macro that needs a value has none.

    Attributes:
        macro: its name.
    """

    def __init__(self, macro: str):
        super().__init__(f"no value for {macro}", "one", f"pass --gin.{macro}=VALUE")
        self.macro = macro


def gin_root() -> Path:
    """The folder of our gin files: inside the package when installed, beside it in a checkout."""
    package = Path(cot_flax.__file__).parent
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


def parse(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    needed: Sequence[str] | None = None,
) -> None:
    """Replaces gin's state by these files, then these `NAME=VALUE` bindings.

    A file is looked for as given, then under `search_paths`, then under `gin_root()`. A value that
    is no Python literal and no reference is a string where one is wanted (`MODEL_DIR=runs/x`); what
    was understood is printed in one line on standard error.

    Args:
        needed: the required macros that must have a value, where others become None; None: all.

    Raises:
        UserError: a file that is not there, a name or parameter that gin does not know, a required
            macro without a value, a value of another type than what takes it, a scope that nothing
            has, a model or objective that a later file replaces.
    """
    gin.clear_config()
    # gin's second reader takes the first folder of a path for a Python package, so that a folder
    # `runs` of the user would hide our runs/train.gin.
    del gin.config._FILE_READERS[1:]
    del gin.config._LOCATION_PREFIXES[1:]  # of an earlier call
    for path in (*search_paths, str(gin_root())):
        gin.add_config_file_search_path(path)
    try:
        _parse_files(files)
        texts = [text for binding in bindings if (text := _bind(binding))]
        _check_scopes()
        _check_values()
        if needed is not None:
            _fill_macros(needed)
        gin.finalize()
    except (*_MALFORMED, OSError, ImportError, AttributeError, NameError) as error:
        _raise_if_macro_is_missing(error)
        if isinstance(error, ModuleNotFoundError) and isinstance(
            missing := missing_extra(error), UserError
        ):
            raise missing from error
        remedy = "correct the gin file or the --gin. flag"
        if isinstance(error, ModuleNotFoundError):
            remedy = "correct the import, or put the module's folder on PYTHONPATH (PYTHONPATH=.)"
        raise UserError(
            f"gin: {_first_line(error)}", "files and names that exist", remedy
        ) from error
    if texts:
        print(", ".join(texts), file=sys.stderr)


def call(function: str | Callable, **arguments) -> Any:
    """Calls a configurable, or one by its gin name such as "loop.train", with what is bound to it.

    Raises:
        UserError: no gin file that was read has it.
    """
    try:
        configurable = gin.get_configurable(function)
    except ValueError as error:
        name = function if isinstance(function, str) else function.__name__
        raise UserError(
            f"gin files without {name}", "those of gin/runs/ among them", "include that file"
        ) from error
    return configurable(**arguments)


def macro(name: str, default: Any = gin.REQUIRED) -> Any:
    """The value of a macro such as MODEL_DIR; raises NoValue where it has none, nor a default."""
    try:
        value = gin.query_parameter(f"{name}/gin.macro.value")
    except ValueError:
        value = default
    if value is gin.REQUIRED:
        raise NoValue(name)
    return value


def bound(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What is bound to some arguments of a configurable, made as its call would make them.

    Empty where no gin file imports the configurable.
    """
    try:
        found = gin.get_bindings(name, resolve_references=False)
    except ValueError:
        return {}
    # A deep copy is how gin makes what a reference stands for.
    return {argument: copy.deepcopy(found[argument]) for argument in arguments if argument in found}


def run_facts(fingerprint_of_store: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """What only the configuration knows of a training run, for its run.json (see run_folder).

    Args:
        fingerprint_of_store: of the store in a folder; "" where there is none.
    """
    known: dict[str, dict[str, Any]] = {
        section: {name: value for name, key in macros.items() if (value := _plain(key)) is not None}
        for section, macros in _RUN_FACTS.items()
    }
    known["data"]["settings"] = _settings(_is_of_a_task)
    makers = [str(macro(name, "")) for name in ("OPTIMIZER", "SCHEDULE")]
    known["training"]["settings"] = _settings(
        lambda selector: any(f"@{_short(selector)}()" == maker for maker in makers)
    )
    store = known["data"].get("store")
    if store and (fingerprint := fingerprint_of_store(store)):
        known["data"]["fingerprint"] = fingerprint
    return known


def train(fingerprint_of_store: Callable[[str], str], **decisions: bool) -> Any:
    """Calls the trainer with what is bound; the run keeps the configuration, to be repeated from.

    Args:
        fingerprint_of_store: as of `run_facts`.
        decisions: of the trainer on the run that is there (`overwrite`, `accept_changes`): no
            macros, for a run that is repeated from its configuration would take them again.
    """
    facts = run_facts(fingerprint_of_store)
    return call(_TRAINER, facts=facts, config=gin.config_str(), **decisions)


def check_files(files: Sequence[str], search_paths: Sequence[str] = ()) -> None:
    """Raises UserError for a file that is not there, with the names of those that are."""
    folders = [Path(), *map(Path, search_paths), gin_root()]
    for file in files:
        if any((folder / file).is_file() for folder in folders):
            continue
        known = [
            path.relative_to(folder).as_posix()
            for folder in folders[1:]
            for path in sorted(folder.rglob("*.gin"))
        ]
        # By their own names, too: a folder in front says nothing of how alike two files are.
        near = difflib.get_close_matches(file, known, n=3)
        own = {Path(name).name: name for name in known}
        near += [own[name] for name in difflib.get_close_matches(Path(file).name, own, n=3)]
        hint = ", ".join(list(dict.fromkeys(near))[:3]) or ", ".join(known[:3]) + ", ..."
        searched = ", ".join(map(str, folders))
        raise UserError(
            f"no gin file {file} within {searched}", f"one such as {hint}", "correct --gin_file"
        )


def check_syntax(bindings: Sequence[str]) -> None:
    """Raises UserError for a `NAME=VALUE` that cannot be read, before any file is.

    What files import takes seconds; a forgotten quote need not wait for it.
    """
    for binding in bindings:
        value = binding.partition("=")[2].strip()
        if not value or _is_bare(value):
            continue
        try:
            list(gin.config_parser.ConfigParser(f"NAME = {value}", _Unread()))
        except _MALFORMED as error:
            raise _unreadable(binding, error) from error


class _Unread(gin.config_parser.ParserDelegate):
    """Takes references for what they are called."""

    def configurable_reference(self, scoped_name, evaluate):
        return scoped_name

    def macro(self, name):
        return name


def _parse_files(files: Sequence[str]) -> None:
    """Parses files in order.

    Raises:
        UserError: one of models/ or objectives/ has no effect, since a later file has its own.
    """
    parts: list[tuple[str, dict]] = []
    now: dict = {}
    for file in files:
        before = now
        try:
            gin.parse_config_file(file)
        except tokenize.TokenError as error:  # the only one of gin's that names no file
            problem, (line, _) = error.args
            raise SyntaxError(f"{problem} ({file}, line {line})") from error
        now = {
            (*key, name): value
            for key, bound in gin.config._CONFIG.items()
            for name, value in bound.items()
        }
        kind = Path(file).parent.name
        for part, then in parts:
            lost = {key for key, value in then.items() if str(now[key]) != str(value)}
            if lost and kind != Path(part).parent.name:
                raise UserError(
                    f"{part} before {file}, which has its own",
                    f"a file of {Path(part).parent.name}/ after what it replaces",
                    f"name it later: --gin_file={file} --gin_file={part}",
                )
        if kind in _PARTS:
            own = {k: v for k, v in now.items() if k not in before or str(before[k]) != str(v)}
            parts.append((file, own))


def _settings(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """What is bound to some configurables, by name, but for references and what macros name."""
    named = {name for macros in _RUN_FACTS.values() for name in macros.values()}
    named |= {"TRAIN_STEPS", *_KNOWN_OTHERWISE}
    found = {}
    for scope, selector, parameter, holder, value in _bindings():
        if wanted(selector) and holder not in named:
            try:
                value = json.loads(json.dumps(value))
            except TypeError:  # a reference
                continue
            place = f"{scope}/" if scope else ""
            found[holder or f"{place}{_short(selector)}.{parameter}"] = value
    return found


def _is_of_a_task(selector: str) -> bool:
    """Whether it is a function of a task, ours or a user's, which the data depend on."""
    ours, _, module = selector.rpartition(".")[0].partition(".")
    if ours != "cot_flax":
        return ours not in ("t5x", "seqio", "gin", "__main__")
    return module.startswith("tasks.") or selector.endswith("registration.prompting")


def _bindings() -> Iterator[tuple[str, str, str, str | None, Any]]:
    """(scope, selector, parameter, macro, value) of all that is bound to something but macros.

    The macro is the one that holds the value, None where the parameter does by itself.
    """
    for (scope, selector), bound in list(gin.config._CONFIG.items()):
        if selector != _MACRO:
            for parameter, value in list(bound.items()):
                holder, value = _resolved(value)
                yield scope, selector, parameter, holder, value


def _resolved(value: Any) -> tuple[str | None, Any]:
    """The macro that holds a value, and the value."""
    holder = None
    while getattr(value, "selector", None) == _MACRO and str(value) != _REQUIRED:
        name = str(value).removeprefix("%")
        known = gin.config._CONFIG.get((name, _MACRO))
        if known is None:  # gin says so
            return holder, value
        holder, value = name, known["value"]
    return holder, value


def _short(selector: str) -> str:
    """As gin files have it: `optimizers.adamw`."""
    return ".".join(selector.split(".")[-2:])


def _check_values() -> None:
    """Checks all values against the annotations of what takes them; 1e3 becomes the integer.

    Raises:
        UserError: another type, with the macro's name.
    """
    for scope, selector, parameter, holder, value in _bindings():
        annotation = _annotation(selector, parameter)
        if str(value) == _REQUIRED:
            continue
        name = holder or f"{scope}/{_short(selector)}.{parameter}".removeprefix("/")
        try:
            fitting = annotations.fit(value, annotation)
        except TypeError:
            if holder and value is None:
                raise NoValue(holder) from None
            makers = _makers(annotations.members(annotation))
            raise UserError(
                f"{name} = {value!r}",
                annotations.says(annotation) + (f", such as {makers}" if makers else ""),
                annotations.advice(name, value, annotation),
            ) from None
        if fitting is not value:
            key = f"{holder}/{_MACRO}.value" if holder else f"{scope}/{selector}.{parameter}"
            gin.bind_parameter(key.removeprefix("/"), fitting)


def _makers(types: Iterable[Any]) -> str:
    """References that make one of these types, among those that files bind something to."""
    classes = [a for a in types if isinstance(a, type)]
    found = []
    for _, selector in gin.config._CONFIG:
        match = gin.config._REGISTRY.get_match(selector)
        made = match and annotations.returned(match.wrapped)
        if made in classes and made not in annotations.PLAIN:
            found.append(f"@{_short(selector)}()")
    return ", ".join(sorted(set(found))[:3])


def _check_scopes() -> None:
    """Raises UserError for a binding under a scope that nothing of ours ever has."""
    referred = {
        part
        for bound in gin.config._CONFIG.values()
        for text in map(str, bound.values())
        for reference in re.findall(r"@([\w./-]+)/", text)
        for part in reference.split("/")
    }
    for scope, selector in gin.config._CONFIG:
        if not scope or selector == _MACRO or not selector.startswith("cot_flax."):
            continue
        module, _, name = selector.rpartition(".")
        own: dict[str, set[str]] = getattr(sys.modules.get(module), "scopes", dict)()
        known = referred | own.get(name, set())
        if unknown := set(scope.split("/")) - known:
            near = difflib.get_close_matches(scope, known, n=3)
            raise UserError(
                f"{scope}/{_short(selector)}, which binds nothing",
                "a scope that is used" + (f", such as {', '.join(near)}" if near else ""),
                f"correct {', '.join(sorted(unknown))}, or import the module that registers it",
            )


def _plain(name: str) -> Any:
    """The value of a macro as JSON holds it, of a reference the name; None where it has none."""
    try:
        value = macro(name, None)
    except NoValue:
        return None
    text = str(value)
    if text.startswith("%"):
        return _plain(text[1:])
    return text.partition("(")[0].rpartition(".")[2] if text.startswith("@") else value


def _raise_if_macro_is_missing(error: BaseException) -> None:
    missing = re.match(rf"(\w+)/macro.value set to `{_REQUIRED}`", str(error))
    if missing:
        raise NoValue(missing.group(1)) from error


def _fill_macros(needed: Sequence[str]) -> None:
    """Sets the required macros without a value to None, but for those that are needed."""
    for name in _macros().difference(needed):
        if str(gin.query_parameter(f"{name}/gin.macro.value")) == _REQUIRED:
            gin.bind_parameter(f"{name}/gin.macro.value", None)


def _bind(binding: str) -> str | None:
    """Binds one NAME=VALUE of the command line; returns what it says if VALUE was a bare text."""
    _check_macro(binding)
    name, _, value = map(str.strip, binding.partition("="))
    bare = _is_bare(value)
    if bare:
        _check_text(name, value)
        binding = f"{name}={value!r}"
    try:
        gin.parse_config(binding)
    except _MALFORMED as error:
        raise _unreadable(binding, error) from error
    return f"{name} = {value!r}" if bare else None


def _unreadable(binding: str, error: BaseException) -> UserError:
    return UserError(
        f"--gin.{binding} ({_first_line(error).partition(' on line 1: <')[0]})",
        "a name that exists and a Python value",
        "correct the name, or quote the text: --gin.NAME=\"'TEXT'\"",
    )


def _is_bare(value: str) -> bool:
    """Whether it is a text without quotes."""
    if not value or value.startswith(_OPENING):
        return False
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return True
    return False


def _check_text(name: str, value: str) -> None:
    """Raises UserError where a bare text is more likely a mistake: a number, a misspelt None."""
    types = list(_types(name))
    known = {None: NoneType, True: bool, False: bool}
    constants = [str(c) for c, type in known.items() if not types or type in types]
    near = difflib.get_close_matches(value.capitalize(), constants, n=1, cutoff=0.75)
    if near:
        expected = f"{near[0]}, or the text in quotes"
    elif types and str not in types:
        makers = _makers(types)
        expected = f"a reference, such as {makers}" if makers else "a Python value"
    elif value.endswith(_CLOSING):
        expected = "a Python value or a text without brackets and quotes at its end"
    else:
        return
    remedy = f"correct it, or quote the text: --gin.{name}=\"'TEXT'\""
    if types and str not in types:
        expected = (
            " or ".join(constants) if bool in types else expected.partition(", or the text")[0]
        )
        remedy = f"set --gin.{name}={near[0]}" if near else "correct it"
    raise UserError(f"--gin.{name}={value}", expected, remedy)


def _types(name: str) -> Iterator[type]:
    """The types that a macro or parameter takes; none where nothing says so.

    A macro takes what the annotations of the parameters it is bound to say, and where there are
    none, the type of its value.
    """
    if "." in name:
        selector, _, parameter = name.rpartition("/")[2].rpartition(".")
        yield from annotations.members(_annotation(selector, parameter))
        return
    users = list(_users(name))
    for selector, parameter in users:
        yield from annotations.members(_annotation(selector, parameter))
    if not users:
        value = gin.config._CONFIG[name, "gin.macro"]["value"]
        if value is not None and value is not gin.REQUIRED:
            yield type(value)


def _users(macro: str) -> Iterator[tuple[str, str]]:
    """(selector, parameter) of everything that a macro is bound to, through other macros too."""
    for (scope, selector), bound in gin.config._CONFIG.items():
        for parameter, value in bound.items():
            if getattr(value, "scoped_selector", None) != f"{macro}/gin.macro":
                continue
            if selector == "gin.macro":
                yield from _users(scope)
            else:
                yield selector, parameter


def _annotation(selector: str, parameter: str) -> Any:
    """What a parameter takes; Any where nothing says so."""
    match = gin.config._REGISTRY.get_match(selector)
    return annotations.of(match.wrapped, parameter) if match else Any


def _check_macro(binding: str) -> None:
    """gin takes any new macro in silence, so a misspelt --gin.TRAIN_STEP would do nothing."""
    name = binding.partition("=")[0].strip()
    if "." in name:
        return
    known = _macros()
    if name not in known:
        near = difflib.get_close_matches(name.upper(), known, n=1)
        hint = f", such as {near[0]}" if near else ""
        raise UserError(
            f"--gin.{name}",
            f"a macro that the gin files define{hint}",
            "correct the name",
        )


def _macros() -> set[str]:
    return {name for name, selector in gin.config._CONFIG if selector == _MACRO}


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    place = re.search(r'In file (".*?", line \d+)', text)
    first = text.splitlines()[0] if text else type(error).__name__
    return f"{first} ({place[1]})" if place else first
