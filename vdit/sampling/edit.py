"""Edit: a video made again from some noise level down, by a prompt (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

from vdit.errors import ShapeError
from vdit.sampling.given import Given
from vdit.types import Array


def edit(video: Array, *, strength: Array | float, mask: Array | None = None) -> Given:
    """float32 [b t h w 3] in [-1, 1] -> Given that begins from the video.

    strength: the noise level to begin at, 0 to 1, of all frames or [t] of each: 0 is as it was, 1 made anew.
    mask: bool [t h w], where; None for everywhere.
    """
    level = np.broadcast_to(np.asarray(strength, np.float32), video.shape[1:2])[:, None, None]
    if mask is not None:
        level = np.where(mask, level, np.float32(0))
    return Given(video=video, level=np.broadcast_to(level, (len(video), *level.shape)))


def check_strength(strength: Array | float, frames: int) -> np.ndarray:
    """As float32 [t]; ShapeError unless it is above 0 and at most 1, for some frames 0."""
    value = np.asarray(strength, np.float32)
    if value.shape not in ((), (frames,)):
        raise ShapeError(f"strength of shape {value.shape}: give one number, or one for each of {frames} frames")
    if not (np.all(value >= 0) and np.all(value <= 1) and value.max() > 0):
        shown = value if value.ndim == 0 else f"from {value.min()} to {value.max()}"
        raise ShapeError(f"strength={shown}: how much is made anew, give more than 0 and at most 1")
    return np.broadcast_to(value, (frames,))


def check_mask(mask: Array, shape: tuple[int, ...]) -> np.ndarray:
    """bool [h w] or [t h w], true where something is to be made, -> [t h w]; ShapeError for anything else.

    shape: of the video, [b t h w 3]. A mask of nothing is refused: there would be nothing to do.
    """
    mask, wanted = np.asarray(mask), shape[1:4]
    if mask.dtype != bool:
        raise ShapeError(f"mask of {mask.dtype}: give bool, true where something is to be made")
    if mask.shape not in (wanted, wanted[1:]):
        raise ShapeError(
            f"mask of shape {mask.shape} does not fit the video: give {wanted[1:]}, or {wanted} where it moves"
        )
    if not mask.any():
        raise ShapeError("mask is false everywhere: nothing is to be made, give one that is true somewhere")
    return np.broadcast_to(mask, wanted)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """bool [t h w], wider by so many pixels on each side in space."""
    if pixels < 0:
        raise ShapeError(f"grow={pixels}: pixels by which the mask is widened, give 0 or more")
    if pixels == 0:
        return mask
    side = 2 * pixels + 1
    rows = binary_dilation(mask, np.ones((1, side, 1), bool))
    return binary_dilation(rows, np.ones((1, 1, side), bool))
