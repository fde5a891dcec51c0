"""How close one video is to another: PSNR and SSIM, in numpy.

Both take uint8 (data range 255) or float in [-1, 1] (data range 2; values beyond are clipped, as they
would be on screen), of the same shape `[... h w c]`, and score each frame on its own. The score of a
video is the mean over its frames, as is usual for video autoencoders. A video given as uint8 and the
same one as float score the same.
"""

from __future__ import annotations

import numpy as np

from vdit.errors import ShapeError

# The window and constants of Wang et al. 2004, "Image quality assessment".
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over frames of the peak signal-to-noise ratio in dB: `[... h w c]` twice -> float."""
    return float(np.mean(frame_psnr(a, b)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over frames of the structural similarity: `[... h w c]` twice -> float, 1 for equal videos."""
    return float(np.mean(frame_ssim(a, b)))


def frame_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR of each frame over all its pixels and channels: `[... h w c] -> float64 [...]`; inf if equal."""
    a, b = _unit_pair(a, b)
    error = np.mean(np.square(a - b, dtype=np.float64), axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def frame_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of each frame: `[... h w c] -> float64 [...]`.

    A Gaussian window of 11 x 11 (sigma 1.5) at every place where it fits whole, population covariances;
    the mean over places and channels. Frames are at least 11 x 11.
    """
    a, b = _unit_pair(a, b)
    h, w = a.shape[-3:-1]
    if min(h, w) < WINDOW:
        raise ShapeError(f"frames of {h}x{w} are too small for SSIM: it needs {WINDOW}x{WINDOW} at least")
    frames = zip(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]))
    # One frame at a time: the five filtered maps of a long video would not fit in memory.
    scores = [_ssim(x.astype(np.float64), y.astype(np.float64)) for x, y in frames]
    return np.array(scores).reshape(a.shape[:-3])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """float64 [h w c] in [0, 1], twice."""
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a = _smooth(a * a) - mean_a**2
    var_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))


def _smooth(x: np.ndarray) -> np.ndarray:
    """Gaussian window over the first two axes, only where it fits: [h w c] -> [h-10 w-10 c]."""
    offset = np.arange(WINDOW) - WINDOW // 2
    weight = np.exp(-0.5 * (offset / SIGMA) ** 2)
    weight /= weight.sum()
    for axis in (0, 1):
        size = x.shape[axis] - WINDOW + 1
        x = sum(w * np.take(x, range(i, i + size), axis=axis) for i, w in enumerate(weight))
    return x


def _unit_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32 in [0, 1]."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim < 3:
        raise ShapeError(f"cannot compare shapes {a.shape} and {b.shape}: both must be the same [... h w c]")
    if not a.size:
        raise ShapeError(f"videos of shape {a.shape} hold nothing to compare")
    return _unit(a), _unit(b)


def _unit(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255
    # By kind, not np.floating: bfloat16 is no subclass of it.
    if x.dtype.kind not in "fV":
        raise ShapeError(f"a video of type {x.dtype} has no known range: use uint8, or float in [-1, 1]")
    return (np.clip(x.astype(np.float32), -1, 1) + 1) / 2
