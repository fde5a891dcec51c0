"""Inpaint: what a mask says is made anew, in space and in time. Outpaint: the video stands in a larger frame."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from vdit.errors import ShapeError
from vdit.sampling.given import Given
from vdit.types import Array


def inpaint(video: Array, mask: Array, level: Array | None = None) -> Given:
    """float32 [b t h w 3] in [-1, 1]; mask: bool [t h w], to be made -> Given, with the mask filled smoothly.

    level: float32 [t h w], None for 1 where the mask is true, and 0. A latent is known if all of its pixels are; the
    others hold something of what is put into the mask.
    """
    level = np.broadcast_to(np.asarray(mask if level is None else level, np.float32), video.shape[:4])
    return Given(video=np.stack([smooth_fill(frames, mask) for frames in video]), level=level)


def edge_levels(mask: Array, *, edge: float, stride: int, side: int) -> np.ndarray:
    """Levels float32 [t h w] of a mask [t h w]: 1 where it is true, but `edge` in latents of which it is only a part.

    stride, side: frames and pixels that a latent stands for, the first frame alone.
    """
    if not 0 < edge <= 1:
        raise ShapeError(f"edge={edge}: the level at which latents known in part begin, give more than 0 and at most 1")
    frames, height, width = mask.shape
    early = np.pad(mask, ((stride - 1, -(frames - 1) % stride), (0, 0), (0, 0)), mode="edge")
    cells = early.reshape(-1, stride, height // side, side, width // side, side)
    part = ~cells.all((1, 3, 5), keepdims=True)
    level = np.where(cells, np.where(part, np.float32(edge), np.float32(1)), np.float32(0))
    return level.reshape(early.shape)[stride - 1 :][:frames]


def nearest_shown(mask: Array) -> np.ndarray:
    """int [t]: for each frame the nearest in time of which something is known; itself, where that is so.

    mask: bool [t h w], not true everywhere.
    """
    shown = np.flatnonzero(~mask.all((1, 2)))
    frames = np.arange(len(mask))
    return shown[np.abs(frames[:, None] - shown).argmin(1)]


def smooth_fill(video: Array, mask: Array) -> np.ndarray:
    """float32 [t h w 3], with colours from around where mask [t h w] is true; grey where a frame is masked whole.

    Pull-push (Gortler et al. 1996): the known is averaged down to one pixel, and what is missing at each size is
    interpolated from the next smaller one.
    """
    video = np.asarray(video, np.float32)
    weight = (~np.asarray(mask))[..., None].astype(np.float32)
    return np.where(weight > 0, video, _pull_push(video * weight, weight))


def _pull_push(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours times their weights [t h w 3], weights in [0, 1] [t h w 1] -> colours everywhere."""
    height, width = total.shape[1:3]
    if height == width == 1:
        return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    small, count = _halved(total), _halved(weight)
    below = _pull_push(small / np.maximum(count, 1), np.minimum(count, 1))
    return total + (1 - weight) * _doubled(_doubled(below, 1, height), 2, width)


def _halved(x: np.ndarray) -> np.ndarray:
    """Sums over blocks of 2 x 2: [t h w c] -> [t h/2 w/2 c], rounded up."""
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    x = x[:, ::2] + x[:, 1::2]
    return x[:, :, ::2] + x[:, :, 1::2]


def _doubled(x: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Linear interpolation along an axis from blocks of 2 to `length`."""
    at = np.clip((np.arange(length) + 0.5) / 2 - 0.5, 0, x.shape[axis] - 1)
    low = at.astype(int)
    share = np.expand_dims((at - low).astype(np.float32), tuple(range(1, x.ndim - axis)))
    high = np.minimum(low + 1, x.shape[axis] - 1)
    return (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A larger frame of `size` (h, w), in which a video of `inner` (h, w) stands `at` (y, x)."""

    size: tuple[int, int]
    inner: tuple[int, int]
    at: tuple[int, int]

    def __post_init__(self) -> None:
        shown = [f"{width}x{height}" for height, width in (self.inner, self.size)]
        if any(inner > size for inner, size in zip(self.inner, self.size)):
            raise ShapeError(
                f"a video of {shown[0]} does not go into a frame of {shown[1]} (width x height): give a larger one"
            )
        if self.inner == self.size:
            raise ShapeError(f"the frame is {shown[1]} as the video is: nothing is to be made, give a larger one")
        room = tuple(size - inner for inner, size in zip(self.inner, self.size))
        if any(not 0 <= at <= most for at, most in zip(self.at, room)):
            raise ShapeError(f"at={self.at}: the video's upper left corner (y, x), give (0, 0) to {room}")

    @classmethod
    def around(
        cls, inner: tuple[int, int], size: tuple[int, int], at: tuple[int, int] | Literal["centre"], cell: int
    ) -> Frame:
        """at "centre": there as nearly as the video's corner falls on a multiple of `cell`, the pixels of a latent, so
        that the fewest latents are known only in part.
        """
        if at == "centre":
            room = [max(0, outer - own) for outer, own in zip(size, inner)]
            at = tuple(min(round(side / 2 / cell), side // cell) * cell for side in room)
        return cls(size=tuple(size), inner=tuple(inner), at=tuple(at))

    @property
    def mask(self) -> np.ndarray:
        """bool [h w]: what is to be made."""
        mask = np.ones(self.size, bool)
        mask[self._inside] = False
        return mask

    def place(self, video: np.ndarray) -> np.ndarray:
        """[b t h w 3] -> the video in the larger frame, grey around."""
        out = np.zeros((*video.shape[:2], *self.size, 3), np.float32)
        out[:, :, *self._inside] = video
        return out

    @property
    def _inside(self) -> tuple[slice, slice]:
        return tuple(slice(at, at + inner) for at, inner in zip(self.at, self.inner))


def size_of_aspect(inner: tuple[int, int], aspect: float, multiple: int) -> tuple[int, int]:
    """The smallest (h, w), in multiples of `multiple`, that holds (h, w) and is nearly `aspect` (width / height)."""
    if not 0 < aspect < float("inf"):
        raise ShapeError(f"aspect={aspect}: width / height, give more than 0")
    height, width = (-(-side // multiple) * multiple for side in inner)
    if aspect * inner[0] >= inner[1]:
        return height, max(width, round(height * aspect / multiple) * multiple)
    return max(height, round(width / aspect / multiple) * multiple), width
