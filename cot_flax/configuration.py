"""Reading gin: files, search paths, command-line bindings, and one clear line on an error."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

import cot_flax
from cot_flax.errors import UserError


def gin_root() -> Path:
    """The folder of our gin files: inside the package when installed, beside it in a checkout."""
    package = Path(cot_flax.__file__).parent
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


def parse(files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()) -> None:
    """Replaces gin's state by these files, then these `NAME=VALUE` bindings.

    A file is looked for as given, then under `search_paths`, then under `gin_root()`.

    Raises:
        UserError: a file that is not there, a name or parameter that gin does not know, a required
            macro without a value.
    """
    gin.clear_config()
    for path in (*search_paths, str(gin_root())):
        gin.add_config_file_search_path(path)
    try:
        gin.parse_config_files_and_bindings(list(files), None, finalize_config=False)
        for binding in bindings:
            _check_macro(binding)
        gin.parse_config(bindings)
        gin.finalize()
    except (ValueError, OSError, SyntaxError, ImportError, AttributeError) as error:
        raise UserError(
            f"gin: {_first_line(error)}",
            "files and names that exist",
            "correct the gin file or the --gin. flag",
        ) from error


def call(name: str, **arguments) -> Any:
    """Calls a configurable by its gin name, such as "loop.train", with what is bound to it."""
    try:
        return gin.get_configurable(name)(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        missing = re.search(r"Required bindings for `(.*?)` not provided.*?: (.*)", str(error))
        macro = re.search(r"[`'\"]?([A-Z_]+)/(?:gin\.)?macro", str(error))
        if missing or macro:
            what = macro.group(1) if macro else missing.group(2)
            raise UserError(f"no value for {what}", "one", f"pass --gin.{what}=VALUE") from error
        raise


def macro(name: str) -> Any:
    """The value of a macro such as MODEL_DIR; raises UserError where it has none."""
    try:
        value = gin.query_parameter(f"{name}/gin.macro.value")
    except ValueError:
        value = gin.REQUIRED
    if value is gin.REQUIRED:
        raise UserError(f"no value for {name}", "one", f"pass --gin.{name}=VALUE")
    return value


def save(path: Path) -> None:
    """Writes the whole configuration to `path`, so that the run can be repeated from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(gin.config_str())


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
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
