"""Mean and standard deviation of each latent channel, measured in one pass over any amount of latents.

The DiT sees latents normalised by them. They are plain arrays, {"mean": [c], "std": [c]}, to be stored
with the VAE.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vdit.errors import DataError, ShapeError
from vdit.types import Array

MIN_STD = 1e-5  # a channel that the VAE left unused must not blow up when it is normalised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """What was seen so far: values a channel, their mean and summed squared deviation, float64 [c]."""

    count: int
    mean: np.ndarray
    deviation: np.ndarray


def empty_moments(channels: int) -> Moments:
    """Nothing seen yet."""
    return Moments(count=0, mean=np.zeros(channels), deviation=np.zeros(channels))


def add_latents(moments: Moments, latents: Array) -> Moments:
    """Moments with latents [... c] added (Chan et al., 1983: exact, and stable for any order of batches)."""
    values = np.asarray(latents, np.float64)
    if values.shape[-1:] != moments.mean.shape:
        raise ShapeError(f"latents of shape {values.shape} must end in {moments.mean.size} channels")
    values = values.reshape(-1, values.shape[-1])
    if not len(values):
        return moments
    count = moments.count + len(values)
    mean = values.mean(0)
    gap = mean - moments.mean
    deviation = moments.deviation + np.square(values - mean).sum(0)
    deviation += np.square(gap) * moments.count * len(values) / count
    return Moments(count=count, mean=moments.mean + gap * len(values) / count, deviation=deviation)


def latent_statistics(moments: Moments) -> dict[str, np.ndarray]:
    """{"mean": float32 [c], "std": float32 [c]} of all latents added."""
    if moments.count == 0:
        raise DataError("latent statistics need at least one clip: none was encoded")
    std = np.sqrt(moments.deviation / moments.count)
    return {"mean": moments.mean.astype(np.float32), "std": np.maximum(std, MIN_STD).astype(np.float32)}


def normalise(latents: Array, statistics: dict[str, Array]) -> Array:
    """Latents [... c] as the DiT sees them: mean 0, standard deviation 1 in each channel."""
    return (latents - statistics["mean"]) / statistics["std"]


def denormalise(latents: Array, statistics: dict[str, Array]) -> Array:
    """The inverse of `normalise`: [... c] as the VAE's decoder takes them."""
    return latents * statistics["std"] + statistics["mean"]
