"""What tests read of compiled programs."""

import collections
import re

from vdit.dist.collectives import computations, repeats


def buffers(text: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(type, shape, where it comes from) of each array that the program puts in memory."""
    program = computations(text)
    inside = {name for part in program.values() for one in part.instructions if one.opcode == "fusion"
              for name in re.findall(r"calls=%?([\w.\-]+)", one.text)}  # fmt: skip
    found = collections.Counter()
    for name in repeats(program):
        for one in () if name in inside else program[name].instructions:
            if one.opcode in ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "constant"):
                continue  # they name what another instruction has made, or what is given
            where = re.search(r'op_name="([^"]*)"', one.text)
            for part in one.parts:
                array = re.match(r"(\w+)\[([\d,]*)\]", part)
                if array and array.group(2):
                    shape = tuple(map(int, array.group(2).split(",")))
                    found[array.group(1), shape, where.group(1)[-70:] if where else one.name] += 1
    return list(found)
