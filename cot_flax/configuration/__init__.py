"""Experiments in gin: read from files and flags, checked, then called."""

import copy
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import gin

from cot_flax.configuration import checks, draft
from cot_flax.configuration.checks import NoValue
from cot_flax.configuration.draft import find, gin_root
from cot_flax.errors import UserError, missing_extra

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
__all__ = ["NoValue", "bound", "call", "find", "gin_root", "macro", "parse", "run_facts", "train"]


def parse(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    needed: Sequence[str] | None = None,
    before_imports: Callable[[], None] = lambda: None,
) -> None:
    """Replaces gin's state by these files, then these `NAME=VALUE` bindings.

    A file is looked for as given, then under `search_paths`, then under `gin_root()`. A value that
    is no Python literal and no reference is a string where one is wanted (`MODEL_DIR=runs/x`); what
    was understood is printed in one line on standard error.

    Args:
        needed: the required macros that must have a value, where others become None; None: all.
        before_imports: is called when names and types have been checked, before gin imports what
            the files name, which takes seconds.

    Raises:
        UserError: a file that is not there, a name or parameter that gin does not know, a required
            macro without a value, a value of another type than what takes it, a scope that nothing
            has, a model or objective that a later file replaces.
    """
    gin.clear_config()
    # gin's second reader takes the first folder of a path for a Python package, so that a folder
    # `runs` of the user would hide our runs/train.gin.
    gin.config._FILE_READERS[:] = [(_open, os.path.isfile)]
    del gin.config._LOCATION_PREFIXES[1:]  # of an earlier call
    for path in (*search_paths, str(gin_root())):
        gin.add_config_file_search_path(path)
    read = draft.read(files, search_paths)
    understood = [checks.bind(read, binding) for binding in bindings]
    checks.check_names(read)
    mended = checks.check_types(read, needed)
    checks.check_required(read, needed)
    before_imports()
    try:
        for file in files:
            gin.parse_config_file(file)
        for (text, _), binding in zip(understood, bindings, strict=True):
            _parse_binding(text, binding)
        for scope, selector, parameter, holder, _ in list(_bindings()):
            key = holder or (scope, selector.rpartition(".")[2], parameter)
            if key in mended:
                place = (holder, _MACRO, "value") if holder else (scope, selector, parameter)
                gin.bind_parameter(place, mended[key])
        if needed is not None:
            _fill_macros(needed)
        gin.finalize()
        _check_scopes()
    except (*draft.MALFORMED, OSError, ImportError, AttributeError, NameError) as error:
        if isinstance(error, ModuleNotFoundError) and isinstance(
            missing := missing_extra(error), UserError
        ):
            raise missing from error
        remedy = "correct the gin file or the --gin. flag"
        if isinstance(error, ModuleNotFoundError):
            remedy = "correct the import, or put the module's folder on PYTHONPATH (PYTHONPATH=.)"
        raise UserError(
            f"gin: {draft.first_line(error)}", "files and names that exist", remedy
        ) from error
    if said := [text for _, text in understood if text]:
        print(", ".join(said), file=sys.stderr)


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
    return module.startswith("tasks.") or selector.endswith(
        ("registration.prompting", "templates.Template", "dataset.DataSet")
    )


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


def _fill_macros(needed: Sequence[str]) -> None:
    """Sets the required macros without a value to None, but for those that are needed."""
    for name in _macros().difference(needed):
        if str(gin.query_parameter(f"{name}/gin.macro.value")) == _REQUIRED:
            gin.bind_parameter(f"{name}/gin.macro.value", None)


def _open(path: str) -> IO[str]:
    """Opens a gin file, of which an editor may have written a byte order mark."""
    return open(path, encoding="utf-8-sig")


def _parse_binding(text: str, given: str) -> None:
    try:
        gin.parse_config(text)
    except draft.MALFORMED as error:
        raise UserError(
            f"--gin.{given} ({draft.first_line(error).partition(' on line 1: <')[0]})",
            "a name that exists and a Python value",
            "correct the name",
        ) from error


def _macros() -> set[str]:
    return {name for name, selector in gin.config._CONFIG if selector == _MACRO}
