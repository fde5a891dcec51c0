"""Noise schedules: how much data and how much noise x_t holds at each noise level.

A noise level t is a float in [0, 1]: 0 is clean, 1 is the noisiest. x_t = alpha(t) x_0 + sigma(t) noise.

Every method takes floats or numpy arrays, and then computes in numpy float64; samplers build their coefficients this
way while tracing. Or it takes JAX arrays, and then computes in the dtype of the array.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vdit.diffusion.config import BetaSchedule, DiffusionConfig, Interpolation
from vdit.errors import ConfigError
from vdit.types import Array

MAX_TIME = 1000.0  # the network's time at level 1, in the units that published models use
MAX_BETA = 0.999  # the cosine schedule's last step would otherwise destroy everything at once
COSINE_OFFSET = 0.008
WHOLE_MARGIN = 1e-4  # float32 tells times near 1000 apart by 6e-5


class Schedule(Protocol):
    """What training and samplers need from a schedule. t has any shape, and every method keeps it."""

    @property
    def discrete_steps(self) -> int | None:
        """How many levels the network was trained at, t = 1/n, 2/n, ..., 1. None: at all levels."""
        ...

    def alpha(self, t: Array | float) -> Array:
        """Share of data in x_t."""
        ...

    def sigma(self, t: Array | float) -> Array:
        """Share of noise in x_t."""
        ...

    def time(self, t: Array | float) -> Array:
        """The time input of the network, 0 to 1000."""
        ...

    def rounding(self, t: np.ndarray) -> np.ndarray:
        """Levels close to t that float32 can round without changing their time. t: numpy."""
        ...

    def log_snr(self, t: Array | float) -> Array:
        """log(alpha^2 / sigma^2): +inf at t = 0, falling."""
        ...

    def shifted(self, t: Array | float) -> Array:
        """Levels that were drawn or spaced without a shift, after the shift."""
        ...


def _numpy_or_jax(t: Array | float):
    return (jnp, t) if isinstance(t, jax.Array) else (np, np.asarray(t, np.float64))


def log_snr(alpha: Array, sigma: Array) -> Array:
    """2 log(alpha / sigma) [...]: infinite at pure data and at pure noise."""
    xp, _ = _numpy_or_jax(alpha)
    with np.errstate(divide="ignore"):
        return 2.0 * (xp.log(alpha) - xp.log(sigma))


def shift_level(t: Array | float, shift: float) -> Array:
    """s t / (1 + (s - 1) t) [...]: keeps 0 and 1, and multiplies sigma / alpha of a flow by s in between."""
    return shift * t / (1.0 + (shift - 1.0) * t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """Straight paths from data to noise (rectified flow; Liu et al., 2022): alpha = 1 - t, sigma = t.

    Args:
        shift: acts on which levels are chosen, not on what a level means. Training levels and sampling grids go through
            `shifted`. alpha, sigma and time of a level are the same for every shift.
        integer_timesteps: round the network's time down to whole numbers, as Wan's reference sampler does.

    Raises:
        ConfigError: the shift is not above 0.
    """

    shift: float = 1.0
    integer_timesteps: bool = False

    def __post_init__(self):
        if not self.shift > 0:
            raise ConfigError(f"flow shift is {self.shift}: it must be above 0 (1 does nothing)")

    @property
    def discrete_steps(self) -> None:
        return None

    def alpha(self, t):
        return 1.0 - _numpy_or_jax(t)[1]

    def sigma(self, t):
        return 1.0 * _numpy_or_jax(t)[1]

    def time(self, t):
        xp, t = _numpy_or_jax(t)
        if not self.integer_timesteps:
            return MAX_TIME * t
        # The margin keeps a whole number whole when float32 has rounded the level down.
        return xp.floor(MAX_TIME * t + (0.0 if xp is np else WHOLE_MARGIN))

    def rounding(self, t):
        if not self.integer_timesteps:
            return t
        # A time just below a whole number would be rounded up to it, or be lifted over it by the margin.
        below = np.floor(MAX_TIME * t) + 1.0 - 3 * WHOLE_MARGIN
        return np.minimum(t, below / MAX_TIME)

    def log_snr(self, t):
        return log_snr(self.alpha(t), self.sigma(t))

    def shifted(self, t):
        return shift_level(_numpy_or_jax(t)[1], self.shift)


@functools.lru_cache(maxsize=16)
def log_alpha_bar_table(
    beta_schedule: BetaSchedule, steps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Log of the cumulative product of (1 - beta) after 0, 1, ..., steps steps: float64 [steps + 1]."""
    if beta_schedule == "linear":
        betas = np.linspace(beta_start, beta_end, steps, dtype=np.float64) * 1000.0 / steps
    elif beta_schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2 * 1000.0 / steps
    elif beta_schedule == "cosine":
        points = np.arange(steps + 1, dtype=np.float64) / steps
        wanted = np.cos((points + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
        betas = np.minimum(1.0 - wanted[1:] / wanted[:-1], MAX_BETA)
    else:
        raise ConfigError(f"beta_schedule is {beta_schedule!r}: use 'linear', 'scaled_linear' or 'cosine'")
    if not 0 < betas.max() < 1:
        raise ConfigError(f"steps is {steps} with a {beta_schedule} schedule: betas reach 1, use more steps")
    table = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    table.flags.writeable = False
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM:
    """The discrete variance-preserving process (Ho et al., 2020): alpha^2 + sigma^2 = 1.

    The network knows the times 0 .. steps - 1. Time i is the level t = (i + 1) / steps, and level 0 is clean; a level
    below the first has time 0. At those levels alpha^2 is the cumulative product of (1 - beta).

    beta_schedule, beta_start, beta_end: how beta grows from the first to the last step (DiffusionConfig).
    steps: number of training levels.
    interpolation: between the training levels, "log_alpha" interpolates the logarithm of alpha^2 linearly, "sigma" the
        ratio sigma / alpha, so that samplers may step anywhere.
    """

    beta_schedule: BetaSchedule = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    interpolation: Interpolation = "log_alpha"

    def __post_init__(self):
        self.table()

    def table(self) -> np.ndarray:
        """log(alpha^2) at levels 0, 1/steps, ..., 1: float64 [steps + 1]."""
        return log_alpha_bar_table(self.beta_schedule, self.steps, self.beta_start, self.beta_end)

    @property
    def discrete_steps(self) -> int:
        return self.steps

    def log_alpha_bar(self, t):
        """log(alpha^2) [...]."""
        xp, t = _numpy_or_jax(t)
        place, known = t * self.steps, xp.arange(self.steps + 1.0)
        if self.interpolation == "sigma":
            ratio = np.sqrt(np.expm1(-self.table()))
            return -xp.log1p(xp.interp(place, known, xp.asarray(ratio)) ** 2)
        return xp.interp(place, known, xp.asarray(self.table()))

    def alpha(self, t):
        xp, _ = _numpy_or_jax(t)
        return xp.exp(0.5 * self.log_alpha_bar(t))

    def sigma(self, t):
        xp, _ = _numpy_or_jax(t)
        return xp.sqrt(-xp.expm1(self.log_alpha_bar(t)))

    def time(self, t):
        xp, t = _numpy_or_jax(t)
        time = t * self.steps - 1.0
        # A float32 level misses its whole time by 1e-4; published models were fed the whole one.
        whole = xp.round(time)
        return xp.maximum(xp.where(xp.abs(time - whole) < 1e-3, whole, time), 0.0)

    def rounding(self, t):
        return t

    def log_snr(self, t):
        return log_snr(self.alpha(t), self.sigma(t))

    def shifted(self, t):
        return _numpy_or_jax(t)[1]


def make_schedule(config: DiffusionConfig) -> Schedule:
    """The schedule that a configuration describes.

    Args:
        config: kind of diffusion and its parameters.

    Returns:
        A `Flow` or a `DDPM`.
    """
    if config.kind == "flow":
        return Flow(shift=config.shift, integer_timesteps=config.integer_timesteps)
    return DDPM(
        beta_schedule=config.beta_schedule,
        steps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        interpolation=config.interpolation,
    )
