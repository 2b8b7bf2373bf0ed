"""Tests of the choice of sample questions."""

from pathlib import Path

from support.reports import task_card

from cot_flax.reports.comparison import examples
from cot_flax.run_folder import Run

MARKS = {f"q{i}": (1 + i % 4, (i % 3 == 0, i % 2 == 0)) for i in range(40)}


def test_pick_covers_steps_and_patterns():
    chosen = examples.pick(MARKS, 6)
    # The longest questions come first in turn: 4, 3, 2, 1, 4, 3.
    assert [MARKS[id][0] for id in chosen] == [1, 2, 3, 3, 4, 4]
    assert len(set(chosen)) == 6
    assert {MARKS[id][1] for id in chosen} == {pattern for _, pattern in MARKS.values()}


def test_pick_does_not_depend_on_order():
    assert examples.pick(dict(reversed(MARKS.items())), 6) == examples.pick(MARKS, 6)


def test_pick_spreads_over_many_step_counts_and_takes_what_there_is():
    many = {f"q{i}": (i, (True,)) for i in range(9)}
    assert [many[id][0] for id in examples.pick(many, 3)] == [2, 5, 8]
    assert examples.pick({"a": (None, ())}, 5) == ["a"]
    assert examples.pick({}, 5) == []


def run(label, accuracies, rows):
    by_steps = {"by_steps": {"1": {}}}
    tasks = {f"math_{name}": {"accuracy": a} | by_steps for name, a in accuracies.items()}
    cards = {f"math_{name}": task_card("math", name) for name in accuracies}
    predictions = [
        {"task": f"math_{name}", "id": id, "sample": sample, "right": right, "text": text}
        | {"question": f"Is Q: {id} A: {id}?", "gold": "1", "steps": 1}
        for name, id, sample, right, text in rows
    ]
    return Run(label, Path(label), {"tasks": tasks, "cards": cards}, predictions, [])


def test_examples_show_the_first_sample_of_the_best_format():
    one = run(
        "one",
        {"zero_shot_cot": 0.1, "few_shot_cot": 0.9},
        [
            ("zero_shot_cot", "a", 0, False, "worse format"),
            ("few_shot_cot", "a", 0, True, "shown"),
            ("few_shot_cot", "a", 1, True, "second sample"),
            ("few_shot_cot", "b", 0, True, "only here"),
        ],
    )
    two = run("two", {"zero_shot_cot": 0.5}, [("zero_shot_cot", "a", 0, False, "other")])
    without = Run("three", Path("three"), {}, [], [])
    (example,) = examples.examples([one, two, without])
    assert (example.id, example.question) == ("a", "Is Q: a A: a?")
    assert (example.gold, example.steps) == ("1", 1)
    assert [row and row["text"] for row in example.rows] == ["shown", "other", None]
