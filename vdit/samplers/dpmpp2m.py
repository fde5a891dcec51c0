"""DPM-Solver++(2M) (Lu et al. 2022): second order, one call a step, from the last two data estimates.

In l = log(alpha / sigma) the path obeys d(x / sigma) / dl = exp(l) x_0(l). With x_0 taken as constant over
a step of h, x' = (sigma' / sigma) x + alpha' (1 - exp(-h)) x_0; a line through the last two x_0, taken at
the middle of the step, makes it second order.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from vdit.samplers.base import Problem, estimate, lay_out, projected, run_steps, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2M:
    """Deterministic.

    lower_order_final: take the last step at first order, which is steadier with few steps. A last step
    onto clean data always is: the middle of an infinite step means nothing.
    """

    lower_order_final: bool = True

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = lay_out(schedule, prediction, grid)

        def step(carry, row, key):
            x, x0_before = carry
            x0 = estimate(denoise, x, row, prediction).x0
            x = row["from_x"] * x + row["from_x0"] * x0 + row["from_before"] * x0_before
            return projected(project, x, row["t_next"]), x0

        x = working(x)
        columns = problem.columns() | multistep_columns(problem, self.lower_order_final)
        return run_steps(step, (x, jnp.zeros_like(x)), columns, dtype=x.dtype)[0]


def multistep_columns(problem: Problem, lower_order_final: bool) -> dict[str, np.ndarray]:
    """Weights float64 [n] of x, of this step's x_0 and of the one before in x at the next level."""
    here, there = problem.half_log_snr()
    h = there - here
    slope = np.zeros_like(h)
    slope[1:] = 0.5 * h[1:] / h[:-1]
    if lower_order_final or problem.sigma_next[-1] == 0:
        slope[-1] = 0.0
    weight = -problem.alpha_next * np.expm1(-h)
    return {
        "from_x": problem.sigma_next / problem.sigma,
        "from_x0": weight * (1.0 + slope),
        "from_before": -weight * slope,
    }
