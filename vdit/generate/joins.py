"""Made frames meet given ones: beside a given frame they show what it shows, moved along.

A VAE gives fine detail back a little wrong, and a little differently in each latent frame, so that where given and made
frames meet in time, sharpness jumps and edges flicker. The frames beside the join are therefore mixed with the given
frame, carried along by the motion between the model's own pictures of both: as in motion-compensated filtering
(Dubois and Sabri 1984). Where the two pictures differ by more than the decoder is known to err there, something else
has come into view, and what was made stays.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from vdit.types import Array
from vdit.video.flow import flow, warped

FRAMES = 4  # on each side of a join that are mixed, less with each
_TRUSTED = 2.0  # times the decoder's own error: differences up to about this are put down to it


def meet_given(out: Array, given: Array, whole: Array) -> None:
    """Mixes frames of `out` next to given ones with them, in place.

    out: float32 [t h w 3] in [-1, 1], the model's decoding, of the given frames too. given: [t' h w 3]. whole: bool
    [t'], which frames are given from edge to edge. The share of a given frame falls as cos^2 with the distance; where
    two are near, both shares add up to 1 at most.
    """
    error: dict[int, Array] = {}
    for t in range(len(out)):
        if t < len(whole) and whole[t]:
            continue
        near = _beside(t, whole)
        shares = [_share(distance) for distance, _ in near]
        more = np.zeros_like(out[t])
        for share, (_, source) in zip(shares, near):
            if source not in error:
                error[source] = _local(given[source] - out[source])
            if error[source].any():
                step = _step(out[t], out[source], given[source], error[source])
                more += share / max(1.0, sum(shares)) * step
        out[t] += more


def _beside(t: int, whole: Array) -> list[tuple[int, int]]:
    """(frames away, number) of the nearest given frame before and after, of those in reach."""
    near = []
    for way in (-1, 1):
        for distance in range(1, FRAMES + 1):
            source = t + way * distance
            if 0 <= source < len(whole) and whole[source]:
                near.append((distance, source))
                break
    return near


def _share(distance: int) -> float:
    """Of the given frame in the one so many frames away: all of it in the next one."""
    return float(np.cos(np.pi / 2 * (distance - 1) / FRAMES) ** 2)


def _step(made: Array, source: Array, given: Array, error: Array) -> Array:
    """What to add to a made frame [h w 3] to show the given one. source: the model's picture of that one."""
    moved = flow((made + 1) * 127.5, (source + 1) * 127.5)
    allowed = _TRUSTED**2 * np.clip(warped(error, moved), 0, None)
    differs = _local(warped(source, moved) - made)
    trust = np.exp(-differs / (2 * allowed + 1e-12))
    return trust * (warped(given, moved) - made)


def _local(x: Array) -> Array:
    """The mean square of [h w 3] around each pixel: [h w 1]."""
    sigma = max(1.5, min(x.shape[:2]) / 32)
    return gaussian_filter(np.square(x, dtype=np.float32).mean(-1, keepdims=True), (sigma, sigma, 0), mode="nearest")
