"""Animate: an image, or several at chosen times, become a video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vdit.errors import ShapeError
from vdit.sampling.given import Given
from vdit.sampling.grouping import Grouping
from vdit.types import Array


def animate(
    images: Array, *, times: Sequence[int] = (0,), frames: int, grouping: Grouping, alone: bool = False
) -> Given:
    """images: float32 [b k h w 3] in [-1, 1], shown at frames times[k] of a video of `frames` or more -> Given.

    Frame 0 has a latent frame of its own; an image at another time fills all frames that are made at once with its
    own: the video stands still there for a moment, as far as the model is told. Only frames times[k] are the user's.
    alone: they alone are given, for models that are told of single frames (condition channels).
    Raises ShapeError for times that are not in the video, or two of which are made at once.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 5 or images.shape[1] != len(times) or not images.size:
        raise ShapeError(f"images of shape {images.shape} for {len(times)} times: give [b k h w 3], one for each time")
    for time in times:
        if not 0 <= time < frames:
            raise ShapeError(f"time {time} is not in a video of {frames} frames: use 0 to {frames - 1}")
    index = grouping.index(grouping.canvas(frames))
    group = index[np.asarray(times)]
    if len(set(group.tolist())) < len(group):
        raise ShapeError(
            f"times {', '.join(map(str, times))}: two of them lie within {grouping.step} frames that are made at once: "
            "move one, or leave it out"
        )
    index = index[index <= group.max()]
    nearest = np.abs(np.arange(len(index))[:, None] - np.asarray(times)).argmin(1)
    for k, g in enumerate(group):
        nearest[index == g] = k
    shown = np.isin(np.arange(len(index)), times) if alone else np.isin(index, group)
    level = np.where(shown, 0.0, 1.0).astype(np.float32)
    return Given(
        video=images[:, nearest], level=np.broadcast_to(level[:, None, None], (len(images), len(level), 1, 1))
    )
