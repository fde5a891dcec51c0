"""Motion without a net: does a video move, does it move smoothly, and do frames agree along their own motion.

All of it stands on OpenCV's DIS flow (Kroeger et al., 2016) of luma. Along it frames agree as well as along the flow of
`vdit.eval.metrics`, at a hundredth of the time; lengths at a shape's outline are 10 to 20% off, where that one's are
within 2%. `Flow` holds the flow between neighbouring frames in both directions, so that several measures share it.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from scipy import ndimage

from vdit.errors import ShapeError
from vdit.eval.metrics import LUMA, opencv, pixel_values
from vdit.reprs import short_repr

# VBench's dynamic degree: lengths of flow, in pixels of a short side of 256; and frames of a clip of 16 that have it.
_VBENCH_SPEED, _VBENCH_SHARE = 6.0 / 256, 4 / 16
_SIDE = 256  # pixels of the short side that the flow is computed at, at least: its patches are of 8 pixels
_FASTEST = 0.05  # share of pixels that count as the moving ones
# Where forward and backward flow agree (Sundaram et al., 2010).
_AGREE, _AGREE_LEAST = 0.01, 0.5


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """The frames of a video and where their pixels go.

    Attributes:
        frames: float32 [t h w 3] of 0..255.
        forward: float32 [t-1 h w 2], from each frame to the next, (x, y) in pixels.
        backward: float32 [t-1 h w 2], from each frame but the first to the one before.
    """

    frames: np.ndarray
    forward: np.ndarray
    backward: np.ndarray

    @classmethod
    def of(cls, video: np.ndarray) -> Flow:
        """Compute the flow of a video.

        Args:
            video: [t h w 3], uint8 or float in [-1, 1], of two frames or more.

        Raises:
            ShapeError: it has fewer frames, or another shape.
            ConfigError: OpenCV is not installed.
        """
        frames = pixel_values(video)
        if len(frames) < 2:
            raise ShapeError("a video of one frame does not move: give two frames or more")
        pairs = list(itertools.pairwise(frames))
        return cls(
            frames=frames,
            forward=np.stack([dense_flow(a, b) for a, b in pairs]),
            backward=np.stack([dense_flow(b, a) for a, b in pairs]),
        )


def dense_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where each pixel of frame a has gone in frame b.

    Args:
        a: frame [h w 3], 0..255.
        b: another frame of the same shape.

    Returns:
        float32 [h w 2], (x, y) in pixels.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    cv2 = opencv()
    height, width = a.shape[:2]
    times = max(1, -(-_SIDE // min(height, width)))
    luma = [np.clip(np.round(frame @ LUMA), 0, 255).astype(np.uint8) for frame in (a, b)]
    large = (width * times, height * times)
    if times > 1:
        luma = [cv2.resize(frame, large, interpolation=cv2.INTER_CUBIC) for frame in luma]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(*luma, None)
    return flow if times == 1 else cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / np.float32(times)


def warp_error(flow: Flow) -> np.ndarray:
    """How much pixels change along their own motion (Lai et al., 2018): float64 [t-1], 0 for none.

    Each frame is compared with the next one, sampled where the flow goes. Squared differences of values 0..1 are
    averaged over pixels that forward and backward flow agree on (Sundaram et al., 2010); NaN where there are none.
    """
    errors = []
    for t in range(len(flow.forward)):
        forward, backward = flow.forward[t], flow.backward[t]
        back = warp(backward, forward)
        gap = np.square(forward + back).sum(-1)
        reach = np.square(forward).sum(-1) + np.square(back).sum(-1)
        agree = gap < _AGREE * reach + _AGREE_LEAST
        error = np.square((warp(flow.frames[t + 1], forward) - flow.frames[t]) / 255).mean(-1)
        errors.append(float(error[agree].mean()) if agree.any() else np.nan)
    return np.array(errors, np.float64)


def motion_smoothness(flow: Flow) -> np.ndarray:
    """How well each frame is predicted from both neighbours by steady motion: float64 [t-2], 1 for perfectly.

    VBench drops every second frame, lets a net interpolate it, and takes (255 - mean difference) / 255. Here half of
    the flow between the neighbours does that: each neighbour is moved by half the way, and the two are averaged.

    Raises:
        ShapeError: the video has fewer than three frames.
    """
    if len(flow.frames) < 3:
        raise ShapeError(f"a video of {len(flow.frames)} frames has no frame between two: give three or more")
    scores = []
    for before, frame, after in zip(flow.frames, flow.frames[1:], flow.frames[2:]):
        # Of the pixels of the middle frame: half of what goes on between its neighbours, at the same place.
        ahead, behind = dense_flow(before, after) / 2, dense_flow(after, before) / 2
        middle = (warp(before, behind) + warp(after, ahead)) / 2
        scores.append(1 - float(np.abs(middle - frame).mean(dtype=np.float64)) / 255)
    return np.array(scores)


def moving_speed(flow: Flow) -> np.ndarray:
    """How fast the fastest 5% of the pixels move, in short sides of the frame per frame: float64 [t-1]."""
    lengths = np.linalg.norm(flow.forward, axis=-1).reshape(len(flow.forward), -1)
    count = max(1, round(lengths.shape[1] * _FASTEST))
    fastest = np.partition(lengths, -count, axis=1)[:, -count:]
    return fastest.mean(1, dtype=np.float64) / min(flow.frames.shape[1:3])


def is_dynamic(speed: np.ndarray) -> bool:
    """Whether VBench would call a video dynamic: enough of its steps are fast enough.

    Args:
        speed: [t-1], as `moving_speed` gives it.
    """
    return bool((speed > _VBENCH_SPEED).sum() >= max(1, round(_VBENCH_SHARE * (len(speed) + 1))))


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """image [h w c] sampled where flow [h w 2] (x, y) leads from each pixel; linear, the edge goes on outside."""
    rows, columns = np.indices(flow.shape[:2], np.float32)
    place = [rows + flow[..., 1], columns + flow[..., 0]]
    moved = [ndimage.map_coordinates(channel, place, order=1, mode="nearest") for channel in np.moveaxis(image, -1, 0)]
    return np.stack(moved, -1)
