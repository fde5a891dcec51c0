"""Whether what a command makes at once fits into the host's memory: asked before it reads or makes anything.

Videos stream from file to file, so only one canvas of frames counts, and some frames beside it (tools/host_memory.py
measures). Weights, and what a device holds, are not in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from vdit.errors import ShapeError
from vdit.reprs import shown_bytes

# Bytes held for each byte of the frames at hand (height x width x 3 for each), and how many frames that are beside
# those of one canvas: what is read, blended and written meanwhile.
HELD, BESIDE = 24, 96
FIXED = 64 << 20  # beside that: buffers of codecs, compiled programs


def check_memory(frames: int, size: tuple[int, int]) -> str | None:
    """Raises ShapeError if what a command makes at once does not fit into the host's memory.

    Args:
        frames: of one canvas. How long the whole video is does not count.
        size: (height, width) in pixels.

    Returns:
        What is needed and what is free, in one line, where it is more than a quarter of that; else None.
    """
    needed, there = needed_memory(frames, size), free_memory()
    if there is not None and needed > there:
        raise ShapeError(
            f"{frames} frames of {size[0]}x{size[1]} (height x width) at once need about {shown_bytes(needed)} of host "
            f"memory, and {shown_bytes(there)} are free: give a smaller --size or a shorter --window"
        )
    if there is None or needed <= there / 4:
        return None
    return f"host memory: about {shown_bytes(needed)} needed, {shown_bytes(there)} free"


def needed_memory(frames: int, size: tuple[int, int]) -> int:
    """Bytes of host memory that a canvas of so many frames needs; see `check_memory`."""
    return HELD * (frames + BESIDE) * size[0] * size[1] * 3 + FIXED


def free_memory() -> int | None:
    """Bytes that this process can still get: of the machine, or of its container where that has less. None: unknown."""
    found = [_available(Path("/proc/meminfo")), _left(Path("/sys/fs/cgroup/memory.max"), "memory.current")]
    found.append(_left(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), "memory.usage_in_bytes"))
    known = [number for number in found if number is not None]
    return min(known) if known else None


def total_memory() -> int | None:
    """Bytes of the machine's memory. None: unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left(limit: Path, used: str) -> int | None:
    """Of a container; files that it has read count as used, though they give way: so what they take is added."""
    try:
        most = limit.read_text().strip()
        if most == "max":
            return None
        stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
        cached = int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
        return max(0, int(most) - int((limit.parent / used).read_text()) + cached)
    except (OSError, ValueError):
        return None
