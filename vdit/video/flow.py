"""Optical flow by Lucas and Kanade, coarse to fine: where each pixel of a frame has gone in another."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_WINDOW = 3.0  # pixels, sigma of the window in which all moves alike
_COARSEST = 10  # pixels of the short side; below it little is left to follow
_ROUNDS = 4  # of warping at each scale
NOISE = 1e-4  # added to the squared gradients (values of 0..1): what is fainter is taken to stand still


def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where each pixel of frame a [h w 3] (0..255) has gone in b: float32 [h w 2] (x, y) in pixels.

    Lucas and Kanade 1981 with Bouguet's pyramid (2001): in a Gaussian window around each pixel, the motion d that
    makes b(x + d) most like a(x), by least squares on the gradients of all channels, from coarse scales to fine. A
    small number on the diagonal (Simoncelli et al. 1991) keeps 0 where there is nothing to go by; along a long
    straight edge only the motion across it is found.
    """
    pyramid = [(np.asarray(a, np.float32) / 255.0, np.asarray(b, np.float32) / 255.0)]
    while min(pyramid[-1][0].shape[:2]) >= 2 * _COARSEST:
        pyramid.append(tuple(_half(x) for x in pyramid[-1]))
    moved = np.zeros((*pyramid[-1][0].shape[:2], 2), np.float32)
    for first, second in reversed(pyramid):
        moved = _stretched(moved, first.shape[:2])
        for _ in range(_ROUNDS):
            moved = moved + _step(first, warped(second, moved))
    return moved


def _step(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The small motion [h w 2] from a to b [h w 3]."""
    gx, gy = gradients((a + b) / 2)
    xx, yy, xy = tensor(gx, gy)
    change = b - a
    tx, ty = _smooth((gx * change).sum(-1)), _smooth((gy * change).sum(-1))
    xx, yy = xx + NOISE, yy + NOISE
    determinant = xx * yy - xy * xy
    step = np.stack([xy * ty - yy * tx, xy * tx - xx * ty], -1) / determinant[..., None]
    return np.clip(step, -1, 1)  # a gradient tells no more than about a pixel


def gradients(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along x and y, of [h w c], by central differences of the picture smoothed a little."""
    x = ndimage.gaussian_filter(x, (0.7, 0.7, 0), mode="nearest")
    gy, gx = np.gradient(x, axis=(0, 1))
    return gx, gy


def tensor(gx: np.ndarray, gy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over channels and window of the products of gradients: xx, yy, xy, each [h w]."""
    return tuple(_smooth((p * q).sum(-1)) for p, q in ((gx, gx), (gy, gy), (gx, gy)))


def _smooth(x: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(x, _WINDOW, mode="constant")


def _half(x: np.ndarray) -> np.ndarray:
    """[h w c] at half the size, pixels 0, 2, ... of the smoothed picture."""
    return ndimage.gaussian_filter(x, (1, 1, 0), mode="nearest")[::2, ::2]


def _stretched(moved: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Motion [h w 2] of one scale at the next finer one, whose pixels 0, 2, ... it stands for."""
    if moved.shape[:2] == size:
        return moved
    rows, columns = np.meshgrid(np.arange(size[0]) / 2, np.arange(size[1]) / 2, indexing="ij")
    at = lambda x: ndimage.map_coordinates(x, [rows, columns], order=1, mode="nearest")  # noqa: E731
    return 2 * np.stack([at(moved[..., 0]), at(moved[..., 1])], -1)


def warped(x: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """x [h w c] at each pixel's place after the motion [h w 2]."""
    rows, columns = np.indices(x.shape[:2], np.float32)
    places = [rows + moved[..., 1], columns + moved[..., 0]]
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in np.moveaxis(x, -1, 0)], -1)
