"""What annotations of parameters say of values that a user wrote, as gin files have them."""

import ast
import collections.abc
import inspect
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


def of(function: Any, parameter: str) -> Any:
    """The annotation of a parameter; Any where there is none that can be read."""
    try:
        found = inspect.signature(function, eval_str=True).parameters[parameter].annotation
    except (KeyError, NameError, TypeError, ValueError):
        return Any
    return Any if found is inspect.Parameter.empty else found


def returned(function: Any) -> Any:
    """The class that a function makes, or a class itself."""
    if isinstance(function, type):
        return function
    try:
        return inspect.signature(function, eval_str=True).return_annotation
    except (NameError, TypeError, ValueError):
        return None


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
        if _fits(value, alternative):
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


def advice(name: str, value: Any, annotation: Any) -> str:
    """What to set instead, where a text is what it would be without quotes."""
    if isinstance(value, str):
        for text in (value, value.capitalize()):
            try:
                return f"set {name}={fit(ast.literal_eval(text), annotation)!r}"
            except (TypeError, ValueError, SyntaxError):
                continue
    return f"correct {name}"


def _fits(value, annotation) -> bool:
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return value in parts
    if not isinstance(value, _LITERALS):
        # A reference without () is a function or a class, which is no object of a class.
        function = kind is collections.abc.Callable or getattr(kind, "_is_protocol", False)
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
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits_any(item, parts[:1]) for item in value)
    return isinstance(value, str) if issubclass(kind, os.PathLike) else isinstance(value, kind)


def _fits_any(value, annotation: tuple) -> bool:
    """Whether a value fits the one annotation there, or there is none."""
    alternatives = members(annotation[0]) if annotation else ()
    return not alternatives or any(_fits(value, alternative) for alternative in alternatives)


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
