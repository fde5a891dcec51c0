"""What devices send each other: the collectives of a compiled program, read from its text.

Bytes are what one device sends by the usual ring algorithms, with g devices in a group (Thakur et al., 2005):
all-gather (g-1)/g of the result, reduce-scatter (g-1)/g of the operand, all-reduce 2 (g-1)/g of it, all-to-all
(g-1)/g of it, collective-permute all of it. XLA on CPU has no reduce-scatter of its own choosing: it writes an
all-reduce and takes a slice, so the same program counts twice the bytes there that it does on a TPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable
import numpy as np
from jax.sharding import Mesh

_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """`name = type opcode(operands), attributes`; text is the line from the type on."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @functools.cached_property
    def parts(self) -> list[str]:
        """The types of a tuple's elements; of anything else its own."""
        return _split(self.type[1:-1]) if self.type.startswith("(") else [self.type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """A function of the program."""

    name: str
    is_entry: bool
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.instructions if instruction.is_root)

    def calls_target(self, target: str) -> bool:
        """Whether one of its instructions is a custom call of that target."""
        return any(f'custom_call_target="{target}"' in instruction.text for instruction in self.instructions)


def computations(text: str) -> dict[str, Computation]:
    """The functions of `compiled.as_text()` by name."""
    found: dict[str, Computation] = {}
    head, lines = None, []
    for line in text.splitlines():
        if head is None:
            head = _HEAD.match(line)
        elif line.rstrip() == "}":  # a kernel's metadata may begin lines with one too
            name = head.group(2)
            found[name] = Computation(name=name, is_entry=bool(head.group(1)), instructions=tuple(lines))
            head, lines = None, []
        elif match := _INSTRUCTION.match(line):
            lines.append(_instruction(*match.groups()))
    return found


def repeats(program: dict[str, Computation]) -> dict[str, int]:
    """How often each function runs while the program runs once; those that never run are left out.

    A loop runs as often as XLA has noted, or as its counter says, and once where neither is to be had. Every branch
    of a conditional counts.
    """
    times: dict[str, int] = {}

    def enter(name: str, factor: int) -> None:
        if name not in program:
            return
        times[name] = times.get(name, 0) + factor
        for instruction in program[name].instructions:
            if loop := _LOOP.search(instruction.text):
                enter(loop.group(2), factor * _trips(instruction, program[name], program))
                continue
            if instruction.opcode in ("async-done", "async-update"):
                continue  # they name again what async-start has called
            for called in _called(instruction.text):
                enter(called, factor)

    for computation in program.values():
        if computation.is_entry:
            enter(computation.name, 1)
    return times


def shape_bytes(type_text: str) -> float:
    """Bytes of an array's type, or of all arrays of a tuple's: "bf16[2,3]{1,0}" is 12."""
    return sum(
        _bits(dtype) / 8 * math.prod(int(size.strip("<=")) for size in dims.split(",") if size)
        for dtype, dims in _ARRAY.findall(type_text)
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)  # f8e4m3fn is 8, bf16 16, s32 32
    return int(digits.group(1)) if digits else 0


def _instruction(root: str | None, name: str, text: str) -> Instruction:
    opcode = _OPCODE.search(text)
    start = opcode.start(1) if opcode else len(text)
    arguments = _argument_list(text[opcode.end() :]) if opcode else ""
    return Instruction(
        name=name,
        type=text[:start].strip(),
        opcode=opcode.group(1) if opcode else "",
        operands=tuple(_NAME.findall(arguments)),
        text=text,
        is_root=bool(root),
    )


def _argument_list(text: str) -> str:
    """What stands before the parenthesis that closes the list."""
    depth = 1
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[:i]
    return text


def _called(text: str) -> list[str]:
    names = _CALLED.findall(text)
    for group in _CALLED_LISTS.findall(text):
        names += _NAME.findall(group)
    return names


def _trips(loop: Instruction, around: Computation, program: dict[str, Computation]) -> int:
    if known := _TRIPS.search(loop.text):
        return int(known.group(1))
    condition, body = (program.get(name) for name in _LOOP.search(loop.text).groups())
    if condition is None or body is None:
        return 1
    compare = _inside_fusions(condition, condition.root, program)
    if compare is None:
        return 1
    index, limit, direction = compare
    start = _element(around, loop.operands[0], index)
    first = _constant(around, start) or 0
    step = _step(body, index)
    last = limit + (1 if direction == "LE" else 0)
    return max(1, math.ceil((last - first) / step))


def _inside_fusions(
    condition: Computation, root: Instruction, program: dict[str, Computation]
) -> tuple[int, int, str] | None:
    """(which element of the state counts, up to what, "LT" or "LE") of a loop's condition."""
    values = [condition.by_name.get(name) for name in root.operands]
    direction = re.search(r"direction=(L[TE])", root.text)
    if root.opcode == "fusion":
        inner = next((program[name] for name in _called(root.text) if name in program), None)
        direction = inner and re.search(r"direction=(L[TE])", inner.root.text)
    if direction is None or len(values) != 2 or None in values:
        return None
    counter = next((value for value in values if value.opcode == "get-tuple-element"), None)
    limit = next((_constant(condition, value.name) for value in values if value.opcode == "constant"), None)
    if counter is None or limit is None:
        return None
    return _index(counter), limit, direction.group(1)


def _step(body: Computation, index: int) -> int:
    """How far a loop's counter moves in one turn: 1 unless the body adds another constant."""
    name = _element(body, body.root.name, index)
    add = body.by_name.get(name)
    if add is None or add.opcode != "add":
        return 1
    steps = [_constant(body, operand) for operand in add.operands]
    return next((step for step in steps if step), 1)


def _element(computation: Computation, name: str, index: int) -> str | None:
    """The name of an element of a tuple that is made here."""
    made = computation.by_name.get(name)
    return made.operands[index] if made is not None and made.opcode == "tuple" else None


def _constant(computation: Computation, name: str | None) -> int | None:
    found = computation.by_name.get(name)
    while found is not None and found.opcode == "copy":
        found = computation.by_name.get(found.operands[0])
    value = re.search(r"\bconstant\((-?\d+)\)", found.text) if found is not None else None
    return int(value.group(1)) if value else None


def _index(instruction: Instruction) -> int:
    return int(re.search(r"index=(\d+)", instruction.text).group(1))


def _split(text: str) -> list[str]:
    """Elements of a tuple's type; commas inside brackets do not part them."""
    parts, depth, begin = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [part.strip() for part in [*parts, text[begin:]]]


KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_KIND_OF = {"ragged-all-to-all": "all-to-all"} | {kind: kind for kind in KINDS}
_NUMBERS = re.compile(r"\d+")
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program, or several of one kind over the same mesh axes (`totals`).

    kind: one of KINDS. axes: mesh axes that its groups of devices span, in the mesh's order.
    count: how often a device takes part while the program runs once: loops are counted through.
    bytes: what one device sends in all of these, by the module's convention. payload: the array itself, the same
    number of times: the result of an all-gather, the operand of the others. where: XLA's name of the operation.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    count: int
    payload: float
    where: str = ""


def collectives(compiled_text: str, mesh: Mesh) -> list[Collective]:
    """The collectives of `compiled.as_text()`, compiled for one program on all of the mesh's devices.

    Each counts as often as the loops around it run; where XLA does not know how often (the condition is not a
    comparison of a counter with a constant), the loop counts once. Of a conditional every branch counts once: an
    upper bound. The two halves of an asynchronous operation are one. Groups of one device are left out.
    """
    found = []
    program = computations(compiled_text)
    for name, times in repeats(program).items():
        computation = program[name]
        for instruction in computation.instructions:
            kind = _kind(instruction, computation)
            if kind is not None:
                found.append(_read(kind, instruction, mesh, times))
    return [collective for collective in found if collective is not None]


def totals(found: Iterable[Collective]) -> list[Collective]:
    """One line for each kind and set of axes, the most bytes first."""
    sums: dict[tuple, list] = defaultdict(lambda: [0.0, 0, 0.0])
    for one in found:
        line = sums[one.kind, one.axes]
        line[0] += one.bytes
        line[1] += one.count
        line[2] += one.payload
    lines = [
        Collective(kind=kind, axes=axes, bytes=sent, count=count, payload=payload)
        for (kind, axes), (sent, count, payload) in sums.items()
    ]
    return sorted(lines, key=lambda line: -line.bytes)


def _kind(instruction: Instruction, computation: Computation) -> str | None:
    """The kind of a collective that is to be counted here, else None."""
    kind = _KIND_OF.get(instruction.opcode.removesuffix("-start"))
    if kind is None:
        return None
    if "async_collective_fusion_config" in instruction.text:
        # A TPU writes such an operation in each of the fusions that it runs beside; the first one starts it.
        return kind if computation.calls_target("AsyncCollectiveStart") else None
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        return "reduce-scatter"  # a TPU's form of it: a fusion of the all-reduce and the slice
    return kind


def _read(kind: str, instruction: Instruction, mesh: Mesh, times: int) -> Collective | None:
    place = _OP_NAME.search(instruction.text)
    where = place.group(1) if place else instruction.name
    if kind == "collective-permute":
        pairs = _groups(_PAIRS.search(instruction.text).group(1))
        moved = [pair for pair in pairs if pair[0] != pair[1]]
        payload = shape_bytes(_result(instruction))
        share = 1.0
        axes = _axes(moved, mesh)
    else:
        groups = _replica_groups(instruction.text, mesh.size)
        g = max(len(group) for group in groups)
        axes = _axes(groups, mesh)
        payload = shape_bytes(_result(instruction))
        if instruction.opcode == "reduce-scatter":
            payload *= g
        share = (2 if kind == "all-reduce" else 1) * (g - 1) / g
    if not axes:
        return None
    return Collective(
        kind=kind, axes=axes, bytes=payload * share * times, count=times, payload=payload * times, where=where
    )


def _result(instruction: Instruction) -> str:
    """The type of what the collective gives; a started one gives its operand and more beside it."""
    parts = instruction.parts
    if instruction.opcode in ("all-gather-start", "collective-permute-start") and len(parts) > 1:
        return parts[1]
    return instruction.type


def _axes(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ. Ids are places in `mesh.devices.flat`."""
    shape = mesh.devices.shape
    differ = np.zeros(len(shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        differ |= (places != places[:, :1]).any(1)
    return tuple(axis for axis, is_in in zip(mesh.axis_names, differ) if is_in)


def _replica_groups(text: str, devices: int) -> list[list[int]]:
    """Groups of device ids, in any of the three forms that XLA writes."""
    if found := _NAMED.search(text):
        return _named_groups(*found.groups())
    if found := _IOTA.search(text):
        shape, dims, order = (_ints(part or "") for part in found.groups())
        return _iota(dims, order).reshape(shape).tolist()
    found = _LISTED.search(text)
    groups = _groups(found.group(1)) if found else []
    return groups or [list(range(devices))]


def _named_groups(axes: str, ids: str | None, chosen: str) -> list[list[int]]:
    """mesh['a'=2,'b'=4], device_ids=([2,2,2]T(0,2,1)) {'b':(2)2}: the devices along axes, or parts of axes.

    'b':(2)2 is the part of size 2 of axis b with a part of size 2 before it.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        parts.setdefault(name, []).append((int(before), int(size)) if size else (1, sizes[name]))
    if ids is None:
        order = np.arange(math.prod(sizes.values()))
    elif ids.startswith("["):
        dims, _, turn = ids.partition("T")
        order = _iota(_ints(dims), _ints(turn)).reshape(-1)
    else:
        order = np.asarray(_ints(ids))
    shape, inside = [], []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(parts.get(name, [])):
            shape += [before // done, part]
            inside.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    outside = [i for i in range(len(shape)) if i not in inside]
    width = math.prod(shape[i] for i in inside)
    return order.reshape(shape).transpose(outside + inside).reshape(-1, width).tolist()


def _iota(dims: list[int], order: list[int]) -> np.ndarray:
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order) if order else ids


def _groups(text: str) -> list[list[int]]:
    return [_ints(part) for part in re.findall(r"\{([\d,]+)\}", text)]


def _ints(text: str) -> list[int]:
    return [int(number) for number in _NUMBERS.findall(text)]
