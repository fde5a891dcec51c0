"""DPM-Solver++(2M) (Lu et al. 2022): second order, one call a step, from the last two data estimates.

In l = log(alpha / sigma) the path obeys d(x / sigma) / dl = exp(l) x_0(l). With x_0 taken as constant over
a step of h, x' = (sigma' / sigma) x + alpha' (1 - exp(-h)) x_0; a line through the last two x_0 makes it
second order.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError
from vdit.samplers.base import Problem, discretize, projected, scan_steps, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2M:
    """Deterministic.

    order: 2, or 1, which is DDIM.
    solver: the line through the last two estimates is taken at the middle of the step ("midpoint"), or
        integrated over it ("heun").
    lower_order_final: take the last step at first order, which is steadier with few steps. A last step
        onto clean data always is: the middle of an infinite step means nothing.
    lower_order_below: lower it only in runs of fewer steps than this.
    """

    order: int = 2
    solver: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    lower_order_below: int | None = None

    def __post_init__(self):
        if self.order not in (1, 2):
            raise ConfigError(f"dpmpp2m order is {self.order}: use 1 or 2")
        if self.solver not in ("midpoint", "heun"):
            raise ConfigError(f"dpmpp2m solver is {self.solver!r}: use midpoint or heun")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = discretize(schedule, prediction, grid)

        def step(carry, says, row, key):
            x, x0_before = carry
            x = row["from_x"] * x + row["from_x0"] * says.x0 + row["from_before"] * x0_before
            return projected(project, x, row["t_next"]), says.x0

        x = working(x)
        columns = problem.columns() | self._columns(problem)
        asked = {"denoise": denoise, "prediction": prediction, "at": lambda carry: carry[0]}
        return scan_steps(step, (x, jnp.zeros_like(x)), columns, dtype=x.dtype, **asked)[0]

    def _columns(self, problem: Problem) -> dict[str, np.ndarray]:
        """Weights float64 [n] of x, of this step's x_0 and of the one before in x at the next level."""
        here, there = problem.half_log_snr()
        h = there - here
        weight = -problem.alpha_next * np.expm1(-h)
        slope = np.zeros_like(h)
        if self.order == 2:
            middle = -0.5 * np.expm1(-h) if self.solver == "midpoint" else np.expm1(-h) / h + 1.0
            slope[1:] = problem.alpha_next[1:] * middle[1:] * h[1:] / h[:-1]
        few = self.lower_order_below is None or len(h) < self.lower_order_below
        if (self.lower_order_final and few) or problem.sigma_next[-1] == 0:
            slope[-1] = 0.0
        return {
            "from_x": problem.sigma_next / problem.sigma,
            "from_x0": weight + slope,
            "from_before": -slope,
        }
