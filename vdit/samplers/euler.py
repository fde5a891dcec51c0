"""Euler's method along the straight frame of any schedule: first order, one call a step.

With y = x / (alpha + sigma) and s = sigma / (alpha + sigma), every schedule becomes a straight path,
y = (1 - s) x_0 + s noise, whose slope dy/ds = noise - x_0 is finite at both ends. For a flow y is x itself.
"""

from __future__ import annotations

import dataclasses

from vdit.samplers.base import estimate, lay_out, projected, run_steps, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """Deterministic; the same numbers as DDIM without noise."""

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = lay_out(schedule, prediction, grid)
        total, total_next = problem.alpha + problem.sigma, problem.alpha_next + problem.sigma_next
        columns = problem.columns() | {
            "keep": total_next / total,
            "move": total_next * (problem.sigma_next / total_next - problem.sigma / total),
        }

        def step(x, row, key):
            says = estimate(denoise, x, row, prediction)
            x = row["keep"] * x + row["move"] * (says.noise - says.x0)
            return projected(project, x, row["t_next"])

        x = working(x)
        return run_steps(step, x, columns, dtype=x.dtype)
