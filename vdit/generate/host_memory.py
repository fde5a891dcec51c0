"""Whether a video fits into the host's memory: asked before a command reads or makes anything.

Until videos stream from file to file, a command holds all frames at once, as bytes and as float32, some of them several
times. How many bytes that is for each byte of video (width x height x 3 for each frame) was measured at four sizes by
tools/host_memory.py; HELD has what was found, rounded up. Weights, and what a device holds, are not in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from vdit.errors import ShapeError
from vdit.reprs import shown_bytes

# Bytes held for each byte of the video that is written (given frames and new ones).
HELD = {
    "animate": 11, "extend": 11, "loop": 11, "connect": 10, "edit": 15, "edit a part": 24, "inpaint": 24,
    "rollout": 11, "simulate": 11, "reconstruct": 24,
}  # fmt: skip
FIXED = 64 << 20  # beside that: buffers of codecs, compiled programs
HELPS = {
    "edit": "--take less of the video, a smaller --size, or a lower --fps",
    "edit a part": "--take less of the video, a smaller --size, or a lower --fps",
    "inpaint": "--take less of the video, a smaller --size, or a lower --fps",
    "reconstruct": "fewer --frames, a smaller --area, or a lower --fps",
    "rollout": "a shorter input (the length of what is made does not count), a smaller --size, or a lower --fps",
}
_HELP = "a shorter video, a smaller --size, a lower --fps, or vdit rollout, which goes on in flat memory"


def check_memory(work: str, frames: int, size: tuple[int, int], *, videos: int = 1) -> str | None:
    """Raises ShapeError if a video does not fit into the host's memory while it is worked on.

    Args:
        work: a key of HELD.
        frames: of the whole video; for "rollout" and "simulate" of what is given.
        size: (height, width) in pixels.
        videos: how many are made one after the other.

    Returns:
        What is needed and what is free, in one line, where it is more than a quarter of that; else None.
    """
    needed, there = needed_memory(work, frames, size, videos=videos), free_memory()
    if there is not None and needed > there:
        raise ShapeError(
            f"{frames} frames of {size[1]}x{size[0]} (width x height) need about {shown_bytes(needed)} of host memory, "
            f"and {shown_bytes(there)} are free: give {HELPS.get(work, _HELP)}"
        )
    if there is None or needed <= there / 4:
        return None
    return f"host memory: about {shown_bytes(needed)} needed, {shown_bytes(there)} free"


def needed_memory(work: str, frames: int, size: tuple[int, int], *, videos: int = 1) -> int:
    """Bytes of host memory that a video needs; see `check_memory`."""
    held = HELD[work] + (4 if videos > 1 else 0)  # the video before is still there, as float32
    return held * frames * size[0] * size[1] * 3 + FIXED


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
