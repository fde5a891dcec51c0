"""What a user gave comes back as given, and what was made joins it without a jump of colour.

A VAE's decoding differs from what it encoded: a little blur, a little tint. Where given and made pixels meet, the
tint would show as an edge, in space as well as in time. So its low frequencies are measured on the given pixels, and
taken off the made ones nearby, less and less with distance. Fine detail follows where frames meet
(vdit.generate.joins).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from vdit.errors import ShapeError
from vdit.generate.joins import meet_given

CHUNK = 32  # frames at a time
REACH = 4.0  # sigmas; farther nothing is corrected
BLOCKS = 4  # low frequencies are computed on blocks of 1/4 sigma
TIME_SIGMA = 4.0


def keep_given(
    made: np.ndarray, given: np.ndarray, known: np.ndarray, *, sigma: tuple[float, float] | None = None
) -> np.ndarray:
    """float32 [t h w 3] in [-1, 1]: `given` where known, bit for bit; elsewhere `made`, in its colours near the edge.

    made: [t h w 3], the model's own decoding of the whole canvas, known parts included.
    given: [t' h w 3], t' of at most t frames: nothing is known of later ones. known: bool [t' h w] or [t' 1 1].
    sigma: (frames, pixels) over which the difference given - made is averaged, and fades; None for 4 frames and an
        eighth of the shorter side.
    The difference is extended into the unknown by normalised convolution (Knutsson and Westin, 1993): blurred over
    known pixels, by a Gaussian, over the blurred known; times exp(-d^2 / 2) at a distance of d sigmas.
    """
    known = _checked(made, given, known)
    frames, height, width, _ = made.shape
    sigma = (TIME_SIGMA, max(1.0, min(height, width) / 8)) if sigma is None else sigma
    if min(sigma) <= 0:
        raise ShapeError(f"sigma={sigma}: (frames, pixels), both above 0")
    out = np.array(made, np.float32)
    np.clip(out, -1.0, 1.0, out=out)
    if not known.any():
        return out
    side = max(1, int(sigma[1] / BLOCKS))
    up = _between(height, side), _between(width, side)
    halo = math.ceil(REACH * sigma[0]) + 1
    for start in range(0, frames, CHUNK):
        stop = min(start + CHUNK, frames)
        first, last = max(0, start - halo), min(stop + halo, frames)
        here = slice(first, min(last, len(known)))
        if known[here].any():
            low = _extended(made[here], given[here], known[here], last - first, sigma, side)
            for frame in range(start, stop):
                out[frame] = np.clip(out[frame] + _enlarged(low[frame - first], up), -1.0, 1.0)
    meet_given(out, given, known.all(axis=(1, 2)))
    np.clip(out, -1.0, 1.0, out=out)
    for frame in range(len(known)):
        where = np.broadcast_to(known[frame], (height, width))
        out[frame][where] = given[frame][where]
    return out


def _checked(made: np.ndarray, given: np.ndarray, known: np.ndarray) -> np.ndarray:
    """known, bool; ShapeError where the shapes do not belong together."""
    known = np.asarray(known)
    frames = len(given)
    if made.ndim != 4 or given.shape != (frames, *made.shape[1:]) or frames > len(made):
        raise ShapeError(f"given of shape {given.shape} must be as made, {made.shape}, or of fewer frames")
    if known.dtype != bool or known.shape not in ((frames, *made.shape[1:3]), (frames, 1, 1)):
        raise ShapeError(f"known, {known.dtype} {known.shape}, must be bool, of [{frames} h w] or [{frames} 1 1]")
    return known


def _extended(
    made: np.ndarray, given: np.ndarray, known: np.ndarray, frames: int, sigma: tuple[float, float], side: int
) -> np.ndarray:
    """The correction of `frames` frames, of which the first are given, on blocks of side x side: [frames h' w' 3]."""
    height, width = made.shape[1:3]
    rows, columns = -(-height // side), -(-width // side)
    total = np.zeros((frames, rows, columns, 3), np.float32)
    count = np.zeros((frames, rows, columns, 1), np.float32)
    for k in range(len(known)):
        mask = np.broadcast_to(known[k], (height, width))[..., None].astype(np.float32)
        if mask.any():
            total[k] = _block_sums((np.asarray(given[k], np.float32) - made[k]) * mask, side)
            count[k] = _block_sums(mask, side)
    near = (sigma[0], sigma[1] / side, sigma[1] / side)
    distance = distance_transform_edt(count[..., 0] == 0, sampling=[1 / n for n in near])
    fade = np.exp(-(distance**2) / 2) - math.exp(-(REACH**2) / 2)
    blur = {"sigma": (*near, 0), "mode": "constant", "truncate": REACH}
    total, count = gaussian_filter(total, **blur), gaussian_filter(count, **blur)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return mean * np.maximum(fade, 0)[..., None].astype(np.float32)


def _block_sums(image: np.ndarray, side: int) -> np.ndarray:
    """[h w c] -> [h' w' c], sums over blocks of side x side; the last ones may be smaller."""
    if side == 1:
        return image
    rows = np.add.reduceat(image, np.arange(0, image.shape[0], side), axis=0)
    return np.add.reduceat(rows, np.arange(0, image.shape[1], side), axis=1)


def _between(length: int, side: int) -> np.ndarray:
    """float32 [length blocks]: linear interpolation from the middles of blocks of `side` to pixels."""
    blocks = -(-length // side)
    at = np.clip((np.arange(length) + 0.5) / side - 0.5, 0, blocks - 1)
    below = np.minimum(at.astype(int), max(blocks - 2, 0))
    share = at - below
    weights = np.zeros((length, blocks), np.float32)
    weights[np.arange(length), below] = 1 - share
    weights[np.arange(length), np.minimum(below + 1, blocks - 1)] += share
    return weights


def _enlarged(low: np.ndarray, up: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[h' w' c] -> [h w c]."""
    return np.einsum("hy,yxc,wx->hwc", up[0], low, up[1], optimize=True)
