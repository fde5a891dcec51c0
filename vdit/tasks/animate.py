"""Animate: an image, or several at chosen times, become a video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vdit.errors import ShapeError
from vdit.tasks.given import Given
from vdit.types import Array


def animate(images: Array, *, times: Sequence[int] = (0,), frames: int, stride: int) -> Given:
    """images: float32 [k h w 3] in [-1, 1], frame times[k] of a video of `frames` frames each -> Given of b = 1.

    stride: the VAE's in time. Frame 0 has a latent frame of its own; an image at another time fills the whole
    latent frame that it is in, `stride` video frames, of which it is one: the video stands still there for a moment.
    Raises ShapeError for times that are not in the video, or two of which are in one latent frame.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or len(images) != len(times):
        raise ShapeError(f"images of shape {images.shape} for {len(times)} times: give [k h w 3], one for each time")
    group = [-(-time // stride) for time in times]
    for time in times:
        if not 0 <= time < frames:
            raise ShapeError(f"time {time} is not in a video of {frames} frames: use 0 to {frames - 1}")
    if len(set(group)) < len(group):
        raise ShapeError(f"times {tuple(times)}: two are within {stride} frames that the model makes at once: move one")
    count = 1 + max(group) * stride
    nearest = np.abs(np.arange(count)[:, None] - np.asarray(times)).argmin(1)
    owner = -(-np.arange(count) // stride)
    for k, g in enumerate(group):
        nearest[owner == g] = k
    level = np.where(np.isin(owner, group), 0.0, 1.0).astype(np.float32)
    return Given(video=images[nearest][None], level=level[None, :, None, None])
