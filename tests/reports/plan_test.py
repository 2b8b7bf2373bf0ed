"""What is printed."""

import dataclasses
import io

import pytest
from rich.console import Console

from cot_flax.planning import plan, targets
from cot_flax.planning.search import Option
from cot_flax.reports import plan as report

H200 = targets.find("h200x4")


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def test_a_plan_says_what_it_knows(experiment, console):
    report.print_plan(plan.modelled(experiment, H200, price=2.5), console)
    printed = console.file.getvalue()
    for word in ("parameters", "optimizer", "activations", "headroom", "tokens/s", "chip-hours"):
        assert word in printed
    assert "at the price given" in printed and "teacher data" in printed
    assert "9.77 MiB" in printed  # 1,000 steps of 16 x 32 rows of 20 bytes
    assert "nothing was compiled" in printed and "Fits h200x4" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_without_a_price_no_cost(experiment, console):
    report.print_plan(plan.modelled(experiment, H200), console)
    assert "at the price given" not in console.file.getvalue()


def test_options_are_a_line_each(experiment, console):
    found = plan.modelled(experiment, H200)
    large = dataclasses.replace(found.memory, temporaries=2**50)
    too_large = dataclasses.replace(found, memory=large)
    options = [Option("--gin.FSDP=True", too_large, False), Option("", found, True)]
    best = report.print_options("Tried:", options, console)
    _, second, third = console.file.getvalue().splitlines()
    assert best is options[1]
    assert second.startswith("  too large: --gin.FSDP=True") and "by the formula" in second
    assert third.startswith("  fits: as it stands")
    assert report.print_options("Tried:", options[:1], console) is None
    assert "nothing that was tried" in console.file.getvalue()


def test_the_fastest_that_fits_is_the_best(experiment, console):
    found = plan.modelled(experiment, H200)
    slow = dataclasses.replace(found.estimate, step=2 * found.estimate.step)
    options = [
        Option("a", found, True),
        Option("b", dataclasses.replace(found, estimate=slow), True),
    ]
    assert report.print_options("Tried:", options, console) is options[0]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_compilation_is_announced(experiment, terminal):
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    with report.compiling(experiment, targets.find("v5e-4"), 3, console):
        pass
    line = "compiling for v5e-4, try 3: batch 16, mesh data 2 x model 2 FSDP, 1 micro-batch(es)"
    assert console.file.getvalue().count(line) == 1
    with report.compiling(experiment, H200, 4, console):
        pass
    assert "h200" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12, "12 B"), (-(2**20), "-1.00 MiB"), (15.75 * 2**30, "15.75 GiB"), (3 * 2**40, "3.00 TiB")],
)
def test_sizes(value, expected):
    assert report.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0021, "2.1 ms"), (1.5, "1.5 s"), (90, "90 s"), (600, "10 min"), (9000, "2.5 h")],
)
def test_durations(value, expected):
    assert report.duration(value) == expected
