"""Pieces that the measures of rendered worlds share: pixel values, small windows, names of colours."""

from __future__ import annotations

import functools

import numpy as np

from vdit.errors import ShapeError
from vdit.worlds.draw import COLOURS

_SMALLEST = 8


def values(video: np.ndarray) -> np.ndarray:
    """uint8, or float in [-1, 1], [t h w 3] -> float32 [t h w 3] of 0..255; what is not a number becomes grey."""
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[-1] != 3 or min(video.shape[1:3]) < _SMALLEST:
        raise ShapeError(f"video has shape {video.shape}; give [t h w 3] of {_SMALLEST}x{_SMALLEST} pixels or more")
    if video.dtype == np.uint8:
        return video.astype(np.float32)
    return np.clip(np.nan_to_num(video.astype(np.float32)) * 127.5 + 127.5, 0, 255)


def box3(x: np.ndarray) -> np.ndarray:
    """The mean over 3x3 pixels of x [t h w c]."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    return (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) / 9


def grow(mask: np.ndarray) -> np.ndarray:
    """mask [t h w] and its neighbours, two pixels on."""
    padded = np.pad(mask, ((0, 0), (2, 2), (2, 2)))
    _, height, width = mask.shape
    rows = functools.reduce(np.logical_or, (padded[:, k : k + height] for k in range(5)))
    return functools.reduce(np.logical_or, (rows[:, :, k : k + width] for k in range(5)))


def centres(weight: np.ndarray) -> np.ndarray:
    """The centre of mass [t 2] (x, y) in pixels of weights [t h w]; the first pixel spans 0..1."""
    _, height, width = weight.shape
    total = weight.sum((1, 2)).clip(1e-3)
    x = weight.sum(1) @ (np.arange(width) + 0.5) / total
    y = weight.sum(2) @ (np.arange(height) + 0.5) / total
    return np.stack([x, y], 1)


def palette() -> np.ndarray:
    """The colours of vdit.worlds in their order: float64 [8 3] of 0..255."""
    return np.array(list(COLOURS.values()), np.float64)
