"""Memory of one device by kind: what goes in, from shapes and shardings, and what the compiler adds."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from vdit.plan.program_text import Kept, kept_by_loops
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
    kept = kept_by_loops(text) if program.differentiated else Kept(saved=0, gradients=0)
    room = stats.temp_size_in_bytes
    saved = min(int(kept.saved), room)
    gradients = min(int(kept.gradients), room - saved)
    kinds = dict(program.held) | {
        "padding": max(0, stats.argument_size_in_bytes - sum(program.held.values())),  # arguments may go unused
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
    if not needed >= sum(program.held.values()):  # it names the temporaries alone
        needed = (0.0 if needed != needed else needed) + sum(program.held.values())
    return Memory(kinds=None, total=needed, capacity=capacity)
