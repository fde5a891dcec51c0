"""DDIM: from the estimated data and noise straight to the next level, with as much fresh noise as wanted."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from vdit.diffusion.schedules import Schedule
from vdit.errors import ConfigError
from vdit.samplers.base import (
    Problem,
    check_clip,
    discretize,
    need_key,
    posterior,
    projected,
    scan_steps,
    working,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """First order.

    eta: 0 is deterministic, 1 adds the noise of the ancestral sampler (small variance).
    clip: hold the estimated data to [-clip, clip], where data are known to lie there.
    even_stride: every step goes down by n // steps of the schedule's n levels, also where the grid's next level
        lies a little elsewhere, as diffusers' DDIMScheduler does with linspace and trailing spacing.
    """

    eta: float = 0.0
    clip: float | None = None
    even_stride: bool = False

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"ddim eta is {self.eta}: it must be in [0, 1]")
        check_clip(self.clip, "ddim")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = discretize(schedule, prediction, grid)
        if self.even_stride:
            problem = _evenly(problem, schedule)
        if self.eta:
            key = need_key(key, "ddim with eta > 0")
        fresh = self.eta * np.sqrt(posterior(problem).variance)
        columns = problem.columns() | {
            "fresh": fresh,
            "kept": np.sqrt(np.maximum(problem.sigma_next**2 - fresh**2, 0.0)),
        }

        def step(x, says, row, step_key):
            says = says.clipped(self.clip)
            x = row["alpha_next"] * says.x0 + row["kept"] * says.noise
            if self.eta:
                x = x + row["fresh"] * jax.random.normal(step_key, x.shape, x.dtype)
            return projected(project, x, row["t_next"])

        x = working(x)
        asked = {"denoise": denoise, "prediction": prediction}
        return scan_steps(step, x, columns, dtype=x.dtype, key=key, **asked)


def _evenly(problem: Problem, schedule: Schedule) -> Problem:
    n = schedule.discrete_steps
    if n is None:
        raise ConfigError("ddim even_stride is True and the schedule has no levels of its own: set it to False")
    levels = np.round(problem.t * n) - n // len(problem.t)
    levels = np.where(levels >= 1.0, levels / n, problem.t_next[-1])
    return problem._replace(alpha_next=schedule.alpha(levels), sigma_next=schedule.sigma(levels))
