"""DDIM: from the estimated data and noise straight to the next level, with as much fresh noise as wanted."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from vdit.errors import ConfigError
from vdit.samplers.base import estimate, lay_out, need_key, posterior, projected, run_steps, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """First order. eta: 0 is deterministic, 1 adds the noise of the ancestral sampler (small variance)."""

    eta: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"ddim eta is {self.eta}: it must be in [0, 1]")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = lay_out(schedule, prediction, grid)
        if self.eta:
            key = need_key(key, "ddim with eta > 0")
        fresh = self.eta * np.sqrt(posterior(problem).variance)
        columns = problem.columns() | {
            "fresh": fresh,
            "kept": np.sqrt(np.maximum(problem.sigma_next**2 - fresh**2, 0.0)),
        }

        def step(x, row, step_key):
            says = estimate(denoise, x, row, prediction)
            x = row["alpha_next"] * says.x0 + row["kept"] * says.noise
            if self.eta:
                x = x + row["fresh"] * jax.random.normal(step_key, x.shape, x.dtype)
            return projected(project, x, row["t_next"])

        x = working(x)
        return run_steps(step, x, columns, dtype=x.dtype, key=key)
