"""What annotations of parameters say of values that a user wrote, as gin files have them."""

import ast
import collections.abc
import contextlib
import difflib
import os
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

PLAIN = (bool, int, float, str, NoneType)
_LITERALS = (*PLAIN, bytes, list, tuple, dict, set)
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "None",
}


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; none of Any."""
    if annotation is Any:
        return ()
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def fit(value: Any, annotation: Any) -> Any:
    """The value, or the integer that a float is where one is wanted.

    Anything but literals fits everything: what references stand for is made later.

    Raises:
        TypeError: the annotation does not allow the value.
    """
    alternatives = members(annotation)
    for alternative in alternatives:
        if fits(value, alternative):
            return value
    for alternative in alternatives:
        try:
            return _converted(value, alternative)
        except TypeError:
            continue
    if alternatives:
        raise TypeError
    return value


def says(annotation: Any) -> str:
    """What may stand there, in words."""
    return " or ".join(dict.fromkeys(map(_word, members(annotation))))


def is_choice(annotation: Any) -> bool:
    """Whether it lists what may stand there."""
    return get_origin(annotation) is Literal


def advice(name: str, value: Any, annotation: Any) -> str:
    """What to set instead: the value without its quotes, in quotes, alone, or what is alike."""
    alternatives = members(annotation)
    likely: list[Any] = []
    if isinstance(value, str):
        for text in (value, value.capitalize()):
            with contextlib.suppress(ValueError, SyntaxError):
                likely.append(ast.literal_eval(text))
        choices = [c for a in alternatives if is_choice(a) for c in get_args(a)]
        choices = [choice for choice in choices if isinstance(choice, str)]
        near = difflib.get_close_matches(value, choices, n=1)
        likely += near
    elif isinstance(value, (list, tuple)) and len(value) == 1:
        likely += value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        likely.append(str(value))
    for other in likely:
        with contextlib.suppress(TypeError):
            shown = fit(other, annotation)
            quoted = isinstance(shown, str) and isinstance(value, (int, float))
            return f'set {name}="{shown!r}"' if quoted else f"set {name}={_plainly(shown)}"
    return f"correct {name}"


def _plainly(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is as an annotation, which is no union, wants it."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal and isinstance(value, _LITERALS):
        return value in parts
    if not isinstance(value, _LITERALS):
        # A reference without () is a function or a class, which is no object of a class.
        function = kind in (collections.abc.Callable, type) or getattr(kind, "_is_protocol", False)
        return getattr(value, "evaluate", True) or function or not isinstance(kind, type)
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):  # no literal is one, and isinstance cannot ask
        return False
    if kind in _WORDS:
        if kind is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return type(value) is kind
    if issubclass(kind, Mapping):
        return isinstance(value, dict) and all(
            _fits_any(key, parts[:1]) and _fits_any(item, parts[1:]) for key, item in value.items()
        )
    if kind in _LISTS:
        if not isinstance(value, (list, tuple)):
            return False
        if kind is tuple and parts and ... not in parts:
            return len(value) == len(parts) and all(map(fits, value, parts))
        return all(_fits_any(item, parts[:1]) for item in value)
    return isinstance(value, str) if issubclass(kind, os.PathLike) else isinstance(value, kind)


def _fits_any(value, annotation: tuple) -> bool:
    """Whether a value fits the one annotation there, or there is none."""
    alternatives = members(annotation[0]) if annotation else ()
    return not alternatives or any(fits(value, alternative) for alternative in alternatives)


def _converted(value, annotation):
    """Whole floats as integers, in dicts too."""
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    kind, parts = get_origin(annotation), get_args(annotation)
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Mapping):
        return {key: fit(item, parts[1]) for key, item in value.items()}
    raise TypeError


def _word(annotation) -> str:
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return " or ".join(map(repr, parts))
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a dict" + (f" whose values are each {says(parts[1])}" if len(parts) == 2 else "")
    if kind in _LISTS:
        return "a list"
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    return f"a reference (@NAME()) to a {getattr(kind, '__name__', kind)}"
