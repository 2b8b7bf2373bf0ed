"""The table of targets, and the names that people use."""

import math

import pytest

from cot_flax.errors import UserError
from cot_flax.planning import targets


@pytest.mark.parametrize(
    ("name", "chips", "topology"),
    [
        ("v5e-16", 16, "v5e:4x4"),
        ("v5litepod-16", 16, "v5e:4x4"),
        ("v5e-1", 1, "v5e:1x1"),
        ("v6e-256", 256, "v6e:16x16"),
        ("v5p-64", 32, "v5p:2x4x4"),  # named after its cores
        ("V5P-8", 4, "v5p:2x2x1"),
        ("h200", 1, ""),
        ("a100-80x8", 8, ""),
        ("cpu", 1, ""),
    ],
)
def test_a_target_has_its_chips(name, chips, topology):
    found = targets.find(name)
    assert (found.chips, found.topology) == (chips, topology)


def test_every_topology_has_as_many_chips_as_its_name_says():
    for name in targets.names():
        found = targets.find(name)
        if found.topology:
            sizes = found.topology.partition(":")[2].split("x")
            assert math.prod(map(int, sizes)) == found.chips, name


@pytest.mark.parametrize(
    ("name", "near"), [("v5e-17", "v5e-16"), ("v5x-16", "v5e-16"), ("a100", "a100-80")]
)
def test_an_unknown_target_is_one_line_with_near_ones(name, near):
    with pytest.raises(UserError, match=f"target '{name}'; expected .*{near}.*--target"):
        targets.find(name)


def test_the_table_is_in_si_units():
    h200, v5e = targets.find("h200").chip, targets.find("v5e-4").chip
    assert h200.flops / h200.bandwidth == pytest.approx(206, rel=0.01)  # FLOP a byte
    assert v5e.flops / v5e.bandwidth == pytest.approx(240, rel=0.01)
    assert targets.find("cpu").chip.memory > 2**30
