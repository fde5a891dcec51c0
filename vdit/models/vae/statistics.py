"""Mean and standard deviation of each latent channel, measured in one pass over any amount of latents.

The DiT sees latents normalised by them. They are plain arrays, {"mean": [c], "std": [c]}, to be stored
with the VAE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdit.errors import DataError, ShapeError, VditError
from vdit.reprs import short_repr
from vdit.types import Array

MIN_STD = 1e-5  # a channel that never varies must not blow up when it is normalised


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """What was seen so far: values a channel, their mean and summed squared deviation, float64 [c]."""

    count: int
    mean: np.ndarray
    deviation: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Moments:
        mean, deviation = (np.asarray(data[name], np.float64) for name in ("mean", "deviation"))
        return Moments(count=int(data["count"]), mean=mean, deviation=deviation)


def empty_moments(channels: int) -> Moments:
    """Nothing seen yet."""
    return Moments(count=0, mean=np.zeros(channels), deviation=np.zeros(channels))


def add_latents(moments: Moments, latents: Array) -> Moments:
    """Adds latents to the moments.

    Args:
        moments: of the latents so far.
        latents: [... c].

    Returns:
        The moments of all of them.

    Raises:
        ShapeError: another number of channels.
    """
    values = np.asarray(latents, np.float64)
    if values.shape[-1:] != moments.mean.shape:
        raise ShapeError(f"latents of shape {values.shape} must end in {moments.mean.size} channels")
    values = values.reshape(-1, values.shape[-1])
    if not len(values):
        return moments
    mean = values.mean(0)
    return add_moments(moments, Moments(count=len(values), mean=mean, deviation=np.square(values - mean).sum(0)))


def add_moments(a: Moments, b: Moments) -> Moments:
    """Moments of all that two have seen (Chan et al., 1983: exact, and stable for any order of batches)."""
    count = a.count + b.count
    if not a.count or not b.count:
        return a if a.count else b
    gap = b.mean - a.mean
    deviation = a.deviation + b.deviation + np.square(gap) * a.count * b.count / count
    return Moments(count=count, mean=a.mean + gap * b.count / count, deviation=deviation)


def latent_statistics(moments: Moments) -> dict[str, np.ndarray]:
    """{"mean": float32 [c], "std": float32 [c]} of all latents added; std is MIN_STD at least."""
    if moments.count == 0:
        raise DataError("latent statistics need at least one clip: none was encoded")
    std = np.sqrt(moments.deviation / moments.count)
    return {"mean": moments.mean.astype(np.float32), "std": np.maximum(std, MIN_STD).astype(np.float32)}


def constant_channels(statistics: Mapping[str, Array]) -> list[int]:
    """The channels whose latents were all the same."""
    return [channel for channel, std in enumerate(np.asarray(statistics["std"])) if std <= np.float32(MIN_STD)]


def check_statistics(
    statistics: Mapping[str, Any], channels: int | None = None, *, name: str, error: type[VditError]
) -> dict[str, np.ndarray]:
    """Statistics that latents can be normalised by, as float32 [c].

    Args:
        statistics: {"mean": [c], "std": [c]}, from a file.
        channels: how many there must be; None takes any number.
        name: of the file, for messages.
        error: the class that is raised.

    Raises:
        error: a channel's mean is not finite, or its std not a finite number above 0.
    """
    try:
        mean, std = (np.asarray(statistics[key], np.float32) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OverflowError) as reason:
        raise error(f"{name} is damaged ({reason!r}): encode the latents again") from None
    if mean.ndim != 1 or mean.shape != std.shape or not len(mean) or channels not in (None, len(mean)):
        wanted = "as many each" if channels is None else f"{channels} each"
        raise error(f"{name} has means of shape {mean.shape} and stds of shape {std.shape}, must have {wanted}: encode "
                    "the latents again")
    for channel, (centre, spread) in enumerate(zip(mean.tolist(), std.tolist())):
        if not (math.isfinite(centre) and math.isfinite(spread) and spread > 0):
            raise error(f"{name}: channel {channel} has mean {centre} and std {spread}, must be finite and std above "
                        "0: encode the latents again")
    return {"mean": mean, "std": std}


def normalise(latents: Array, statistics: dict[str, Array]) -> Array:
    """Latents [... c] as the DiT sees them: mean 0, standard deviation 1 in each channel."""
    return (latents - statistics["mean"]) / statistics["std"]


def denormalise(latents: Array, statistics: dict[str, Array]) -> Array:
    """The inverse of `normalise`: [... c] as the VAE's decoder takes them."""
    return latents * statistics["std"] + statistics["mean"]
