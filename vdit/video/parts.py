"""Parts of a video by number: its last frames, and which of its frames a reading takes."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from vdit.errors import VideoError
from vdit.types import Clip
from vdit.video.convert import Fit, Size
from vdit.video.read import iter_frames, probe
from vdit.video.source import Source, decoding
from vdit.video.window import Window, make_clip

_MARGIN = 2.0  # seconds read before where the last frames should begin: containers round, and claim too much


def read_tail(
    path: str | Path,
    frames: int,
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    size: Size | None = None,
    fit: Fit = "cover",
    threads: int = 1,
) -> Clip:
    """The last `frames` frames (fewer if there are no more) of what `read_video` reads with these arguments.

    Begins to decode a little before them where the file can be sought, and never holds more frames than these.
    """
    if frames < 1:
        raise VideoError(f"frames is {frames}, must be at least 1")
    Window.checked(fps=fps, start=start, duration=duration, max_frames=None)
    info = probe(path)
    stop = math.inf if duration is None else start + duration
    options = {"fps": fps, "size": size, "fit": fit, "threads": threads}
    late = _late_start(frames, fps or info.fps, start, min(stop, info.duration or 0.0), fps)
    kept = collections.deque(maxlen=frames)
    for begin in (late, start):
        length = None if duration is None else stop - begin
        try:
            kept.extend(iter_frames(path, start=begin, duration=length, **options))
        except VideoError:
            if begin == start:
                raise
            kept.clear()  # where the container lies about its end, reading from the front tells why
        if len(kept) == frames or begin == start:
            break
        kept.clear()
    times = np.array([time for time, _ in kept])
    return make_clip(times - times[0], [frame for _, frame in kept], fps=fps, declared=info.fps)


def frame_numbers(
    path: str | Path,
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    max_frames: int | None = None,
) -> tuple[np.ndarray, int]:
    """(which frames of the file `iter_frames` gives out, int64 [t], counted from 0; how many frames it holds).

    Decodes all of the file, converts nothing, holds one frame.
    """
    window = Window.checked(fps=fps, start=start, duration=duration, max_frames=max_frames)
    with decoding(path), Source(path) as source:
        count = itertools.count()
        numbered = (dataclasses.replace(shown, frame=next(count)) for shown in source.frames())
        wanted = [number for _, number in window.choose(numbered, source.tick)]
        for _ in numbered:
            pass
        return np.array(wanted, np.int64), next(count)


def _late_start(frames: int, rate: float | None, start: float, end: float, fps: float | None) -> float:
    """From when to read for the last `frames` before `end`: `start`, or later, on the grid that `fps` lays from it."""
    if not rate:
        return start
    late = end - start - frames / rate - _MARGIN
    if late <= 0:
        return start
    return start + (math.floor(late * fps) / fps if fps else late)
