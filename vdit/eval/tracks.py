"""Where the coloured object of each frame is, and how many there are: the flat worlds, before any grey.

A pixel of a flat world is a mix of the object's colour and a grey, of the background or of a wall; so its part that is
not grey is the object's, as often as the object covers it, whatever is behind or beside. Centres and areas are sums of
that part; they keep under blur, which moves none of it in the mean. A white object has no such part: it is
what is lighter than the grey of its row and of its column.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from vdit.errors import ShapeError
from vdit.eval.pixels import box3, centres, grow, palette, values
from vdit.reprs import short_repr
from vdit.worlds.draw import COLOURS

# Of 0..255. The least colourful name of the palette, green, has a part of 103 that is not grey.
_COLOURFUL = 32.0  # length of that part, over 3x3 pixels, of a pixel that is an object's
_LIGHTER = 45.0  # what a white object is lighter than its grey: walls have 180, it has 240
_LIGHT_OF_COLOUR = 1.3  # a colour's own lightness over its colourful part; the palette's largest is 1.27
_SIMILAR = 0.9  # cosine between a colour and the one that names it; neighbours of the palette have 0.9

# Short sides squared; a circle of radius 0.08 has 0.02.
LEAST = 0.004
LEAST_COUNTED = 0.008


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """The largest coloured object of each frame.

    centres: float64 [t 2] (x, y) in pixels, of what is in sight of it; NaN where nothing is.
    area: float64 [t], pixels in sight, 0 where nothing is. A pale object counts for less; of a white one half behind a
        wall it is a fifth too large.
    colour: the palette's name in each frame; None where nothing is in sight or no name fits.
    rgb: float64 [t 3] of 0..255, of its inner pixels; NaN where nothing is in sight.
    """

    centres: np.ndarray
    area: np.ndarray
    colour: tuple[str | None, ...]
    rgb: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """bool [t]."""
        return self.area > 0


def track(video: np.ndarray, *, least: float = LEAST) -> Track:
    """The object of each frame of video [t h w 3], uint8 or float in [-1, 1]; each frame on its own.

    least: area, in short sides squared, of an object that is in sight.
    """
    frames = values(video)
    chroma, light = _parts(frames)
    vivid = box3(np.concatenate([chroma, light[..., None]], -1))
    strength = np.linalg.norm(vivid[..., :3], axis=-1)
    white = vivid[..., 3] - _LIGHT_OF_COLOUR * strength
    mask = _largest((strength > _COLOURFUL) | (white > _LIGHTER), np.maximum(strength, white))

    near = grow(mask)
    is_white = (strength * mask).sum((1, 2)) < (white * mask).sum((1, 2))
    direction, name = _names((chroma * mask[..., None]).sum((1, 2)))
    cover = np.where(is_white[:, None, None], _white_cover(frames, light), np.einsum("thwc,tc->thw", chroma, direction))
    cover = np.where(near, np.clip(cover, -0.25, 1.25), 0)
    area = cover.sum((1, 2))
    seen = mask.any((1, 2)) & (area >= least * min(frames.shape[1:3]) ** 2)

    rgb = np.full((len(frames), 3), np.nan)
    inner = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
    for t in np.flatnonzero(seen):
        rgb[t] = np.median(frames[t][inner[t] if inner[t].any() else mask[t]], axis=0)
    names = ("white" if w else n for w, n in zip(is_white, name))
    return Track(
        centres=np.where(seen[:, None], centres(cover), np.nan),
        area=np.where(seen, area, 0.0),
        colour=tuple(n if s else None for n, s in zip(names, seen)),
        rgb=rgb,
    )


def count_objects(frame: np.ndarray, *, least: float = LEAST_COUNTED) -> int:
    """Coloured objects in one frame [h w 3], uint8 or float in [-1, 1]: blobs of one colour, of `least` short sides
    squared or more. Two objects of one colour that touch are one."""
    frames = values(np.asarray(frame)[None])
    chroma, light = _parts(frames)
    vivid = box3(np.concatenate([chroma, light[..., None]], -1))[0]
    strength = np.linalg.norm(vivid[..., :3], axis=-1)
    white = (vivid[..., 3] - _LIGHT_OF_COLOUR * strength > _LIGHTER) & (strength < _COLOURFUL)
    nearest = (vivid[..., :3] @ _directions().T).argmax(-1)
    nearest = np.where(white, len(COLOURS), nearest)
    count = 0
    for kind in np.unique(nearest[(strength > _COLOURFUL) | white]):
        blobs, _ = ndimage.label((nearest == kind) & ((strength > _COLOURFUL) | white), np.ones((3, 3)))
        count += int((np.bincount(blobs.ravel())[1:] >= least * min(blobs.shape) ** 2).sum())
    return count


def displacements(points: np.ndarray) -> np.ndarray:
    """From the frame before, as actions are: [t 2] -> [t 2]; 0 in the first frame, NaN where either is."""
    points = np.asarray(points, np.float64)
    return np.diff(points, axis=0, prepend=points[:1])


def position_error(points: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of each [... 2] from the truth [... 2]: [...], NaN where either is (nothing in sight)."""
    points, truth = np.asarray(points, np.float64), np.asarray(truth, np.float64)
    if points.shape != truth.shape:
        raise ShapeError(f"points of shape {points.shape} and truth of shape {truth.shape}: give as many of both")
    return np.linalg.norm(points - truth, axis=-1)


def share_obeyed(points: np.ndarray, displacement: np.ndarray, *, within: float) -> float:
    """The share of steps of [t 2] whose displacement is that asked for, along x and y, to `within` pixels.

    A step to or from a frame where nothing is in sight is not obeyed. NaN for a clip of one frame.
    """
    error = np.abs(displacements(points) - displacement)[1:]
    return float((error <= within).all(-1).mean()) if len(error) else math.nan


def is_permanent(
    found: Track, truth: np.ndarray, visibility: np.ndarray, colour: str, *, within: float
) -> bool:
    """Whether an object passes behind a wall and comes out as it must (the occluder world).

    truth: [t 2] its centres in pixels. visibility: [t] the share of it that the wall leaves in sight, with frames of 0
    and frames of 1 after them. It must be out of sight in half or more of the frames where it is hidden whole; and in
    the frames after that where it is whole in sight, be in sight and of its colour in half or more, and in the median
    `within` pixels of the truth.
    """
    hidden = np.asarray(visibility) < 1e-9
    after = (np.asarray(visibility) > 1 - 1e-9) & (np.arange(len(hidden)) > np.flatnonzero(hidden)[-1:].max(initial=-1))
    if not hidden.any() or not after.any():
        raise ShapeError("an object that is never hidden, or not whole in sight after it: choose clips that show both")
    error = np.where(found.seen, position_error(found.centres, truth), np.inf)[after]
    right = np.array([name == colour for name in found.colour])[after]
    return bool((~found.seen)[hidden].mean() >= 0.5 and right.mean() >= 0.5 and np.median(error) <= within)


def colour_drift(rgb: np.ndarray, *, first: int = 8) -> np.ndarray:
    """Distance in RGB of each frame's colour [t 3] from the median of the first frames that have one: [t], NaN where a
    frame has none. For Track.rgb, or means of whole frames."""
    rgb = np.asarray(rgb, np.float64)
    known = rgb[np.isfinite(rgb).all(-1)]
    if not len(known):
        return np.full(len(rgb), np.nan)
    return np.linalg.norm(rgb - np.median(known[:first], axis=0), axis=-1)


def _parts(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of frames [t h w 3]: what is not grey [t h w 3], and what is lighter than the grey behind [t h w]."""
    level = frames.mean(-1)
    # Along rows or along columns a wall is alike; an object covers less than half of either.
    behind = np.maximum(np.median(level, axis=1)[:, None, :], np.median(level, axis=2)[:, :, None])
    return frames - level[..., None], level - behind


def _white_cover(frames: np.ndarray, light: np.ndarray) -> np.ndarray:
    """How much of each pixel white covers, given what is lighter [t h w]."""
    white = np.mean(COLOURS["white"])
    return light / np.maximum(white - (frames.mean(-1) - light), 1.0)


def _directions() -> np.ndarray:
    """Of each colour but white the part that is not grey, at length 1: [7 3]."""
    chroma = palette() - palette().mean(1, keepdims=True)
    chroma = chroma[[name != "white" for name in COLOURS]]
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _names(chroma: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
    """Of colours [t 3] that are not grey: by what [t 3] a pixel's is multiplied to give its cover, and their names."""
    colourful = [name for name in COLOURS if name != "white"]
    length = np.linalg.norm(chroma, axis=1, keepdims=True).clip(1e-6)
    direction = chroma / length
    likeness = direction @ _directions().T
    best = likeness.argmax(1)
    pure = palette()[[list(COLOURS).index(colourful[k]) for k in best]]
    full = np.linalg.norm(pure - pure.mean(1, keepdims=True), axis=1, keepdims=True)
    names = [colourful[k] if row[k] >= _SIMILAR else None for k, row in zip(best, likeness)]
    return direction / full, names


def _largest(mask: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The connected part of mask [t h w] that weighs most in each frame."""
    within = np.zeros((3, 3, 3), bool)
    within[1] = True
    blobs, count = ndimage.label(mask, within)
    total = ndimage.sum_labels(weight, blobs, np.arange(count + 1))
    total[0] = 0
    heaviest = total[blobs].reshape(len(mask), -1).max(1)
    return mask & (total[blobs] == heaviest[:, None, None])
