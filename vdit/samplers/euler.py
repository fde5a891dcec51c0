"""Euler's method in the straight frame of any schedule (base.straight_frame): first order, a call a step."""

from __future__ import annotations

import dataclasses

from vdit.samplers.base import discretize, projected, scan_steps, straight_frame, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """Deterministic; the same numbers as DDIM without noise."""

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = discretize(schedule, prediction, grid)

        def step(x, says, row, key):
            x = row["keep"] * x + row["move"] * (says.noise - says.x0)
            return projected(project, x, row["t_next"])

        x = working(x)
        columns = problem.columns() | straight_frame(problem)
        return scan_steps(step, x, columns, denoise=denoise, prediction=prediction, dtype=x.dtype)
