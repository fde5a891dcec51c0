"""A compiled program's text as computations and instructions: as much of it as vdit reads."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

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
