"""Pixels of a video. Without jax: a process that only reads files (vdit.serve.intake) does not load it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from vdit.errors import ShapeError
from vdit.reprs import short_repr

if TYPE_CHECKING:
    from vdit.types import Array

PIXEL_ROUNDING = 1e-3  # how far past [-1, 1] a float may be: rounding, not a wrong range


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A decoded video as displayed (rotation applied, full-range sRGB-like RGB).

    frames: uint8 [t h w 3].
    times: float64 [t], presentation times in seconds, strictly increasing, the first frame at 0.
    fps: frames per second, the stream's average rate.
    """

    frames: np.ndarray
    times: np.ndarray
    fps: float


def check_pixels(video: Array, name: str) -> None:
    """Raises ShapeError, which names the fault, unless pixels are uint8, or floats in [-1, 1].

    Args:
        video: pixels of any shape. What jax is tracing is not looked at: its values are not known.
        name: of the array, for the message.
    """
    if video.dtype == np.uint8:
        return
    traced = False
    if isinstance(video, np.ndarray) and video.dtype.kind == "f":
        floats = True
    else:  # jax has floats that numpy does not know, such as bfloat16
        import jax

        floats = jax.dtypes.issubdtype(video.dtype, np.floating)
        traced = isinstance(video, jax.core.Tracer)
    if not floats:
        raise ShapeError(f"{name} of {video.dtype} must be uint8, or float in [-1, 1]")
    if traced or not video.size:
        return
    low, high = float(video.min()), float(video.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ShapeError(f"{name} has pixels that are NaN or infinite: must be uint8, or float in [-1, 1]")
    if max(-low, high) > 1 + PIXEL_ROUNDING:
        raise ShapeError(f"{name} has values in [{low:.4g}, {high:.4g}], must be uint8, or float in [-1, 1]")
