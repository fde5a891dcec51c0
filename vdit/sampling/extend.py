"""Extend: a video goes on after its last frame, or begins before its first.

Forward, a new canvas begins within the video and knows its last frames; backward, a canvas ends in the video's first
ones. What is longer than one canvas is made by several, each of which knows the end of what was made before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vdit.errors import ShapeError
from vdit.sampling.given import Given
from vdit.sampling.grouping import Grouping
from vdit.types import Array


def forward(video: Array, *, context: int) -> Given:
    """float32 [b t h w 3] in [-1, 1] -> Given of a canvas whose first `context` frames are the video's last ones."""
    return Given(video=video[:, -context:], level=np.zeros((len(video), context, 1, 1), np.float32))


def backward(video: Array, *, context: int, frames: int) -> Given:
    """The same for a canvas of `frames` whose last `context` frames are the video's first ones."""
    made = frames - context
    level = np.r_[np.ones(made, np.float32), np.zeros(context, np.float32)]
    return Given(
        video=np.concatenate([np.repeat(video[:, :1], made, axis=1), video[:, :context]], axis=1),
        level=np.broadcast_to(level[:, None, None], (len(video), frames, 1, 1)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A canvas of `frames`, of which `context` are known."""

    frames: int
    context: int


def forward_windows(
    wanted: int, *, has: int, window: int, grouping: Grouping, context: int | None = None
) -> list[Window]:
    """The canvases, in turn, that make at least `wanted` frames after a video of `has`.

    window: frames of the longest canvas. context: how many frames are known at most; None for what the frames to be
    made leave of the window, and half of it where they are many. Raises ShapeError where that cannot be.
    """
    known = _Kind(least=grouping.first, up_to=grouping.head)
    made = _Kind(least=grouping.step, up_to=grouping.tail)
    window, making = grouping.head(window), grouping.passage(wanted)
    return _windows(wanted, making, known, made, has=has, window=window, context=context)


def backward_windows(
    wanted: int, *, has: int, window: int, grouping: Grouping, context: int | None = None
) -> list[Window]:
    """The canvases, in turn, that make at least `wanted` frames before a video of `has`; as forward_windows."""
    known = _Kind(least=grouping.step, up_to=grouping.tail)
    made = _Kind(least=grouping.first, up_to=grouping.head)
    window, making = grouping.head(window), grouping.canvas(wanted)
    return _windows(wanted, making, known, made, has=has, window=window, context=context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """The numbers of frames that one side of a canvas may have: the least, and the largest of so many at most."""

    least: int
    up_to: Callable[[int], int]


def _windows(
    wanted: int, making: int, known: _Kind, made: _Kind, *, has: int, window: int, context: int | None
) -> list[Window]:
    """making: `wanted`, rounded up. Only the first canvas may know fewer frames than the others, where the video is
    short: those that are alike compile once."""
    if wanted < 1:
        raise ShapeError(f"{wanted} frames to make: give 1 or more")
    if has < known.least:
        raise ShapeError(f"a video of {has} frames is too short to be continued: give {known.least} or more")
    if window < known.least + made.least:
        raise ShapeError(f"window={window} holds no known frames and new ones: give {known.least + made.least} or more")
    if context is not None and not known.least <= context <= window - made.least:
        most = window - made.least
        raise ShapeError(f"context={context}: in a window of {window} frames give {known.least} to {most}")
    usual = known.up_to(max(window // 2, known.least) if context is None else context)
    most = max(window - making, usual) if context is None else usual
    first = known.up_to(min(most, has))
    if first + making <= window:
        return [Window(frames=first + making, context=first)]
    rest = -(-(wanted - (window - first)) // (window - usual))
    return [Window(frames=window, context=first)] + [Window(frames=window, context=usual)] * rest
