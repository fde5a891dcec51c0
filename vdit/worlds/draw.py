"""Anti-aliased shapes: signed distances, and painting them on frames.

A shape is drawn in its own frame, in units of its size (the radius of a circle), x right and y down,
around its centroid, so that a drawn shape's centre of mass is where its track says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from vdit.reprs import short_repr

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (228, 44, 44),
    "orange": (245, 132, 30),
    "yellow": (242, 222, 50),
    "green": (46, 180, 64),
    "cyan": (60, 214, 226),
    "blue": (48, 84, 236),
    "magenta": (212, 56, 212),
    "white": (240, 240, 240),
}


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """distance: (x, y) in sizes -> signed distance in sizes, negative inside.
    left, right, up, down: how far the outline reaches from the centroid, in sizes."""

    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
    left: float
    right: float
    up: float
    down: float


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 1


_SQUARE = math.sqrt(math.pi) / 2  # a square as large as the circle of radius 1


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - _SQUARE


_INRADIUS = 0.68  # an equilateral triangle, point up, a little smaller than the circle of radius 1


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    sides = np.maximum(x * (math.sqrt(3) / 2) - y * 0.5, y) - _INRADIUS
    # The bounding box keeps the soft edge of a sharp corner from reaching far beyond the corner.
    return np.maximum(sides, np.maximum(x - math.sqrt(3) * _INRADIUS, -y - 2 * _INRADIUS))


_ARM, _ARM_HALF_WIDTH = 1.15, 0.4


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - _ARM, short - _ARM_HALF_WIDTH)


SHAPES: dict[str, Shape] = {
    "circle": Shape(distance=_circle, left=1, right=1, up=1, down=1),
    "square": Shape(distance=_square, left=_SQUARE, right=_SQUARE, up=_SQUARE, down=_SQUARE),
    "triangle": Shape(
        distance=_triangle,
        left=math.sqrt(3) * _INRADIUS,
        right=math.sqrt(3) * _INRADIUS,
        up=2 * _INRADIUS,
        down=_INRADIUS,
    ),
    "cross": Shape(distance=_cross, left=_ARM, right=_ARM, up=_ARM, down=_ARM),
}


def grey(size: tuple[int, int], level: float, slope: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """A grey background.

    Args:
        size: (h, w) in pixels.
        level: 0 to 255, in the middle.
        slope: (x, y), how much lighter it becomes from one edge to the other.

    Returns:
        float32 [h w 1].
    """
    height, width = size
    x = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    y = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
    return (level + slope[0] * x[None, :] + slope[1] * y[:, None])[..., None].astype(np.float32)


def canvas(background: np.ndarray, frames: int) -> np.ndarray:
    """Frames to paint on.

    Args:
        background: [h w 1] or [h w 3], 0 to 255.
        frames: t.

    Returns:
        float32 [t h w 3].
    """
    height, width, _ = background.shape
    video = np.empty((frames, height, width, 3), np.float32)
    video[:] = background
    return video


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Values 0..255 rounded to uint8, same shape."""
    return (np.clip(video, 0, 255) + 0.5).astype(np.uint8)


def coverage(shape: Shape, centre: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of each pixel that a shape covers, in a window that follows the shape.

    Args:
        shape: the outline.
        centre: [t 2] (x, y) in pixels.
        radius: the shape's size in pixels.

    Returns:
        (top-left pixels int [t 2] (x, y) of the windows, coverage float32 [t wh ww] in 0..1).
    """
    first = np.floor(centre - radius * np.array([shape.left, shape.up]) - 1).astype(np.int64)
    width = math.ceil(radius * (shape.left + shape.right)) + 3
    height = math.ceil(radius * (shape.up + shape.down)) + 3
    offset = (first + 0.5 - centre).astype(np.float32)
    x = (offset[:, 0, None] + np.arange(width, dtype=np.float32)) / np.float32(radius)
    y = (offset[:, 1, None] + np.arange(height, dtype=np.float32)) / np.float32(radius)
    distance = shape.distance(x[:, None, :], y[:, :, None])
    return first, np.clip(0.5 - distance * np.float32(radius), 0, 1)


def paint(
    video: np.ndarray, shape: Shape, centre: np.ndarray, radius: float, colour: tuple[int, int, int]
) -> None:
    """Paints a shape over a video, in place.

    Args:
        video: float32 [t h w 3], 0 to 255.
        shape: the outline.
        centre: [t 2] (x, y) in pixels.
        radius: in pixels.
        colour: (r, g, b), 0 to 255.
    """
    _, height, width, _ = video.shape
    first, cover = coverage(shape, centre, radius)
    colour = np.asarray(colour, np.float32)
    for frame, (x, y), mask in zip(video, first, cover):
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + mask.shape[1], width), min(y + mask.shape[0], height)
        if x0 >= x1 or y0 >= y1:
            continue
        part = frame[y0:y1, x0:x1]
        part += mask[y0 - y : y1 - y, x0 - x : x1 - x, None] * (colour - part)
