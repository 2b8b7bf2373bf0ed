"""What sources say of parameters, without an import of the module."""

import sys
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args

import pytest

from cot_flax.configuration import annotations, signatures

KINDS = """
import os
from typing import Literal
Kind = Literal["a", "b"]
Path = str | os.PathLike
"""
SOURCE = """
raise ImportError  # whoever imports it
import collections.abc
from dataclasses import dataclass
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Protocol
import unknown_library
from own_kinds import Kind, Path as Place

@dataclass
class Base:
    size: int = 1

@dataclass(frozen=True)
class Derived(Base):
    kind: Kind = "a"
    place: "Place | None" = None
    other: unknown_library.Thing = None

class Row(NamedTuple):
    names: Sequence[str]

class Follows(Protocol):
    def follow(self): ...

@unknown_library.decorated
def make(first, second: float = 1.0, *, base: Base, third: Optional[int] = None) -> Row: ...

def implicit(count: int = None, **others): ...
def calls(ask: collections.abc.Callable[[int], str], tracker: Follows): ...
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_kinds.py").write_text(KINDS)
    (tmp_path / "own_source.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_source"
    assert "own_source" not in sys.modules
    for read in (signatures._tree, signatures._names, signatures._find, signatures.signature):
        read.cache_clear()


def test_fields_are_inherited_and_names_are_followed_into_other_modules(module):
    found = signatures.signature(module, "Derived")
    assert list(found.annotations) == ["size", "kind", "place", "other"] and not found.open
    assert found.annotations["size"] is int
    assert found.annotations["kind"] == Literal["a", "b"]
    assert {str, NoneType} < set(get_args(found.annotations["place"]))
    assert found.annotations["other"] is Any
    assert signatures.signature(module, "Row").annotations == {"names": Sequence[str]}


def test_functions_say_what_they_take_and_make(module):
    found = signatures.signature(module, "make").annotations
    assert found["first"] is Any and found["second"] is float
    assert found["third"] == int | None
    assert found["base"] is signatures.returned(module, "Base")
    assert signatures.returned(module, "make") is signatures.returned(module, "Row")
    implicit = signatures.signature(module, "implicit")
    assert implicit.open and implicit.annotations["count"] == int | None
    taken = signatures.signature(module, "calls").annotations
    for value, parameter in ((3, "ask"), ("text", "tracker")):
        with pytest.raises(TypeError):
            annotations.fit(value, taken[parameter])


def test_what_is_there_and_what_cannot_be_known(module):
    assert signatures.is_defined(module, "Row") and not signatures.is_defined(module, "Rows")
    assert {"Derived", "make"} < set(signatures.names(module))
    assert "Kind" not in signatures.names(module)
    assert signatures.is_defined("no_such_module", "anything")
    assert signatures.signature("no_such_module", "anything").open


def test_the_real_modules_say_the_same_as_when_they_are_imported():
    from cot_flax.chains.preparation import Preparation

    found = signatures.signature("cot_flax.chains.preparation", "Preparation").annotations
    assert found.keys() == Preparation.__annotations__.keys()
    assert found["columns"] == Mapping[str, str] | None
    assert found["alignment"] == Preparation.__annotations__["alignment"]
