"""How fast what is seen moves, and how smoothly a loop closes."""

from __future__ import annotations

import dataclasses

import numpy as np

from vdit.errors import ShapeError
from vdit.eval.pixels import values
from vdit.video.flow import NOISE, flow, gradients, tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seam:
    """The step from a clip's last frame to its first, beside the steps inside.

    pixels, flow: of that step. inside_pixels, inside_flow: of the median step inside. In 0..255, and pixels a frame.
    """

    pixels: float
    inside_pixels: float
    flow: float
    inside_flow: float


def seam(video: np.ndarray) -> Seam:
    """How a loop [t h w 3], uint8 or float in [-1, 1], of three frames or more, goes from its end to its start.

    pixels: mean absolute difference. flow: `speed`; it is blind to a jump of more than about a quarter of the frame,
    which the pixels show.
    """
    frames = values(video)
    if len(frames) < 3:
        raise ShapeError(f"a clip of {len(frames)} frames: a loop's seam is told by three or more")
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
    """How fast what can be seen moves from frame a to b [h w 3] (0..255): the mean length of the flow in pixels, each
    place weighing as much as it has edges; a plain background says nothing, and weighs nothing.

    Within 10% of the truth for rendered shapes and textures that move by half a pixel to a twelfth of the short side;
    fainter shapes read lower. Noise of 2 (of 0..255) alone reads as 0.03 pixels, of 6 as 0.5.
    """
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    edges = sum(tensor(*gradients(a / 255.0))[:2]).clip(0)
    length = np.linalg.norm(flow(a, b), axis=-1)
    return float((length * edges).sum() / (edges.sum() + NOISE * edges.size))
