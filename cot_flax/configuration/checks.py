"""Whether names exist and values are of the type that takes them, before anything is imported."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import NoneType
from typing import Any

from cot_flax.configuration import annotations, signatures
from cot_flax.configuration.draft import (
    MALFORMED,
    REQUIRED,
    Binding,
    Draft,
    Macro,
    Reference,
    first_line,
    gin_root,
    is_bare,
    value_of,
    with_quotes,
)
from cot_flax.errors import UserError

_CLOSING = tuple(")]}'\"")


class NoValue(UserError):
    """A macro that needs a value has none.

    Attributes:
        macro: its name.
    """

    def __init__(self, macro: str):
        super().__init__(f"no value for {macro}", "one", f"pass --gin.{macro}=VALUE")
        self.macro = macro


def bind(draft: Draft, given: str) -> tuple[str, str | None]:
    """Binds one NAME=VALUE of the command line in a draft.

    A value that is no Python literal and no reference is a string where one is wanted.

    Returns:
        The binding as gin reads it, and what it says if quotes were added, else None.

    Raises:
        UserError: a macro that no file defines, a value that cannot be read or is more likely a
            mistake than a text.
    """
    name, equals, text = map(str.strip, given.partition("="))
    _check_macro(draft, name)
    understood = text
    if is_bare(text):
        _check_text(draft, name, text)
        understood = repr(text)
    elif quoted := with_quotes(text):
        understood = quoted
    try:
        if not equals or not re.fullmatch(r"[\w./]+", name):
            raise SyntaxError("Couldn't parse statement, expected ':' or '='.")
        value = value_of(understood)
    except MALFORMED as error:
        raise UserError(
            f"--gin.{given} ({first_line(error).partition(' on line 1: <')[0]})",
            "a name that exists and a Python value",
            "correct the name, or quote the text: --gin.NAME=\"'TEXT'\"",
        ) from error
    binding = Binding(name, value)
    _check_kind(draft, binding)
    draft.bind(binding)
    said = f"{name} = {understood}" if understood != text else None
    return f"{name} = {understood}", said


def check_names(draft: Draft) -> None:
    """Raises UserError for a macro, function or parameter that there is not."""
    for (_, module, owner, parameter), binding in draft.parameters.items():
        at = f" ({binding.place})" if binding.place else ""
        shown = binding.name if binding.place else f"--gin.{binding.name}"
        _check_defined(draft, module, owner, f"{shown}{at}")
        taken = signatures.signature(module, owner)
        if not taken.open and parameter not in taken.annotations:
            near = [name for name in taken.annotations if parameter in name]
            near += difflib.get_close_matches(parameter, taken.annotations, n=3)
            raise UserError(
                f"{shown}{at}",
                f"a parameter of {_short(module, owner)}, such as "
                + ", ".join(near[:3] or list(taken.annotations)[:3]),
                "correct the name",
            )
    for binding in _bindings(draft):
        for value in _parts(binding.value):
            if isinstance(value, Reference):
                module, name = draft.resolve(value.name.rpartition("/")[2])
                module = value.module or module
                shown = f"{binding.name} = {binding.value!r}"
                at = f" ({binding.place})" if binding.place else ""
                _check_defined(draft, module, name, f"{shown}{at}", sign="@")
            elif isinstance(value, Macro):
                _check_macro_of(draft, value.name, binding)


def check_types(
    draft: Draft, needed: Sequence[str] | None = None
) -> dict[str | tuple[str, str, str], Any]:
    """Checks all values against the annotations of what takes them.

    Args:
        needed: the macros that must have a value, where others may be None; None: all.

    Returns:
        What gin must bind in place of what it read, such as 1e3 as the integer: by macro, or by
        scope, function or class, and parameter.

    Raises:
        UserError: another type, with the macro's name.
    """
    mended: dict[str | tuple[str, str, str], Any] = {}
    for (scope, module, owner, parameter), binding in draft.parameters.items():
        annotation = signatures.signature(module, owner).annotations.get(parameter, Any)
        holder, value = draft.resolved(binding.value)
        if isinstance(value, Macro):  # without a value, or a constant of gin's
            continue
        source = draft.macros[holder] if holder else binding
        try:
            fitting = annotations.fit(value, annotation)
        except TypeError:
            if holder and value is None:
                if needed is not None and holder not in needed:
                    continue
                raise NoValue(holder) from None
            raise _of_another_type(draft, source, value, annotation) from None
        if fitting is not value:
            mended[holder or (scope, owner, parameter)] = fitting
    return mended


def check_required(draft: Draft, needed: Sequence[str] | None = None) -> None:
    """Raises NoValue for a required macro without a value.

    Args:
        needed: the macros that must have one; None: all.
    """
    for name, binding in draft.macros.items():
        _, value = draft.resolved(binding.value)
        if value == Macro(REQUIRED) and (needed is None or name in needed):
            raise NoValue(name)


def users(draft: Draft, name: str) -> Iterator[Any]:
    """The annotations of everything that a macro is bound to, through other macros too."""
    for (_, module, owner, parameter), binding in draft.parameters.items():
        value = binding.value
        while isinstance(value, Macro):
            if value.name == name:
                yield signatures.signature(module, owner).annotations.get(parameter, Any)
                break
            value = draft.macros[value.name].value if value.name in draft.macros else None


def _bindings(draft: Draft) -> Iterable[Binding]:
    return [*draft.macros.values(), *draft.parameters.values()]


def _parts(value: Any) -> Iterator[Any]:
    """A value, or what is in a list or dict."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    else:
        yield value


def _short(module: str, name: str) -> str:
    """As gin files have it: `optimizers.adamw`."""
    return f"{module.rpartition('.')[2]}.{name}"


def _check_defined(draft: Draft, module: str, name: str, shown: str, sign: str = "") -> None:
    """Raises UserError where the source of a module has no such function or class."""
    if not module or signatures.is_defined(module, name):
        return
    known = [_short(module, other) for other in signatures.names(module)]
    near = difflib.get_close_matches(_short(module, name), known, n=3) or sorted(known)[:3]
    raise UserError(
        shown,
        f"a name that {module} has, such as " + ", ".join(f"{sign}{other}" for other in near),
        "correct the name",
    )


def _check_macro_of(draft: Draft, name: str, binding: Binding) -> None:
    if name in draft.macros or "." in name or "/" in name:
        return
    near = difflib.get_close_matches(name, draft.macros, n=1)
    at = f" ({binding.place})" if binding.place else ""
    root = gin_root()
    definition = re.compile(rf"^{name} = ", re.MULTILINE)
    known = [
        path.relative_to(root).as_posix()
        for folder in ("models", "objectives", "runs")
        for path in sorted((root / folder).glob("*.gin"))
        if definition.search(path.read_text())
    ]
    remedy = "correct the name"
    if known:
        remedy = f"include a file that does: {', '.join(known[:3])}"
    elif near:
        remedy = f"correct the name: %{near[0]}"
    raise UserError(f"%{name} for {binding.name}{at}", "a macro that the files define", remedy)


def _check_macro(draft: Draft, name: str) -> None:
    """gin takes any new macro in silence, so a misspelt --gin.TRAIN_STEP would do nothing."""
    if "." in name or name in draft.macros:
        return
    near = difflib.get_close_matches(name.upper(), draft.macros, n=1)
    hint = f", such as {near[0]}" if near else ""
    raise UserError(f"--gin.{name}", f"a macro that the gin files define{hint}", "correct the name")


def _annotations(draft: Draft, name: str) -> list[Any]:
    """What a macro or parameter takes; what its value in the files is, where nothing says so."""
    if "." in name:
        binding = Binding(name, None)
        module, owner = draft.resolve(binding.selector)
        return [signatures.signature(module, owner).annotations.get(binding.parameter, Any)]
    found = [annotation for annotation in users(draft, name) if annotation is not Any]
    if found:
        return found
    value = draft.macros[name].value
    if value is None or isinstance(value, (Macro, Reference)):
        return []
    return [_of_value(value)]


def _check_kind(draft: Draft, binding: Binding) -> None:
    """A macro that nothing with an annotation takes has the type of its value in the files."""
    if not binding.is_macro or any(a is not Any for a in users(draft, binding.name)):
        return
    _, before = draft.resolved(draft.macros[binding.name].value)
    _, value = draft.resolved(binding.value)
    if isinstance(before, Reference) and not isinstance(value, (Reference, Macro)):
        raise UserError(
            f"{binding.name} = {value!r}",
            f"a reference, such as {before!r} of the gin files",
            f"correct {binding.name}",
        )
    if before is None or isinstance(before, (Macro, Reference)):
        return
    try:
        annotations.fit(value, _of_value(before))
    except TypeError:
        raise _of_another_type(draft, binding, value, _of_value(before)) from None


def _of_value(value: Any) -> Any:
    """A number may be given for a number, a list for a tuple."""
    return float if type(value) is int else Sequence if isinstance(value, list) else type(value)


def _check_text(draft: Draft, name: str, text: str) -> None:
    """Raises UserError where a bare text is more likely a mistake: a number, a misspelt None."""
    wanted = [annotation for annotation in _annotations(draft, name) if annotation is not Any]
    types = [member for annotation in wanted for member in annotations.members(annotation)]
    known = {None: NoneType, True: bool, False: bool}
    constants = [str(c) for c, type in known.items() if not types or type in types]
    near = difflib.get_close_matches(text.capitalize(), constants, n=1, cutoff=0.75)
    got = f"--gin.{name}={text}"
    if not types or any(annotations.is_choice(t) or annotations.fits(text, t) for t in types):
        if near:
            expected = f"{near[0]}, or the text in quotes"
        elif text.endswith(_CLOSING):
            expected = "a Python value or a text without brackets and quotes at its end"
        else:
            return
        remedy = f"correct it, or quote the text: --gin.{name}=\"'TEXT'\""
        raise UserError(got, expected, remedy)
    if bool in types:
        expected = " or ".join(constants)
    elif makers := _makers(draft, types):
        expected = f"a reference, such as {makers}"
    else:
        expected = annotations.says(wanted[0])
    raise UserError(got, expected, f"set --gin.{name}={near[0]}" if near else "correct it")


def _of_another_type(draft: Draft, binding: Binding, value: Any, annotation: Any) -> UserError:
    makers = _makers(draft, annotations.members(annotation))
    at = f" ({binding.place})" if binding.place else ""
    return UserError(
        f"{_shortened(binding)} = {value!r}{at}",
        annotations.says(annotation) + (f", such as {makers}" if makers else ""),
        annotations.advice(_shortened(binding), value, annotation),
    )


def _shortened(binding: Binding) -> str:
    if binding.is_macro:
        return binding.name
    scope = binding.name.rpartition(".")[0].rpartition("/")[0]
    short = ".".join([*binding.selector.split(".")[-2:], binding.parameter])
    return f"{scope}/{short}".removeprefix("/")


def _makers(draft: Draft, types: Collection[Any]) -> str:
    """References that make one of these types, among those that files bind something to."""
    classes = [a for a in types if isinstance(a, type) and a not in annotations.PLAIN]
    found = {
        f"@{_short(module, name)}()"
        for _, module, name, _ in draft.parameters
        if module and signatures.returned(module, name) in classes
    }
    return ", ".join(sorted(found)[:3])
