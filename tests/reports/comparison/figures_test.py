"""Tests of what the figures show, and that they are drawn."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.reports import task_card

from cot_flax.reports.comparison import figures
from cot_flax.reports.comparison.figures import Line, Panel
from cot_flax.run_folder import Run


def make_run(label, tasks=None, metrics=()):
    cards = {task: task_card(*task.split("_", 1)) for task in tasks or {}}
    results = {"tasks": tasks or {}, "cards": cards}
    return Run(label, Path(label), results, [], list(metrics), is_base=label == "base")


def part(value):
    ends = {"accuracy_low": value - 0.1, "accuracy_high": value + 0.2}
    return {"accuracy": value, **ends, "count": 50, "parse_failure_rate": 0.0}


def test_steps_are_numbers_in_order_with_their_intervals():
    by_steps = {"10": part(0.3), "2": part(0.5)}
    runs = [make_run("none"), make_run("a", {"math_zero_shot_cot": {"by_steps": by_steps}})]
    (panel,) = figures.steps_panels(runs)
    assert panel.title == "math, zero-shot CoT"
    assert panel.lines == [Line(1, [2, 10], [0.5, 0.3], [0.4, 0.3 - 0.1], [0.7, 0.5])]
    assert panel.all_x == [2, 10]
    assert panel.lines[0].at(10)[:3] == (0.3, 0.3 - 0.1, 0.5)
    assert panel.lines[0].at(3) is None


def test_curves_keep_train_and_eval_apart():
    rows = [
        {"step": 10, "kind": "train", "cross_entropy": 2.0},
        {"step": 10, "kind": "eval", "math_zero_shot_cot/accuracy": 0.25, "cross_entropy": 9.0},
        {"step": 20, "kind": "train", "cross_entropy": 1.0},
    ]
    tasks = {"math_zero_shot_cot": {}}
    runs = [make_run("silent"), make_run("told", tasks, rows)]
    (loss,), (accuracy,) = figures.loss_panels(runs), figures.accuracy_panels(runs)
    assert loss.lines == [Line(1, [10, 20], [2.0, 1.0])]
    assert accuracy.lines == [Line(1, [10], [0.25])]
    assert accuracy.title == "Accuracy: math, zero-shot CoT"
    (unknown,) = figures.accuracy_panels([make_run("told", metrics=rows)])
    assert unknown.title == "Accuracy: math_zero_shot_cot"
    assert figures.loss_panels(runs[:1]) == figures.accuracy_panels(runs[:1]) == []


def test_thin_takes_means_of_neighbours(monkeypatch):
    monkeypatch.setattr(figures, "MOST_POINTS", 3)
    x, y = figures.thin([1, 2, 3, 4, 5], [10, 20, 30, 50, 7])
    assert (x, y) == ([2, 4, 5], [15, 40, 7])
    assert figures.thin([1, 2, 3], [4, 5, 6]) == ([1, 2, 3], [4, 5, 6])


def test_looks_differ_and_the_base_is_grey():
    runs = [make_run(label) for label in ("a", "base", "b", "c", "d", "e")]
    found = figures.looks(runs)
    assert found[1].color == figures.BASE_COLOR
    assert len({look.color for look in found}) == 6


@pytest.mark.parametrize("whiskers", [True, False])
def test_drawn_points_lie_where_they_should(whiskers):
    y = [0.2, 0.6, 0.4]
    ends = ([0.1, 0.5, 0.3], [0.3, 0.7, 0.5]) if whiskers else ()
    panel = Panel("t & u", "steps", "%", "percent", [Line(0, [1, 2, 3], y, *ends)])
    svg = figures.draw(panel, [figures.Look("#123456", "o")], ["<run>"])
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "t & u: % by steps; <run>"
    space = {"svg": "http://www.w3.org/2000/svg"}
    markers = [e for e in root.findall(".//svg:use", space) if "#123456" in e.get("style", "")]
    heights = [float(e.get("y")) for e in markers]
    # SVG's y grows downwards: equal steps of 20 points are equally far apart.
    assert len(heights) == 3
    assert heights[0] > heights[2] > heights[1]
    assert heights[0] - heights[2] == pytest.approx(heights[2] - heights[1], rel=1e-4)
