"""Ancestral sampling (DDPM): each step draws the next level from its posterior, given the estimated data."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from vdit.diffusion.objectives import interpolate_log_variance
from vdit.errors import ConfigError
from vdit.samplers.base import (
    check_clip,
    discretize,
    need_key,
    posterior,
    projected,
    scan_steps,
    working,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM:
    """Stochastic, for any number of steps over any grid (respacing), any schedule.

    variance: "small" is the posterior's, right for data that are one point; "large" (beta, in a DDPM) is
    right for data that are unit Gaussian; "learned" asks the network for a mix of the two; None is
    "learned" where the network gives one, and "small" otherwise.
    clip: hold the estimated data to [-clip, clip], where data are known to lie there.
    """

    variance: Literal["small", "large", "learned"] | None = None
    clip: float | None = None

    def __post_init__(self):
        if self.variance not in (None, "small", "large", "learned"):
            raise ConfigError(f"ddpm variance is {self.variance!r}: use small, large, learned or None")
        check_clip(self.clip, "ddpm")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = discretize(schedule, prediction, grid)
        key = need_key(key, "ddpm")
        step_posterior = posterior(problem)
        noisy = problem.sigma_next > 0
        # A step onto clean data adds no noise; the 1s keep its logarithms finite.
        columns = problem.columns() | {
            "from_x0": step_posterior.from_x0,
            "from_x": step_posterior.from_x,
            "log_small": np.log(np.where(noisy, step_posterior.variance, 1.0)),
            "log_large": np.log(np.where(noisy, step_posterior.largest, 1.0)),
            "noisy": noisy,
        }

        def step(x, says, row, step_key):
            says = says.clipped(self.clip)
            spread = row["noisy"] * jnp.exp(0.5 * self._log_variance(says.variance, row))
            x = row["from_x0"] * says.x0 + row["from_x"] * x
            x = x + spread * jax.random.normal(step_key, x.shape, x.dtype)
            return projected(project, x, row["t_next"])

        x = working(x)
        asked = {"denoise": denoise, "prediction": prediction}
        return scan_steps(step, x, columns, dtype=x.dtype, key=key, **asked)

    def _log_variance(self, raw, row):
        if self.variance == "learned" and raw is None:
            raise ConfigError("ddpm variance is 'learned' but the network gives none: use small or large")
        if raw is not None and self.variance in (None, "learned"):
            return interpolate_log_variance(raw, row["log_small"], row["log_large"])
        return row["log_large"] if self.variance == "large" else row["log_small"]
