"""What functions and classes take and return, read off their sources: nothing is imported.

A module of ours may import JAX or TensorFlow, for seconds; a wrong type need not wait for them.
"""

import ast
import collections.abc
import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, Optional, Union, get_origin

_PLAIN = {
    kind.__name__: kind
    for kind in (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, object, type)
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Signature:
    """What may be bound to a function or a class.

    Attributes:
        annotations: of the parameters, in order; Any where nothing that can be read says so.
        open: whether there may be further ones.
    """

    annotations: Mapping[str, Any]
    open: bool = False


class _Found(NamedTuple):
    """A definition, and the module in which its names have a meaning."""

    module: str
    node: _Definition


def is_known(module: str) -> bool:
    """Whether the source of a module was found."""
    return _tree(module) is not None


def is_defined(module: str, name: str) -> bool:
    """Whether a module has a name; also where its source cannot say."""
    tree = _tree(module)
    return tree is None or name in _names(module) or {"*", "__getattr__"} & _names(module).keys()


def names(module: str) -> list[str]:
    """The functions and classes of a module."""
    found = {name: _find(module, name) for name in _names(module) if not name.startswith("_")}
    kinds = (*_FUNCTIONS, ast.ClassDef)
    return [
        name
        for name, place in found.items()
        if place
        and isinstance(place.node, kinds)
        and f"{place.module}.".startswith(f"{module}.")  # not what it imports from others
    ]


@functools.cache
def signature(module: str, name: str) -> Signature:
    """What a function or class of a module takes; an open one where that cannot be read."""
    found = _find(module, name)
    match found and found.node:
        case ast.ClassDef():
            return _of_class(found)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return _of_function(found.node, found.module)
    return Signature({}, open=True)


def returned(module: str, name: str) -> Any:
    """The class that a function makes, or a class itself; Any where that cannot be read."""
    found = _find(module, name)
    match found and found.node:
        case ast.ClassDef():
            return _stand_in(found.module, found.node.name)
        case ast.FunctionDef(returns=annotation) if annotation is not None:
            return _evaluated(annotation, found.module)
    return Any


@functools.cache
def _tree(module: str) -> ast.Module | None:
    path = _path(module)
    try:
        return ast.parse(path.read_bytes()) if path else None
    except (OSError, SyntaxError, ValueError):
        return None


def _path(module: str) -> Path | None:
    """Where a module's source lies. Only a package that was imported before is asked by itself."""
    first, *rest = module.split(".")
    if first in sys.modules and rest:  # its parts may lie elsewhere, as our tasks do in a checkout
        first = f"{first}.{rest.pop(0)}"
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in map(Path, spec.submodule_search_locations or ()):
        place = folder.joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


@functools.cache
def _names(module: str) -> dict[str, ast.stmt]:
    """What a module defines or imports at its top, also within `if` and `try`."""
    found: dict[str, ast.stmt] = {}

    def take(statements):
        for node in statements:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    found[node.name] = node
                case ast.Import() | ast.ImportFrom():
                    for alias in node.names:
                        found[alias.asname or alias.name.partition(".")[0]] = node
                case ast.Assign():
                    for target in node.targets:
                        for name in ast.walk(target):
                            if isinstance(name, ast.Name):
                                found[name.id] = node
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found[name] = node
                case _:
                    for block in ("body", "orelse", "handlers", "finalbody"):
                        take(getattr(node, block, ()))

    tree = _tree(module)
    take(tree.body if tree else ())
    return found


@functools.cache
def _find(module: str, name: str) -> _Found | None:
    """Where a name of a module is defined, through the modules that it is imported from."""
    node = _names(module).get(name)
    match node:
        case ast.ImportFrom(level=0, module=str(source)):
            named = next(a.name for a in node.names if (a.asname or a.name) == name)
            return None if named == name and source == module else _find(source, named)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return _Found(module, node)
        case ast.Assign() | ast.AnnAssign():
            return _Found(module, node)
    return None


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, module: str) -> Signature:
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(given) - len(node.args.defaults)) + node.args.defaults
    given += node.args.kwonlyargs
    defaults += node.args.kw_defaults
    found = {
        argument.arg: _parameter(argument.annotation, default, module)
        for argument, default in zip(given, defaults, strict=True)
    }
    return Signature(found, open=node.args.kwarg is not None)


def _of_class(found: _Found) -> Signature:
    node, module = found.node, found.module
    assert isinstance(node, ast.ClassDef)
    for method in node.body:
        if isinstance(method, _FUNCTIONS) and method.name in ("__init__", "__new__"):
            taken = _of_function(method, module)
            return Signature(dict(list(taken.annotations.items())[1:]), taken.open)
    fields: dict[str, Any] = {}
    is_open = False
    for base in node.bases:
        if isinstance(base, ast.Subscript):  # Generic[T]
            base = base.value
        if not isinstance(base, ast.Name) or base.id in ("NamedTuple", "Protocol", "Generic"):
            is_open |= not isinstance(base, ast.Name)
            continue
        inherited = signature(module, base.id)
        fields |= inherited.annotations
        is_open |= inherited.open
    for field in node.body:
        match field:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=default):
                if not ast.unparse(annotation).startswith("ClassVar"):
                    fields[name] = _parameter(annotation, default, module)
    return Signature(fields, is_open)


def _parameter(annotation: ast.expr | None, default: ast.expr | None, module: str) -> Any:
    if annotation is None:
        return Any
    found = _evaluated(annotation, module)
    absent = isinstance(default, ast.Constant) and default.value is None
    return Union[found, None] if absent and found is not Any else found  # noqa: UP007


def _evaluated(node: ast.expr, module: str) -> Any:
    """What an annotation stands for; of classes stand-ins, Any of what cannot be read."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):
            return _evaluated(ast.parse(text, mode="eval").body, module)
        case ast.Name(id=name):
            return _named(module, name)
        case ast.Attribute(value=holder, attr=name):
            return _attribute(module, ast.unparse(holder), name)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            either = _evaluated(left, module), _evaluated(right, module)
            return Any if Any in either else Union[either]  # noqa: UP007
        case ast.Subscript(value=value, slice=inner):
            return _subscripted(_evaluated(value, module), inner, module)
    return Any


def _named(module: str, name: str) -> Any:
    match statement := _names(module).get(name):
        case None:
            return _PLAIN.get(name, Any)
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return _evaluated(value, module)
        case ast.ClassDef():
            return _stand_in(module, name)
        case ast.ImportFrom(level=0, module=str(source)):
            named = next(a.name for a in statement.names if (a.asname or a.name) == name)
            return _standard(source, named) or _named(source, named)
    return Any


def _attribute(module: str, holder: str, name: str) -> Any:
    first, dot, rest = holder.partition(".")
    match statement := _names(module).get(first):
        case ast.Import():
            aliases = {a.asname: a.name for a in statement.names if a.asname}
            source = aliases.get(first, first) + dot + rest
        case ast.ImportFrom(level=0, module=str(package)):
            named = next(a.name for a in statement.names if (a.asname or a.name) == first)
            source = f"{package}.{named}{dot}{rest}"
        case _:
            return Any
    return _standard(source, name) or (_named(source, name) if is_known(source) else Any)


def _standard(module: str, name: str) -> Any:
    """What the standard library has; None of other modules."""
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    return getattr(importlib.import_module(module), name, Any)


def _subscripted(kind: Any, inner: ast.expr, module: str) -> Any:
    nodes = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if kind is Literal:
        return Literal[tuple(map(ast.literal_eval, nodes))]
    if kind is Any or collections.abc.Callable in (kind, get_origin(kind)):
        return kind
    parts = tuple(
        ... if isinstance(node, ast.Constant) and node.value is ... else _evaluated(node, module)
        for node in nodes
    )
    if kind in (Optional, Union):
        return Any if Any in parts else Union[(*parts, None)] if kind is Optional else Union[parts]  # noqa: UP007
    try:
        return kind[parts]
    except TypeError:  # a class that is generic by a base
        return kind if isinstance(kind, type) else Any


@functools.cache
def _stand_in(module: str, name: str) -> type:
    """A class of this name, in place of the one that an import would make."""
    found = _find(module, name)
    bases = found.node.bases if found and isinstance(found.node, ast.ClassDef) else []
    known = [
        _stand_in(found.module, base.id)
        for base in bases
        if isinstance(base, ast.Name)
        and (place := _find(found.module, base.id))
        and isinstance(place.node, ast.ClassDef)
    ]
    is_protocol = any("Protocol" in ast.unparse(base) for base in bases)
    return type(name, tuple(known), {"_is_protocol": is_protocol})
