"""What devices send each other: the collectives of a compiled program, read from its text.

Bytes are what one device sends by the usual ring algorithms, with g devices in a group (Thakur et al., 2005):
all-gather (g-1)/g of the result, reduce-scatter (g-1)/g of the operand, all-reduce 2 (g-1)/g of it, all-to-all
(g-1)/g of it, collective-permute all of it. XLA on CPU has no reduce-scatter of its own choosing: it writes an
all-reduce and takes a slice, so the same program counts twice the bytes there that it does on a TPU.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from vdit.dist.hlo import Computation, Instruction, computations, repeats, shape_bytes

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
