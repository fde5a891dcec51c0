"""How close one video is to another (PSNR, SSIM), how it flickers and moves (optical flow), how well a loop closes.

Videos are uint8 (data range 255), or float in [-1, 1] (data range 2; values beyond are clipped, as they would be on
screen). A video given as uint8 and the same video as float score the same.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from scipy import ndimage

from vdit.errors import ConfigError, ShapeError, install_command

# The window and constants of Wang et al. 2004, "Image quality assessment".
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM, from fine to coarse
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_SMALLEST = 8  # pixels of a side
_FLOW_WINDOW, _FLOW_LEVELS = 21, 5  # pixels of the window in which all moves alike; halvings of the frame
_TEXTURE = 1e-2  # least eigenvalue of a window's gradients, in OpenCV's unit; noise of 2 (of 0..255) does not reach it
_FAINT = 1e-4  # added to squared gradients (values of 0..1): what is fainter weighs nothing


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio, the mean over frames.

    Args:
        a: `[... h w c]`, uint8 or float in [-1, 1].
        b: of the same shape.

    Returns:
        Decibels; inf for equal videos.

    Raises:
        ShapeError: the shapes differ, or a type has no known range.
    """
    return float(np.mean(frame_psnr(a, b)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), the mean over frames.

    Args:
        a: `[... h w c]`, uint8 or float in [-1, 1], frames of 11x11 pixels or more.
        b: of the same shape.

    Returns:
        1 for equal videos, less for others.

    Raises:
        ShapeError: the shapes differ, frames are too small, or a type has no known range.
    """
    return float(np.mean(frame_ssim(a, b)))


def frame_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR of each frame over all its pixels and channels: `[... h w c] -> float64 [...]`; inf if equal."""
    a, b = _unit_pair(a, b)
    error = np.mean(np.square(a - b, dtype=np.float64), axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def frame_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of each frame: `[... h w c] -> float64 [...]`.

    Uses a Gaussian window of 11 x 11 (sigma 1.5) at every place where it fits whole, and population covariances. The
    score is the mean over places and channels. Frames are at least 11 x 11.
    """
    a, b = _unit_pair(a, b)
    h, w = a.shape[-3:-1]
    if min(h, w) < WINDOW:
        raise ShapeError(f"frames of {h}x{w} are too small for SSIM: it needs {WINDOW}x{WINDOW} at least")
    frames = zip(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]))
    # One frame at a time: the five filtered maps of a long video would not fit in memory.
    scores = [_ssim(x.astype(np.float64), y.astype(np.float64)) for x, y in frames]
    return np.array(scores).reshape(a.shape[:-3])


def frame_ms_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multi-scale SSIM of each frame (Wang, Simoncelli and Bovik, 2003): `[... h w c] -> float64 [...]`.

    Five scales, each half of the one before (means of 2x2 pixels), with the paper's weights. Structure and contrast
    count at every scale, luminance at the coarsest. Negative terms count as 0. Frames are at least 176 x 176.
    """
    a, b = _unit_pair(a, b)
    h, w = a.shape[-3:-1]
    least = WINDOW * 2 ** (len(SCALES) - 1)
    if min(h, w) < least:
        raise ShapeError(f"frames of {h}x{w} are too small for MS-SSIM: it needs {least}x{least} at least")
    scores = []
    for x, y in zip(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:])):
        x, y, score = x.astype(np.float64), y.astype(np.float64), 1.0
        for scale, weight in enumerate(SCALES):
            luminance, structure = _ssim_maps(x, y)
            coarsest = scale == len(SCALES) - 1
            term = luminance * structure if coarsest else structure
            score = score * np.maximum(term.mean((0, 1)), 0) ** weight  # by channel
            x, y = _halved(x), _halved(y)
        scores.append(float(np.mean(score)))
    return np.array(scores).reshape(a.shape[:-3])


def flicker(video: np.ndarray) -> np.ndarray:
    """Mean absolute difference from the frame before, in 0..255: [t h w 3] -> float64 [t-1].

    VBench's temporal flickering is (255 - its mean) / 255.
    """
    frames = pixel_values(video)
    return np.array([np.abs(b - a).mean(dtype=np.float64) for a, b in itertools.pairwise(frames)])


def sharpness(video: np.ndarray) -> np.ndarray:
    """Standard deviation of the Laplacian of each frame's luma (Pech-Pacheco et al., 2000): [t h w 3] -> float64 [t].

    Luma spans 0..255. Blur lowers it, noise and ringing raise it, so it is read beside that of real videos.
    """
    luma = pixel_values(video) @ LUMA
    return np.array([ndimage.laplace(frame, mode="nearest").std(dtype=np.float64) for frame in luma])


def edge_sharpness(video: np.ndarray) -> np.ndarray:
    """How steep each frame's strongest edges are: [t h w 3] -> float64 [t], 0..1.

    The mean of the largest 1% of the differences between neighbouring pixels (of the channel where it is largest), over
    the frame's contrast, which is the largest range that the middle 99% of a channel's values has. The contrast over
    the slope is an edge's width in pixels (Marziliano et al., 2002), so 1 is a step from a pixel to the next, and an
    edge of four pixels has 0.25. A frame of one colour has 0. Unlike `sharpness` it does not grow with contrast.
    """
    return np.array([_edge_sharpness(frame) for frame in pixel_values(video)])


def _edge_sharpness(frame: np.ndarray) -> float:
    steps = np.concatenate([np.abs(np.diff(frame, axis=axis)).max(-1).ravel() for axis in (0, 1)])
    low, high = np.percentile(frame, (0.5, 99.5), axis=(0, 1))
    contrast = float((high - low).max())
    largest = np.sort(steps)[-max(len(steps) // 100, 1) :]
    return min(float(largest.mean(dtype=np.float64)) / contrast, 1.0) if contrast > 0 else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seam:
    """The step from a clip's last frame to its first, beside the steps inside.

    Attributes:
        pixels: mean absolute difference over that step, in 0..255.
        inside_pixels: the same of the median step inside the clip.
        flow: speed over that step, in pixels a frame.
        inside_flow: the same of the median step inside the clip.
    """

    pixels: float
    inside_pixels: float
    flow: float
    inside_flow: float


def seam(video: np.ndarray) -> Seam:
    """Measure how a loop goes from its end to its start.

    Flow does not see a jump of more than about a quarter of the frame; the difference of pixels does.

    Args:
        video: [t h w 3], uint8 or float in [-1, 1], of three frames or more.

    Raises:
        ShapeError: the clip has another shape, or fewer than three frames.
        ConfigError: OpenCV is not installed.
    """
    frames = pixel_values(video)
    if len(frames) < 3:
        raise ShapeError(f"a clip of {len(frames)} frames has no seam to measure: give three frames or more")
    after = np.roll(frames, -1, axis=0)
    pixels = np.abs(after - frames).mean((1, 2, 3))
    speeds = [speed(a, b) for a, b in zip(frames, after)]
    return Seam(
        pixels=float(pixels[-1]),
        inside_pixels=float(np.median(pixels[:-1])),
        flow=speeds[-1],
        inside_flow=float(np.median(speeds[:-1])),
    )


def speed(a: np.ndarray, b: np.ndarray) -> float:
    """How fast the visible content moves from frame a to frame b.

    The mean length of the optical flow. Each pixel weighs as much as it has edges: a plain background weighs nothing.
    Within 10% of the truth for rendered shapes and textures that move by half a pixel to a twelfth of the short side.
    Fainter shapes read lower. Noise of 2 (of 0..255) alone reads as 0, of 6 as about a pixel.

    Args:
        a: frame [h w 3], 0..255.
        b: the next frame, of the same shape.

    Returns:
        Pixels a frame.
    """
    weight = _edges(np.asarray(a, np.float32) / 255.0)
    length = np.linalg.norm(optical_flow(a, b), axis=-1)
    return float((length * weight).sum() / (weight.sum() + _FAINT * weight.size))


def optical_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where each pixel of frame a has gone in frame b.

    OpenCV's Lucas and Kanade (1981) with Bouguet's pyramid (2001) at every pixel, on all three channels. Against the
    rendered worlds it is nearer to the truth than OpenCV's DIS, whose flow is too short, and than its Farneback, which
    sees one channel only. 0 where there is too little texture to tell.

    Args:
        a: frame [h w 3], 0..255.
        b: another frame of the same shape.

    Returns:
        float32 [h w 2], (x, y) in pixels.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    cv2 = opencv()
    first, second = (np.clip(np.round(frame), 0, 255).astype(np.uint8) for frame in (a, b))
    height, width = first.shape[:2]
    rows, columns = np.indices((height, width), np.float32)
    points = np.stack([columns, rows], -1).reshape(-1, 1, 2)
    found, known, _ = cv2.calcOpticalFlowPyrLK(
        first, second, points, None, winSize=(_FLOW_WINDOW, _FLOW_WINDOW), maxLevel=_FLOW_LEVELS,
        criteria=(cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 30, 0.01), minEigThreshold=_TEXTURE,
    )  # fmt: skip
    return np.where(known[..., None] == 1, found - points, 0).reshape(height, width, 2)


def pixel_values(video: np.ndarray) -> np.ndarray:
    """Convert a video to float32 [t h w 3] of 0..255.

    Args:
        video: [t h w 3], uint8, or float in [-1, 1]. What is not a number becomes grey.

    Raises:
        ShapeError: another shape, or a side under 8 pixels.
    """
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[-1] != 3 or min(video.shape[1:3]) < _SMALLEST:
        raise ShapeError(f"video has shape {video.shape}: give [t h w 3] of {_SMALLEST}x{_SMALLEST} pixels or more")
    if video.dtype == np.uint8:
        return video.astype(np.float32)
    return np.clip(np.nan_to_num(video.astype(np.float32)) * 127.5 + 127.5, 0, 255)


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """float64 [h w c] in [0, 1], twice."""
    luminance, structure = _ssim_maps(a, b)
    return float(np.mean(luminance * structure))


def _ssim_maps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of SSIM at each place where the window fits."""
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a = _smooth(a * a) - mean_a**2
    var_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return luminance, structure


def _halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels of x [h w c]; an odd last row or column is left out."""
    h, w = (side // 2 * 2 for side in x.shape[:2])
    return x[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).mean((1, 3))


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


def _edges(frame: np.ndarray) -> np.ndarray:
    """How much edge is around each pixel of frame [h w 3] (0..1): squared gradients, float32 [h w]."""
    cv2 = opencv()
    smooth = cv2.GaussianBlur(frame, (0, 0), 0.7)
    along = [cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, ksize=1) / 2 for dx in (0, 1)]
    return cv2.GaussianBlur(sum((g**2).sum(-1) for g in along), (0, 0), 3.0)


def opencv():
    """The module cv2, imported when it is used: it takes a third of a second, and only evaluation needs it."""
    try:
        import cv2
    except ImportError:
        raise ConfigError(f"optical flow needs OpenCV: {install_command('eval')}") from None
    return cv2
