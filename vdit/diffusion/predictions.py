"""What a network's output means, and how it gives the data and the noise.

    noise      the noise of x_t
    sample     the data x_0
    velocity   noise - x_0, the slope of a straight path
    v          alpha noise - sigma x_0 (Salimans and Ho)

All four hold the same knowledge, given x_t = alpha x_0 + sigma noise, under any schedule; they differ in
where they divide by something small ("noise" by alpha, "sample" by sigma), and in how a loss weighs levels.
"""

from __future__ import annotations

from vdit.diffusion.config import Prediction
from vdit.errors import ConfigError
from vdit.types import Array


def from_clean_and_noise(
    prediction: Prediction, x0: Array, noise: Array, alpha: Array, sigma: Array
) -> Array:
    """x0, noise [...]; alpha, sigma broadcast against them -> what the network should have said [...]."""
    if prediction == "noise":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "velocity":
        return noise - x0
    if prediction == "v":
        return alpha * noise - sigma * x0
    raise _unknown(prediction)


def to_clean_and_noise(
    prediction: Prediction, output: Array, x: Array, alpha: Array, sigma: Array
) -> tuple[Array, Array]:
    """output, x_t [...]; alpha, sigma broadcast against them -> (x0 [...], noise [...])."""
    if prediction == "noise":
        return (x - sigma * output) / alpha, output
    if prediction == "sample":
        return output, (x - alpha * output) / sigma
    if prediction == "velocity":
        total = alpha + sigma
        return (x - sigma * output) / total, (x + alpha * output) / total
    if prediction == "v":
        power = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / power, (sigma * x + alpha * output) / power
    raise _unknown(prediction)


def expand_like(level: Array, x: Array) -> Array:
    """level [b ...] -> the same values with trailing axes of 1, to broadcast against x [b ... p]."""
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim))


def _unknown(prediction: str) -> ConfigError:
    return ConfigError(f"prediction is {prediction!r}: use noise, sample, velocity or v")
