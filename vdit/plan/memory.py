"""Bytes that a compiled program holds and moves on one device.

- `memory`: what the program holds, by kind. Arguments are counted from shapes and shardings, the rest by the compiler.
- `hbm_bytes`, `saved_by_loops`: what the program's text says about traffic through HBM and about loops over layers.
- `kernel_bytes`: traffic of Pallas kernels, which no compiler's analysis reports. It is counted from their grids.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from vdit.dist.collectives import Computation, Instruction, computations, repeats, shape_bytes
from vdit.plan.programs import Program

SAVED, GRADIENTS, TEMPORARIES = "activations kept for the backward", "gradients of stacked layers", "temporaries"
_NEEDED = re.compile(r"Used ([\d.]+)([KMGT])i?B? of ([\d.]+)([KMGT])i?B?\s*hbm|\(([\d.]+)([KMGT])\) exceeds available")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    kinds: parameters, EMA, optimizer and batch (their shards' own bytes), padding (what the compiler's layout adds to
        them, and the step's counters), activations kept for the backward (stacks that the loop over layers writes, one
        entry a layer), gradients of stacked layers, other temporaries, outputs that take no input's place, the program.
        None where the program was not compiled to its end.
    total: their sum; where the compiler ran out of memory, what it says that it needs.
    """

    kinds: dict[str, int] | None
    total: float
    capacity: float | None

    @property
    def fits(self) -> bool:
        return self.kinds is not None and (self.capacity is None or self.total <= self.capacity)


def memory(program: Program, compiled: Any, text: str, capacity: float | None) -> Memory:
    """The memory of a compiled program. Arguments come from shard shapes, the rest from the compiler.

    Activations and gradients are taken out of the compiler's temporaries as far as loops stack them; buffers that
    share one place are then counted less than their sum, so they are cut to what is there.
    """
    stats = compiled.memory_analysis()
    loops = saved_by_loops(text) if program.differentiated else LoopBytes(saved=0, gradients=0)
    room = stats.temp_size_in_bytes
    saved = min(int(loops.saved), room)
    gradients = min(int(loops.gradients), room - saved)
    kinds = dict(program.arguments) | {
        "padding": max(0, stats.argument_size_in_bytes - sum(program.arguments.values())),  # arguments may go unused
        SAVED: saved,
        GRADIENTS: gradients,
        TEMPORARIES: room - saved - gradients,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    kinds = {kind: size for kind, size in kinds.items() if size}
    return Memory(kinds=kinds, total=sum(kinds.values()), capacity=capacity)


def out_of_memory(error: Exception, program: Program, capacity: float | None) -> Memory | None:
    """What the compiler says that a program needs which it has refused; None if that was not the reason."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    found = _NEEDED.search(message)
    needed = float("nan")
    if found:
        number, unit = (found[1], found[2]) if found[1] else (found[5], found[6])
        needed = float(number) * _UNITS[unit]
    if not needed >= sum(program.arguments.values()):  # it names the temporaries alone
        needed = (0.0 if needed != needed else needed) + sum(program.arguments.values())
    return Memory(kinds=None, total=needed, capacity=capacity)


_LAYOUT = re.compile(r"^([a-z]\w*)\[([\d,]*)\]\{([\d,]*)(?::([^}]*))?\}")
_TILE = re.compile(r"T\(([\d,]+)\)")
_CALLS = re.compile(r"\b(?:calls|called_computations|to_apply)=\{?%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CONTROL = {"while", "conditional", "call", "async-start"}
# These move nothing through HBM themselves.
_FREE = _CONTROL | {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "copy-done", "async-done", "async-update", "opt-barrier", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "send-done", "recv-done",
}  # fmt: skip
_SLICES = ("slice", "dynamic-slice")
_FREE_CALLS = ('"AllocateBuffer"', '"tpu_custom_call"')  # Pallas kernels are counted in vdit/plan/memory.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopBytes:
    """Bytes on one device that loops stack up, one entry a turn.

    saved: by the forward pass, for the backward. gradients: by the backward pass, of stacked parameters.
    """

    saved: float
    gradients: float


def saved_by_loops(text: str) -> LoopBytes:
    """Arrays that a loop with T turns writes one T-th of in each turn: its state's elements with leading size T.

    What the loop leaves as it is (stacked parameters that it reads) is not among them. An element belongs to the
    backward pass where XLA's name of the loop has JAX's mark of a transposed function.
    """
    program = computations(text)
    times = repeats(program)
    sums = {"saved": 0.0, "gradients": 0.0}
    for around in program.values():
        for loop in around.instructions if around.name in times else ():
            body = program.get(found[1]) if (found := _BODY.search(loop.text)) else None
            if body is None or body.root.opcode != "tuple":
                continue
            turns = times.get(body.name, 0) // max(times[around.name], 1)
            place = _OP_NAME.search(loop.text)
            kind = "gradients" if place and "transpose(" in place.group(1) else "saved"
            for index, part in enumerate(loop.parts):
                if turns > 1 and _leading(part) == turns and _written(body, index):
                    sums[kind] += stored_bytes(part)
    return LoopBytes(**sums)


def hbm_bytes(text: str) -> float:
    """Bytes that one device moves through HBM in one run: operands and results of everything outside of fusions.

    Loops are counted through. A fusion that reads or writes a slice of an array counts the slice. What lies in the
    core's own memory counts nothing, nor do Pallas kernels (vdit.plan.memory). An estimate: caches and prefetches
    that the text does not tell are not in it.
    """
    program = computations(text)
    inside = {
        name
        for computation in program.values()
        for instruction in computation.instructions
        if instruction.opcode not in _CONTROL
        for name in _CALLS.findall(instruction.text)
    }
    total = 0.0
    for name, times in repeats(program).items():
        if name in inside:
            continue
        total += times * sum(_moved(one, program[name], program) for one in program[name].instructions)
    return total


def stored_bytes(type_text: str) -> float:
    """Bytes of an array in HBM, with the padding of its tiles: "bf16[3,72]{1,0:T(8,128)(2,1)}" is 8 x 128 x 2."""
    found = _LAYOUT.match(type_text)
    tile = _TILE.search(found[4]) if found and found[4] else None
    if tile is None:
        return shape_bytes(type_text)
    sizes = [int(size) for size in found[2].split(",") if size]
    order = [int(axis) for axis in found[3].split(",") if axis]  # the fastest axis first
    padded = list(sizes)
    tiles = [int(size) for size in tile[1].split(",")]
    for axis, size in zip(order, reversed(tiles)):
        padded[axis] = -(-padded[axis] // size) * size
    return shape_bytes(f"{found[1]}[{','.join(map(str, padded))}]")


def _moved(instruction: Instruction, around: Computation, program: dict[str, Computation]) -> float:
    if instruction.opcode in _FREE or any(target in instruction.text for target in _FREE_CALLS):
        return 0.0
    operands = [around.by_name.get(name) for name in instruction.operands]
    if instruction.opcode.endswith("-start"):
        place = 0 if instruction.opcode == "copy-start" else min(1, len(instruction.parts) - 1)
        result = instruction.parts[place]
        sides = [result, operands[0].type if operands and operands[0] else ""]
        return stored_bytes(result) * sum("S(" not in side for side in sides)
    inner = None
    if instruction.opcode == "fusion" and (found := _CALLS.search(instruction.text)):
        inner = program.get(found[1])
    if instruction.opcode in _SLICES:
        return 2 * _in_hbm(instruction.type)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].type) if operands[1] else 0.0
    if inner is None:
        read = sum(_in_hbm(operand.type) for operand in operands if operand)
        return read + sum(_in_hbm(part) for part in instruction.parts)
    read = sum(min(_in_hbm(operand.type), _read_of(inner, index)) for index, operand in enumerate(operands) if operand)
    return read + sum(_written_part(inner, index, part) for index, part in enumerate(instruction.parts))


def _in_hbm(part: str) -> float:
    """Bytes of a type that lies in HBM: a memory space of its own ("S(1)") is on the core."""
    return 0.0 if "S(" in part else stored_bytes(part) if not part.startswith("(") else 0.0


def _read_of(inner: Computation, index: int) -> float:
    """How much of its operand a fusion reads: slices, if it takes nothing but slices of it."""
    parameters = (one for one in inner.instructions if one.opcode == "parameter")
    name = next((one.name for one in parameters if f"parameter({index})" in one.text), None)
    users = [one for one in inner.instructions if name in one.operands]
    total = 0.0
    for user in users:
        if user.opcode in _SLICES:
            total += stored_bytes(user.type)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        else:
            return math.inf
    return total


def _written_part(inner: Computation, index: int, part: str) -> float:
    root = inner.root
    made = inner.by_name.get(root.operands[index]) if root.opcode == "tuple" else root
    if made is not None and made.opcode == "dynamic-update-slice":
        update = inner.by_name.get(made.operands[1])
        return min(_in_hbm(part), stored_bytes(update.type)) if update else _in_hbm(part)
    return _in_hbm(part)


def _leading(part: str) -> int | None:
    found = re.match(r"[a-z]\w*\[(\d+),", part)
    return int(found[1]) if found else None


def _written(body: Computation, index: int) -> bool:
    """Whether a loop's body gives another value for this element than the one it was given."""
    made = body.by_name.get(body.root.operands[index])
    while made is not None and made.opcode in ("bitcast", "copy"):
        made = body.by_name.get(made.operands[0])
    return made is None or made.opcode != "get-tuple-element" or f"index={index}" not in made.text.split("metadata")[0]


def kernel_bytes(jaxpr: Jaxpr) -> float:
    """Bytes that one device's kernels move in one run of a traced program, loops multiplied out.

    A block is fetched or written whenever its place changes from one turn of the grid to the next; a place that hangs
    on data is taken to change with every index that it is looked up by.
    """
    return sum(_equation_bytes(equation) for equation in jaxpr.eqns)


def _equation_bytes(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "pallas_call":
        grid = params["grid_mapping"]
        return sum(_moves(block, grid.grid) * _block_bytes(block) for block in grid.block_mappings)
    inner = [kernel_bytes(jaxpr) for jaxpr in _functions(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _moves(block: Any, grid: tuple[int, ...]) -> int:
    """How often a block changes: the turns of all dimensions of the grid up to the last that its place hangs on."""
    jaxpr = block.index_map_jaxpr.jaxpr
    from_index = {variable: {i} for i, variable in enumerate(jaxpr.invars[: len(grid)])}
    for equation in jaxpr.eqns:
        found = set().union(*(from_index.get(v, set()) for v in equation.invars if not hasattr(v, "val")))
        from_index |= {variable: found for variable in equation.outvars}
    used = set().union(*(from_index.get(v, set()) for v in jaxpr.outvars if not hasattr(v, "val")))
    return math.prod(grid[: max(used) + 1]) if used else 1


def _block_bytes(block: Any) -> int:
    sizes = [getattr(size, "block_size", 1 if not isinstance(size, int) else size) for size in block.block_shape]
    array = getattr(block, "array_aval", None) or block.array_shape_dtype
    return math.prod(sizes) * jnp.dtype(array.dtype).itemsize


def _functions(params: dict[str, Any]) -> list[Jaxpr]:
    """The functions that an equation calls."""
    values = [item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,))]
    return [
        item.jaxpr if isinstance(item, ClosedJaxpr) else item
        for item in values
        if isinstance(item, ClosedJaxpr | Jaxpr)
    ]
