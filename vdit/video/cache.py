"""Decoded frames of files, kept in memory: a small folder is decoded once, and not again at every step."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np

from vdit.errors import VideoError
from vdit.pixels import Clip
from vdit.video.convert import FrameConverter
from vdit.video.read import Reading, make_clip, read_video
from vdit.video.source import Shown, Source, decoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frames:
    """All frames of a file at one size. shown: when each is on screen; its `frame` is its number in `pixels`.

    pixels: uint8 [h w 3] each. tick, rate: as of `vdit.video.source.Source`.
    """

    shown: tuple[Shown, ...]
    pixels: tuple[np.ndarray, ...]
    tick: float
    rate: float | None


class FrameCache:
    """Reads clips as `vdit.video.read.read_video` does, bit for bit, and keeps whole files as they come.

    What does not fit any more is read from the file, as is what does not decode to its end, and a film that would take
    more than an eighth of the room: to decode it whole would take long. Threads may share it.

    max_bytes: bound of the pixels that are kept. A file counts once for each size it is read at.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._files: dict[tuple[str, tuple[int, int]], _Frames | None] = {}
        self._lock = threading.Lock()

    def read_video(self, path: Path, *, start: float, fps: float, max_frames: int, size: tuple[int, int]) -> Clip:
        """As `vdit.video.read.read_video`; `size` is (height, width)."""
        reading = Reading(start=start, fps=fps, max_frames=max_frames, size=size)
        with self._lock:
            key = (str(path), tuple(size))
            if key not in self._files:
                self._files[key] = self._decoded(path, size)
            kept = self._files[key]
        chosen = [] if kept is None else list(reading.choose(iter(kept.shown), kept.tick))
        if not chosen:  # the file itself says what is wrong
            return read_video(path, reading)
        times = [time - chosen[0][0] for time, _ in chosen]
        return make_clip(times, [kept.pixels[number] for _, number in chosen], fps=fps, declared=kept.rate)

    def _decoded(self, path: Path, size: tuple[int, int]) -> _Frames | None:
        """All frames of a file; None where they do not fit, or do not decode."""
        room = min(self._max_bytes - self._bytes, self._max_bytes // 8) // (size[0] * size[1] * 3)
        shown, frames = [], []
        try:
            with decoding(path), Source(path) as source:
                if (source.duration or 0.0) * (source.rate or 0.0) > room + 1:
                    return None
                convert = FrameConverter(size=size, pixel_aspect=source.pixel_aspect)
                for number, one in enumerate(source.frames()):
                    if number >= room:
                        return None
                    shown.append(dataclasses.replace(one, frame=number))
                    frames.append(convert(one.frame))
                tick, rate = source.tick, source.rate
        except VideoError:
            return None
        self._bytes += sum(frame.nbytes for frame in frames)
        return _Frames(shown=tuple(shown), pixels=tuple(frames), tick=tick, rate=rate)
