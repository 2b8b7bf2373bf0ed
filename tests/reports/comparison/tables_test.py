"""Tests of the comparison's columns."""

import pytest
from support.reports import task_card

from cot_flax.reports.comparison import tables
from cot_flax.reports.comparison.cells import Cell
from cot_flax.reports.comparison.tables import Column


def summary(right, count, by_steps=()):
    """A summary from whole numbers: by_steps is (steps, right, count) each."""
    return {
        "accuracy": right / count,
        "accuracy_low": right / count - 0.1,
        "accuracy_high": right / count + 0.1,
        "parse_failure_rate": 0.0,
        "count": count,
        "by_steps": {str(n): summary(r, c) for n, r, c in by_steps},
    }


def results(**tasks):
    """A results.json; math is the skill that is taught, all else is general ability."""
    cards = {}
    for task in tasks:
        dataset, task_format = task.split("_", 1)
        role = "train" if dataset == "math" else "general"
        cards[task] = task_card(dataset, task_format, role)
    return {"tasks": tasks, "cards": cards}


BASE = results(
    sorting_zero_shot_answer=summary(9, 10),
    math_few_shot_cot=summary(2, 10, [(2, 2, 4), (3, 0, 4), (4, 0, 2)]),
    math_zero_shot_cot=summary(1, 10, [(2, 1, 4), (3, 0, 4), (4, 0, 2)]),
    logic_zero_shot_answer=summary(7, 10),
)
STUDENT = results(
    math_few_shot_cot=summary(3, 10, [(2, 1, 4), (3, 1, 4), (4, 1, 2)]),
    math_zero_shot_cot=summary(6, 10, [(2, 3, 4), (3, 2, 4), (4, 1, 2)]),
    sorting_zero_shot_answer=summary(5, 10),
    logic_zero_shot_answer=summary(6, 10),
)


def test_columns_in_order_with_what_sums_up_first():
    columns = tables.compare([BASE, STUDENT], base=0)
    assert [(c.group, c.title, c.subtitle) for c in columns] == [
        ("Reasoning", "math", "3–4 steps"),
        ("Reasoning", "math", "zero-shot CoT"),
        ("Reasoning", "math", "few-shot CoT"),
        ("General ability", "2 tasks", "mean"),
        ("General ability", "against base", "change"),
        ("General ability", "sorting", "zero-shot answer"),
        ("General ability", "logic", "zero-shot answer"),
    ]
    mean, change = columns[3], columns[4]
    assert [cell.value for cell in mean.cells] == pytest.approx([0.8, 0.55])
    assert change.cells[0] is None
    assert change.cells[1].value == pytest.approx(-0.25)


def test_many_steps_pools_three_and_four_of_the_best_format():
    (column,) = tables.many_steps_column([BASE, STUDENT, {}], "math")
    base, student, none = column.cells
    # The base is better few-shot (2 of 10 against 1), the student zero-shot (6 against 3).
    assert (base.value, base.note) == (0, "few-shot CoT")
    assert (student.value, student.count, student.note) == (3 / 6, 6, "zero-shot CoT")
    assert none is None


def test_no_column_of_many_steps_without_such_questions():
    runs = [results(math_zero_shot_cot=summary(1, 4, [(1, 0, 2), (2, 1, 2)]))]
    assert tables.many_steps_column(runs, "math") == []
    assert [c.subtitle for c in tables.compare(runs)] == ["zero-shot CoT"]


def test_a_run_that_lacks_a_general_task_has_no_mean():
    lacking = results(logic_zero_shot_answer=summary(7, 10))
    columns = tables.compare([BASE, lacking, {}], base=0)
    mean, change = (c for c in columns if c.kind in ("mean", "change"))
    assert mean.cells[0] and mean.cells[1:] == [None, None]
    assert change.cells == [None, None, None]


def test_one_general_task_is_its_own_mean():
    runs = [results(sorting_zero_shot_answer=summary(n, 10)) for n in (8, 6)]
    columns = tables.compare(runs, base=0)
    assert [c.kind for c in columns] == ["change", "accuracy"]
    assert columns[0].cells[1].value == pytest.approx(-0.2)
    assert [c.kind for c in tables.compare(runs)] == ["accuracy"]


def test_formats_of_one_data_set_are_not_pooled():
    """They ask the same questions: 30 answers to 10 questions are no 30 questions."""
    right = {"zero_shot_cot": (2, 5), "few_shot_cot": (6, 4), "zero_shot_answer": (3, 9)}
    run = results(**{f"sorting_{name}": summary(n, 10) for name, (n, _) in right.items()})
    assert {c.kind for c in tables.compare([run])} == {"accuracy"}
    tasks = {
        f"{name}_{format}": summary(n[place], 10)
        for place, name in enumerate(("sorting", "logic"))
        for format, n in right.items()
    }
    base = results(**{name: summary(1, 10) for name in tasks})
    columns = tables.compare([base, results(**tasks)], base=0)
    assert [(c.title, c.subtitle, c.kind) for c in columns[:4]] == [
        ("2 tasks", "mean, zero-shot CoT", "mean"),
        ("against base", "change, zero-shot CoT", "change"),
        ("2 tasks", "mean, few-shot CoT", "mean"),
        ("against base", "change, few-shot CoT", "change"),
    ]
    means = [c.cells[1] for c in columns if c.kind == "mean"]
    assert [cell.value for cell in means] == pytest.approx([0.35, 0.5, 0.6])
    assert {cell.count for cell in means} == {20}


def test_the_share_of_the_most_frequent_label_stands_with_its_column():
    run = results(sorting_zero_shot_answer=summary(5, 10) | {"majority": 0.4})
    other = results(sorting_zero_shot_answer=summary(5, 10) | {"majority": 0.5})
    assert tables.compare([run, {}])[0].majority == 0.4
    assert tables.compare([run, other])[0].majority is None  # of different questions
    assert tables.compare([BASE])[0].majority is None


def test_best_is_highest_unless_all_are_equal():
    low, high = Cell(0.2, 0.1, 0.3), Cell(0.4, 0.3, 0.5)
    column = Column("", "", "", [low, high, None, high])
    assert [column.is_best(cell) for cell in column.cells] == [False, True, False, True]
    assert not Column("", "", "", [high, high]).is_best(high)


def test_count_of_a_column_only_if_it_is_one():
    cells = [Cell(0.1, 0, 1, 5), None, Cell(0.3, 0, 1, 5)]
    assert Column("", "", "", cells).count == 5
    assert Column("", "", "", [*cells, Cell(0.3, 0, 1, 6)]).count is None


@pytest.mark.parametrize(
    "role, group",
    [("train", "Reasoning"), ("transfer", "Reasoning"), ("general", "General ability")],
)
@pytest.mark.parametrize("by_steps", [(), [(1, 2, 5), (2, 3, 5)]])
def test_the_role_says_where_a_task_stands_and_not_its_steps(role, group, by_steps):
    # The format's name stands in the data set's, too: nothing is read off names.
    card = task_card("my_zero_shot_cot", "few_shot_cot", role)
    run = {"tasks": {"x": summary(5, 10, by_steps)}, "cards": {"x": card}}
    (column,) = tables.compare([run, {}])
    assert (column.group, column.title) == (group, "my zero shot cot")
    assert (column.subtitle, column.cells[1]) == ("few-shot CoT", None)


def test_titles():
    card = task_card("word_sorting", "zero_shot_cot")
    assert tables.task_title(card) == ("word sorting", "zero-shot CoT")
    titles = [tables.steps_title(*ends) for ends in ((3, 4), (3, 3), (1, 1))]
    assert titles == ["3–4 steps", "3 steps", "1 step"]
