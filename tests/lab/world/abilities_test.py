import collections
import os
import re
import subprocess
import sys

import pytest

from cot_flax.lab.world.abilities import ABILITIES, SMALL, make_items
from cot_flax.lab.world.stories import LARGEST, ORDINALS, SPLITS


def sort_words(question):
    return " ".join(sorted(question.removeprefix("Sort the words: ").split()))


def evaluate_boolean(question):
    return str(eval(question.removesuffix(" is"), {"__builtins__": {}}))


def track_objects(question):
    held = dict(re.findall(r"(\w+) holds the (\w+)\.", question))
    ((a, b),) = re.findall(r"(\w+) and (\w+) swap\.", question)
    (asked,) = re.findall(r"What does (\w+) hold\?", question)
    return held[{a: b, b: a}.get(asked, asked)]


def calculate(question):
    term = question.removeprefix("Compute ")
    left, operator, right = term.split()
    left, right = int(left), int(right)
    value = {"+": left + right, "-": left - right, "*": left * right}.get(operator)
    if operator == "/":
        assert left % right == 0
        value = left // right
    assert 0 < value <= LARGEST
    return f"{term} = {value}"


def retell(question):
    story, _, ordinal = re.fullmatch(
        rf"(.*) Tell the (({'|'.join(ORDINALS)})) event", question
    ).groups()
    (event,) = re.findall(rf"\b{ordinal}, (.*?)\.", story)
    return event


SOLVERS = {
    "word_sorting": sort_words,
    "boolean_expressions": evaluate_boolean,
    "object_tracking": track_objects,
    "calculation": calculate,
    "retelling": retell,
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("ability", ABILITIES)
def test_answers_are_right(ability, split):
    items = make_items(ability, 150, split=split)
    assert len(items) == 150
    for question, answer in items:
        assert answer == SOLVERS[ability](question), question


@pytest.mark.parametrize("ability", sorted(ABILITIES.keys() - set(SMALL)))
def test_splits_are_disjoint(ability):
    parts = [{question for question, _ in make_items(ability, 200, split=s)} for s in SPLITS]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize("ability", SMALL)
def test_what_is_too_small_to_split_is_taught_whole(ability):
    taught = {question for question, _ in make_items(ability, 4000, split="train")}
    assert {question for question, _ in make_items(ability, 200, split="test")} <= taught


@pytest.mark.parametrize("ability", ABILITIES)
def test_no_answer_is_nearly_always_right(ability):
    answers = collections.Counter(answer for _, answer in make_items(ability, 300, split="test"))
    assert answers.most_common(1)[0][1] < 0.7 * 300


@pytest.mark.parametrize("ability", ABILITIES)
def test_seeds_make_different_items(ability):
    first, second, again = (make_items(ability, 30, split="train", seed=s) for s in (0, 1, 0))
    assert first == again != second


def test_items_of_a_seed_are_the_same_in_any_process():
    script = """
import hashlib
from cot_flax.lab.world.abilities import ABILITIES, make_items
items = [make_items(ability, 40, split="validation", seed=4) for ability in ABILITIES]
print(hashlib.sha256(repr(items).encode()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
