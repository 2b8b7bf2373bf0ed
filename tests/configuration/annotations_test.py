"""What fits an annotation, in values as gin files have them."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import pytest

from cot_flax.configuration import annotations


class Maker:
    """Stands for whatever references make."""


class Follows(Protocol):
    def follow(self): ...


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (1, float),
        (True, bool),
        ("a", str),
        ("a", str | os.PathLike),
        (None, int | None),
        (("a", "b"), str | Sequence[str]),
        ([1, 2], tuple[int, ...]),
        ((1, "a"), tuple[int, str]),
        ({"a": 1}, Mapping[str, int]),
        ("b", Literal["a", "b"]),
        (Maker(), Maker),
        (Maker(), Follows | None),
        (None, Follows | None),
        (Maker(), Callable[[int], int]),
        ("anything", Any),
    ],
)
def test_what_fits_stays_as_it_is(value, annotation):
    assert annotations.fit(value, annotation) is value


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        (1e3, int, 1000),
        (8.0, int | None, 8),
        ({"a": 2.0}, Mapping[str, int], {"a": 2}),
    ],
)
def test_a_whole_float_becomes_an_integer(value, annotation, wanted):
    found = annotations.fit(value, annotation)
    assert found == wanted and repr(found) == repr(wanted)


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (True, int, "a whole number"),
        (True, float, "a number"),
        (1, bool, "True or False"),
        (1.5, int, "a whole number"),
        (["a"], str, "a text"),
        ("a", Sequence[str], "a list"),
        ([1, "a"], Sequence[int], "a list"),
        ((1,), tuple[int, str], "a list"),
        ({"a": "b"}, Mapping[str, int], "a dict whose values are each a whole number"),
        ([1], dict, "a dict"),
        ("c", Literal["a", "b"], "'a' or 'b'"),
        ("a", int | None, "a whole number or None"),
        ("a", Maker, "a reference (@NAME()) to a Maker"),
        (None, os.PathLike, "a path"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(value, annotation, words):
    with pytest.raises(TypeError):
        annotations.fit(value, annotation)
    assert annotations.says(annotation) == words


def test_advice_is_the_value_without_its_quotes():
    assert annotations.advice("A", "false", bool) == "set A=False"
    assert annotations.advice("A", "12", int | None) == "set A=12"
    assert annotations.advice("A", "many", int) == "correct A"
    assert annotations.advice("A", 1.5, int) == "correct A"
