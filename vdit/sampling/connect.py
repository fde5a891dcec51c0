"""Connect: from the end of one video to the beginning of another, by a passage between them or by a gradual blend."""

from __future__ import annotations

import numpy as np

from vdit.errors import ShapeError
from vdit.sampling.given import Given
from vdit.sampling.grouping import Grouping
from vdit.types import Array


def connect(first: Array, second: Array, *, frames: int, before: int, after: int) -> Given:
    """Given of a canvas: the last `before` frames of `first`, `frames` to be made, the first `after` of `second`.

    first, second: float32 [b t h w 3] in [-1, 1]. What is to be made holds the nearer of the two frames beside it.
    """
    early = -(-frames // 2)
    ends = np.repeat(first[:, -1:], early, axis=1), np.repeat(second[:, :1], frames - early, axis=1)
    video = np.concatenate([first[:, -before:], *ends, second[:, :after]], axis=1)
    level = np.r_[np.zeros(before), np.ones(frames), np.zeros(after)]
    return _given(video, level)


def blend(
    first: Array, second: Array, *, frames: int, before: int, after: int, strength: float, grouping: Grouping
) -> Given:
    """Given of a canvas in which `first` turns into `second` while both run: its last and the other's first `frames`.

    `before` frames of `first` come ahead of them and `after` of `second` follow, as they are. Between, the canvas
    begins from a mix of both whose share moves from one to the other, and its level rises from nearly 0 to `strength`
    in the middle and falls again: near the ends it follows the videos closely, and in the middle the model may make
    something that is neither.
    """
    if not 0 < strength < 1:
        raise ShapeError(f"strength={strength}: how freely the middle is made anew, give more than 0 and less than 1")
    share = ((np.arange(frames) + 1) / (frames + 1)).astype(np.float32)[:, None, None, None]
    start = first.shape[1] - frames
    mix = (1 - share) * first[:, start:] + share * second[:, :frames]
    video = np.concatenate([first[:, start - before : start], mix, second[:, frames : frames + after]], axis=1)
    groups = frames // grouping.step
    rise = strength * np.sin(np.pi * (np.arange(groups) + 0.5) / groups)
    return _given(video, np.r_[np.zeros(before), np.repeat(rise, grouping.step), np.zeros(after)])


def contexts(frames: int, *, has: tuple[int, int], window: int, grouping: Grouping) -> tuple[int, int] | None:
    """(before, after): known frames on both sides of `frames`, about alike; None if the window is too short for any.

    has: how many there are to be known. Raises ShapeError where they are too few.
    """
    for count, least, where in ((has[0], grouping.first, "before"), (has[1], grouping.step, "after")):
        if count < least:
            raise ShapeError(f"a video of {count} frames is too short {where} a passage: give {least} or more")
    room = window - frames
    if room < grouping.first + grouping.step:
        return None
    after = max(grouping.step, grouping.tail(min(has[1], room // 2)))
    before = grouping.head(min(has[0], room - after))
    return before, grouping.tail(min(has[1], room - before))


def _given(video: np.ndarray, level: np.ndarray) -> Given:
    level = level.astype(np.float32)[:, None, None]
    return Given(video=video, level=np.broadcast_to(level, (len(video), *level.shape)))
