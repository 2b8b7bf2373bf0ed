"""The collectives of a compiled program: kinds, counts and bytes, read from its text.

A loop's body stands once in the text; it counts as often as the loop runs.
"""

import dataclasses
import math
import re
from collections import Counter
from functools import cache

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}  # others end in their bits: f32, s8, u16

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLEES = re.compile(r"(?:body|calls|to_apply|\w*computations?)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_INDEX = re.compile(r"index=(\d+)")
_TRIPS = re.compile(r'"?known_trip_count"?\s*:?\s*\{"?n"?\s*:\s*"?(\d+)')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_AXIS = re.compile(r"('\w+')=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
        kind: of KINDS.
        shape: its result as the program writes it, "f32[2048,5]".
        size: bytes of the whole array: gathered, summed, or before it is scattered.
        group: devices that take part.
        overlaps: whether other work may run between its start and its end.
    """

    kind: str
    shape: str
    size: int
    group: int
    overlaps: bool

    @property
    def wire(self) -> float:
        """Bytes that a device sends, over a ring."""
        if self.kind == "collective-permute":
            return float(self.size)
        share = self.size * (self.group - 1) / self.group
        return 2 * share if self.kind == "all-reduce" else share


def read(text: str, *, devices: int, unknown_trips: int) -> Counter[Collective]:
    """Returns how often a step runs each collective.

    Args:
        text: `compiled.as_text()`.
        devices: a group that is not spelt out holds all of them.
        unknown_trips: of a loop whose length depends on the data: the most that it may be.
    """
    computations, entry = _computations(text)

    @cache
    def total(name: str, overlaps: bool) -> Counter[Collective]:
        found: Counter[Collective] = Counter()
        for instruction, result, operation, rest in computations.get(name, ()):
            kind = operation.removesuffix("-start")
            if kind in KINDS and not operation.endswith("-done"):
                hidden = overlaps or operation.endswith("-start")
                found[_collective(kind, operation, result, rest, devices, hidden)] += 1
                continue
            # TPUs begin, go on and end one and the same collective within three fusions.
            if instruction.startswith("async-collective-done"):
                continue
            trips = _trips(rest, computations) or unknown_trips if operation == "while" else 1
            starts = operation == "async-start" or instruction.startswith("async-collective-start")
            for callee in _callees(rest):
                if callee.startswith("async_collective_fusion"):
                    continue
                for collective, times in total(callee, overlaps or starts).items():
                    found[collective] += times * trips
        return found

    return total(entry, False)


def by_kind(found: Counter[Collective]) -> dict[str, dict[str, float]]:
    """Sums a kind: `count`, bytes of the arrays (`size`), bytes a device sends (`wire`).

    `overlaps` is the share of the bytes sent that other work may hide.
    """
    table = {}
    for kind in KINDS:
        some = {c: n for c, n in found.items() if c.kind == kind}
        if not some:
            continue
        sent = sum(c.wire * n for c, n in some.items())
        hidden = sum(c.wire * n for c, n in some.items() if c.overlaps)
        table[kind] = {
            "count": sum(some.values()),
            "size": sum(c.size * n for c, n in some.items()),
            "wire": sent,
            "overlaps": hidden / sent if sent else 0.0,
        }
    return table


def wire(found: Counter[Collective]) -> float:
    """Bytes that a device sends in a step."""
    return sum(collective.wire * count for collective, count in found.items())


def array_bytes(text: str) -> int:
    """Bytes of all arrays of a type such as "(f32[2,3]{1,0}, s32[])"; a scalar is one element."""
    total = 0
    for kind, sizes in _ARRAY.findall(text):
        elements = 1
        for size in filter(None, sizes.split(",")):
            elements *= int(size)
        bits = BITS.get(kind) or int(re.search(r"\d*$", kind)[0] or 0)
        total += elements * bits // 8
    return total


def _collective(kind, operation, result, rest, devices, overlaps) -> Collective:
    group = _group(rest, devices)
    size = array_bytes(result)
    starts = operation.endswith("-start")  # whose result holds the operand too
    if kind in ("all-gather", "reduce-scatter"):
        if starts:
            size = size * group // (group + 1)
        elif kind == "reduce-scatter":
            size *= group
    elif kind == "collective-permute" and starts:
        size //= 2
    shape = ", ".join(f"{kind}[{sizes}]" for kind, sizes in _ARRAY.findall(result)[:4])
    return Collective(kind, shape, size, group, overlaps)


def _group(rest: str, devices: int) -> int:
    """How many take part: of groups spelt out, of "[groups,size]", or of named axes of a mesh."""
    if mesh := _MESH.search(rest):
        sizes = dict(_AXIS.findall(mesh[1]))
        return math.prod(int(sizes[axis]) for axis in mesh[2].split(","))
    if groups := _GROUPS.search(rest):
        return len(groups[1].split(",")) if groups[1] else int(groups[2])
    return devices


def _trips(rest: str, computations) -> int | None:
    """How often a `while` runs; None where that depends on the data."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = computations.get(_CONDITION.search(rest)[1], ())
    bounds = _constants(condition).values()
    if len(bounds) != 1:
        return None
    return -(-next(iter(bounds)) // _stride(condition, computations[_BODY.search(rest)[1]]))


def _stride(condition, body) -> int:
    """What a loop's body adds to the counter that its condition compares: 2 where unrolled once."""
    counters = [values for _, _, operation, values in condition if operation == "get-tuple-element"]
    if not counters:
        return 1
    position = int(_INDEX.search(counters[0].partition(")")[2])[1])
    _, _, _, results = body[-1]
    counter = _NAME.findall(results.partition(")")[0])[position]
    (terms,) = [values for name, _, _, values in body if name == counter]
    constants = _constants(body)
    return next((constants[name] for name in _NAME.findall(terms) if name in constants), 1)


def _constants(computation) -> dict[str, int]:
    """Its whole numbers by name."""
    values = {
        name: text.partition(")")[0] for name, _, kind, text in computation if kind == "constant"
    }
    return {name: int(value) for name, value in values.items() if value.isdigit()}


def _computations(text: str):
    """The instructions of every computation, and the name of the first to run."""
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(instruction.groups())
    return found, entry


def _callees(rest: str) -> list[str]:
    names = [name for pair in _CALLEES.findall(rest) for name in pair if name]
    return [name.strip().lstrip("%") for group in names for name in group.split(",")]
