"""Reading gin: files, search paths, command-line bindings, and one clear line on an error."""

import copy
import difflib
import os
import re
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

import cot_flax
from cot_flax.errors import UserError
from cot_flax.files import make_folder

_MALFORMED = (ValueError, SyntaxError, tokenize.TokenError)


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

    A file is looked for as given, then under `search_paths`, then under `gin_root()`.

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
        for binding in bindings:
            _bind(binding)
        if needed is not None:
            _fill_macros(needed)
        gin.finalize()
    except (*_MALFORMED, OSError, ImportError, AttributeError, NameError) as error:
        _raise_if_macro_is_missing(error)
        raise UserError(
            f"gin: {_first_line(error)}",
            "files and names that exist",
            "correct the gin file or the --gin. flag",
        ) from error


def call(name: str, **arguments) -> Any:
    """Calls a configurable by its gin name, such as "loop.train", with what is bound to it."""
    return gin.get_configurable(name)(**arguments)


def macro(name: str, default: Any = gin.REQUIRED) -> Any:
    """The value of a macro such as MODEL_DIR; raises UserError where it has none, nor a default."""
    try:
        value = gin.query_parameter(f"{name}/gin.macro.value")
    except ValueError:
        value = default
    if value is gin.REQUIRED:
        raise UserError(f"no value for {name}", "one", f"pass --gin.{name}=VALUE")
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


def save(model_dir: str | os.PathLike) -> None:
    """Writes the whole configuration to config.gin, so that the run can be repeated from it.

    Raises:
        UserError: a folder that cannot be written to.
    """
    (make_folder(model_dir) / "config.gin").write_text(gin.config_str())


def _raise_if_macro_is_missing(error: BaseException) -> None:
    missing = re.match(r"(\w+)/macro.value set to `%gin.REQUIRED`", str(error))
    if missing:
        name = missing.group(1)
        raise UserError(f"no value for {name}", "one", f"pass --gin.{name}=VALUE") from error


def _fill_macros(needed: Sequence[str]) -> None:
    """Sets the required macros without a value to None, but for those that are needed."""
    macros = [name for name, selector in gin.config._CONFIG if selector == "gin.macro"]
    for name in set(macros).difference(needed):
        if str(gin.query_parameter(f"{name}/gin.macro.value")) == "%gin.REQUIRED":
            gin.bind_parameter(f"{name}/gin.macro.value", None)


def _bind(binding: str) -> None:
    """Binds one NAME=VALUE of the command line."""
    _check_macro(binding)
    try:
        gin.parse_config(binding)
    except _MALFORMED as error:
        raise UserError(
            f"--gin.{binding} ({_first_line(error).partition(' on line 1: <')[0]})",
            "a name that exists and a Python value",
            "correct the name, or quote the text: --gin.NAME=\"'TEXT'\"",
        ) from error


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
