"""Which of a video's frames are wanted, and the clip that they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vdit.errors import VideoError
from vdit.types import Clip
from vdit.video.source import Shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Which frames are wanted: a span of time, a grid within it, a most."""

    fps: float | None
    start: float
    stop: float
    most: float

    @classmethod
    def checked(cls, *, fps, start, duration, max_frames) -> Window:
        if fps is not None and not 0 < fps <= 1000:
            raise VideoError(f"fps is {fps}, must be above 0 and at most 1000, or None for every frame")
        if not 0 <= start < math.inf:
            raise VideoError(f"start is {start}, must be a number of seconds from 0 up")
        if duration is not None and not duration > 0:
            raise VideoError(f"duration is {duration}, must be above 0 seconds, or None for all")
        if max_frames is not None and max_frames < 1:
            raise VideoError(f"max_frames is {max_frames}, must be at least 1, or None for all")
        stop = math.inf if duration is None else start + duration
        return cls(fps=fps, start=start, stop=stop, most=math.inf if max_frames is None else max_frames)

    def choose(self, shown: Iterator[Shown], tick: float) -> Iterator[tuple[float, Any]]:
        """(time, frame) of each frame wanted, a frame as often as the grid meets it."""
        count, held = 0, None
        for now in shown:
            if held is not None:
                for item in self._during(held, now.time, count, tick):
                    yield item
                    count += 1
            if count >= self.most or now.time >= self.stop - tick:
                return
            held = now
            if self.fps is None and count + 1 >= self.most and now.time >= self.start:
                break  # the last one wanted: what follows it need not decode
        if held is not None:
            yield from self._during(held, held.time + held.length, count, tick)

    def _during(self, held: Shown, until: float, count: int, tick: float) -> Iterator[tuple[float, Any]]:
        if self.fps is None:
            if until > self.start + tick:
                yield held.time, held.frame
            return
        for k in range(count, count + max(0, math.ceil((until - self.start) * self.fps)) + 1):
            time = self.start + k / self.fps
            if time + tick >= until or time >= self.stop - tick or k >= self.most:
                return
            yield k / self.fps, held.frame


def make_clip(times: Sequence[float], frames: list[np.ndarray], *, fps: float | None, declared: float | None) -> Clip:
    """A clip of frames uint8 [h w 3], a list that is emptied, and their times [t] in seconds from the first.

    fps: the rate asked for; declared: the container's. Where none was asked for, it is the container's if that
    agrees to 1% with the times, else theirs.
    """
    rate = fps or _rate(np.asarray(times), declared)
    return Clip(frames=_gather(frames), times=np.asarray(times, np.float64), fps=float(rate))


def _gather(frames: list[np.ndarray]) -> np.ndarray:
    """Stacks [h w 3] frames, letting go of each as it is copied so that the peak stays near one clip."""
    out = np.empty((len(frames), *frames[0].shape), np.uint8)
    for i in range(len(frames)):
        out[i], frames[i] = frames[i], None
    return out


def _rate(times: np.ndarray, declared: float | None) -> float:
    if len(times) < 2:
        return declared or 25.0
    measured = (len(times) - 1) / times[-1]
    return declared if declared and abs(declared / measured - 1) < 0.01 else measured
