"""Programs written by hand in XLA's syntax; a real one is read in program_test.py."""

import pytest

from cot_flax.planning import collectives
from cot_flax.planning.collectives import Collective

TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[16,64])) -> (s32[], f32[16,64]) {
  %p = (s32[], f32[16,64]{1,0:T(8,128)}) parameter(0)
  %x = f32[16,64]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %g = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[4,4]<=[16], dimensions={0}
  ROOT %out = (s32[], f32[16,64]{1,0}) tuple(%p, %x)
}

%condition (p: (s32[], f32[16,64])) -> pred[] {
  %p = (s32[], f32[16,64]{1,0}) parameter(0)
  ROOT %less = pred[]{:T(512)} compare(%p, %p), direction=LT
}

%counted (p: (s32[], f32[4])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  %r = f32[4]{0} all-to-all(%p), replica_groups={{0,1}}
  ROOT %t = (s32[]) tuple(%p)
}

%three (p: (s32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  %p = (s32[]) parameter(0)
  ROOT %less = pred[]{:T(512)} compare(%p, %constant.1), direction=LT
}

%unrolled (p: (f32[4], u32[])) -> (f32[4], u32[]) {
  %p = (f32[4]{0}, /*index=1*/u32[]{:T(128)}) parameter(0)
  %n = u32[]{:T(128)} get-tuple-element(%p), index=1
  %by = u32[]{:T(128)} constant(2)
  %x = f32[4]{0} get-tuple-element(%p), index=0
  %y = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %m = u32[]{:T(128)} add(%n, %by), metadata={op_name="while"}
  ROOT %t = (f32[4]{0}, /*index=1*/u32[]{:T(128)}) tuple(%y, /*index=1*/%m)
}

%below (p: (f32[4], u32[])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %p = (f32[4]{0}, /*index=1*/u32[]{:T(128)}) parameter(0)
  %n = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[]{:T(512)} compare(%n, %eight), direction=LT
}

%fused_computation (p: f32[6]) -> f32[6] {
  ROOT %g = f32[6]{0} all-gather(%p), replica_groups={{0,1},{2,3}}
}

%async_collective_fusion (p: f32[6]) -> f32[6] {
  ROOT %g = f32[6]{0} all-gather(%p), replica_groups={{0,1},{2,3}}
}

%tile (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  %r = (f32[10]{0}, f32[10,5]{1,0}) all-reduce(%p, %p), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[]) tuple(%p)
}

%wrapped (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %w = (s32[], /*index=1*/f32[16,64]{1,0:T(8,128)}) while(%x), condition=%condition, body=%body, \
metadata={op_name="while"}, backend_config={"known_trip_count":{"n":"24"}}
  %v = (s32[]) while(%x), condition=%condition, body=%tile
  %m = bf16[32]{0} all-gather(%x), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=2] {'axis_1','axis_2'}, dimensions={0}
  %u = (s32[]) while(%x), condition=%three, body=%counted
  %y = (f32[4]{0}, u32[]) while(%x), condition=%below, body=%unrolled
  %async-collective-start.1 = (f32[3]{0}, f32[6]{0}) fusion(%x), calls=%fused_computation
  %fusion.1 = f32[6]{0} fusion(%x), kind=kCustom, calls=%async_collective_fusion
  %async-collective-done.1 = f32[6]{0} fusion(%fusion.1), calls=%fused_computation
  %a = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%x), calls=%wrapped
  %d = f32[2]{0} async-done(%a)
  %h = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %k = f32[8]{0} all-gather-done(%h)
  ROOT %c = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""


@pytest.fixture(scope="module")
def found():
    return collectives.read(TEXT, devices=16, unknown_trips=8)


def test_every_collective_is_counted_as_often_as_its_loops_run(found):
    assert found == {
        Collective("all-gather", "bf16[64,64]", 2 * 64 * 64, 4, False): 24,
        Collective("all-gather", "bf16[32]", 64, 8, False): 1,
        Collective("all-reduce", "f32[10], f32[10,5]", 4 * (10 + 50), 2, False): 8,
        Collective("reduce-scatter", "f32[2]", 32, 4, True): 1,
        Collective("all-gather", "f32[2], f32[8]", 32, 4, True): 1,
        Collective("all-to-all", "f32[4]", 16, 2, False): 3,
        Collective("all-gather", "f32[6]", 24, 2, True): 1,
        Collective("collective-permute", "f32[8]", 32, 16, False): 1,
        Collective("collective-permute", "f32[4]", 16, 16, False): 4,  # to 8 by twos
    }


def test_what_a_ring_sends():
    of = lambda kind: Collective(kind, "", 1200, 4, False).wire  # noqa: E731
    assert of("all-gather") == of("reduce-scatter") == of("all-to-all") == 900
    assert of("all-reduce") == 1800
    assert of("collective-permute") == 1200


def test_sums_by_kind(found):
    table = collectives.by_kind(found)
    assert set(table) == set(collectives.KINDS)
    gathers = table["all-gather"]
    assert gathers["count"] == 27
    assert gathers["size"] == 24 * 8192 + 32 + 24 + 64
    assert gathers["wire"] == (24 * 8192 + 32) * 3 / 4 + 12 + 64 * 7 / 8
    assert gathers["overlaps"] == (24 + 12) / gathers["wire"]
    assert collectives.wire(found) == sum(row["wire"] for row in table.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("f32[2,3]{1,0}", 24), ("(bf16[4], s32[], pred[3])", 8 + 4 + 3), ("u8[5]", 5), ("s4[6]", 3)],
)
def test_bytes_of_a_type(text, expected):
    assert collectives.array_bytes(text) == expected
