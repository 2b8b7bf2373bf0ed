"""Reading gin: files, search paths, command-line bindings, and one clear line on an error."""

import ast
import copy
import difflib
import inspect
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import gin

import cot_flax
from cot_flax.errors import UserError, missing_extra
from cot_flax.files import make_folder
from cot_flax.run_folder import CONFIG

_MALFORMED = (ValueError, SyntaxError, tokenize.TokenError)
_RUN_FACTS = {
    "data": {
        "mixture": "MIXTURE_OR_TASK_NAME",
        "lengths": "TASK_FEATURE_LENGTHS",
        "store": "TEACHER_STORE",
    },
    "training": {
        "optimizer": "OPTIMIZER",
        "schedule": "SCHEDULE",
        "learning_rate": "LEARNING_RATE",
    },
}
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
            macro without a value.
    """
    gin.clear_config()
    # gin's second reader takes the first folder of a path for a Python package, so that a folder
    # `runs` of the user would hide our runs/train.gin.
    del gin.config._FILE_READERS[1:]
    del gin.config._LOCATION_PREFIXES[1:]  # of an earlier call
    for path in (*search_paths, str(gin_root())):
        gin.add_config_file_search_path(path)
    try:
        gin.parse_config_files_and_bindings(list(files), None, finalize_config=False)
        texts = [text for binding in bindings if (text := _bind(binding))]
        if needed is not None:
            _fill_macros(needed)
        gin.finalize()
    except (*_MALFORMED, OSError, ImportError, AttributeError, NameError) as error:
        _raise_if_macro_is_missing(error)
        if isinstance(error, ModuleNotFoundError) and isinstance(
            missing := missing_extra(error), UserError
        ):
            raise missing from error
        raise UserError(
            f"gin: {_first_line(error)}",
            "files and names that exist",
            "correct the gin file or the --gin. flag",
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
    known = {
        section: {name: value for name, key in macros.items() if (value := _plain(key)) is not None}
        for section, macros in _RUN_FACTS.items()
    }
    store = known["data"].get("store")
    if store and (fingerprint := fingerprint_of_store(store)):
        known["data"]["fingerprint"] = fingerprint
    return known


def save(model_dir: str | os.PathLike) -> None:
    """Writes the whole configuration to config.gin, so that the run can be repeated from it.

    Raises:
        UserError: a folder that cannot be written to.
    """
    (make_folder(model_dir) / CONFIG).write_text(gin.config_str())


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
    missing = re.match(r"(\w+)/macro.value set to `%gin.REQUIRED`", str(error))
    if missing:
        raise NoValue(missing.group(1)) from error


def _fill_macros(needed: Sequence[str]) -> None:
    """Sets the required macros without a value to None, but for those that are needed."""
    macros = [name for name, selector in gin.config._CONFIG if selector == "gin.macro"]
    for name in set(macros).difference(needed):
        if str(gin.query_parameter(f"{name}/gin.macro.value")) == "%gin.REQUIRED":
            gin.bind_parameter(f"{name}/gin.macro.value", None)


def _bind(binding: str) -> str | None:
    """Binds one NAME=VALUE of the command line; returns what it says if VALUE was a bare text."""
    _check_macro(binding)
    name, _, value = map(str.strip, binding.partition("="))
    bare = bool(value) and not _is_literal(value) and not value.startswith(_OPENING)
    if bare:
        _check_text(name, value)
        binding = f"{name}={value!r}"
    try:
        gin.parse_config(binding)
    except _MALFORMED as error:
        raise UserError(
            f"--gin.{binding} ({_first_line(error).partition(' on line 1: <')[0]})",
            "a name that exists and a Python value",
            "correct the name, or quote the text: --gin.NAME=\"'TEXT'\"",
        ) from error
    return f"{name} = {value!r}" if bare else None


def _is_literal(value: str) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return False
    return True


def _check_text(name: str, value: str) -> None:
    """Raises UserError where a bare text is more likely a mistake: a number, a misspelt None."""
    types = list(_types(name))
    known = {None: NoneType, True: bool, False: bool}
    constants = [str(c) for c, type in known.items() if not types or type in types]
    near = difflib.get_close_matches(value.capitalize(), constants, n=1, cutoff=0.75)
    if near:
        expected = f"{near[0]}, or the text in quotes"
    elif types and str not in types:
        expected = "a Python value or a reference (@name, %NAME)"
    elif value.endswith(_CLOSING):
        expected = "a Python value or a text without brackets and quotes at its end"
    else:
        return
    raise UserError(
        f"--gin.{name}={value}", expected, f"correct it, or quote the text: --gin.{name}=\"'TEXT'\""
    )


def _types(name: str) -> Iterator[type]:
    """The types that a macro or parameter takes; none where nothing says so.

    A macro takes what the annotations of the parameters it is bound to say, and where there are
    none, the type of its value.
    """
    if "." in name:
        selector, _, parameter = name.rpartition("/")[2].rpartition(".")
        yield from _annotated(selector, parameter)
        return
    users = list(_users(name))
    for selector, parameter in users:
        yield from _annotated(selector, parameter)
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


def _annotated(selector: str, parameter: str) -> Iterator[type]:
    try:
        wrapped = gin.config._REGISTRY.get_match(selector).wrapped
        annotation = inspect.signature(wrapped).parameters[parameter].annotation
    except (AttributeError, KeyError, TypeError, ValueError):  # gin says what is wrong with it
        return
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, str):
        return
    is_union = get_origin(annotation) in (Union, UnionType)
    yield from get_args(annotation) if is_union else (annotation,)


def _check_macro(binding: str) -> None:
    """gin takes any new macro in silence, so a misspelt --gin.TRAIN_STEP would do nothing."""
    name = binding.partition("=")[0].strip()
    if "." in name:
        return
    known = [m for (m, selector) in gin.config._CONFIG if selector == "gin.macro"]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", such as {near[0]}" if near else ""
        raise UserError(
            f"--gin.{name}",
            f"a macro that the gin files define{hint}",
            "correct the name",
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    place = re.search(r'In file (".*?", line \d+)', text)
    first = text.splitlines()[0] if text else type(error).__name__
    return f"{first} ({place[1]})" if place else first
