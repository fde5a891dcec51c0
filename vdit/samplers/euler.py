"""Euler's method in the straight frame of any schedule (base.straight_frame): first order, a call a step."""

from __future__ import annotations

import dataclasses

from vdit.samplers.base import estimate, lay_out, projected, run_steps, straight_frame, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """Deterministic; the same numbers as DDIM without noise."""

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = lay_out(schedule, prediction, grid)

        def step(x, row, key):
            says = estimate(denoise, x, row, prediction)
            x = row["keep"] * x + row["move"] * (says.noise - says.x0)
            return projected(project, x, row["t_next"])

        x = working(x)
        return run_steps(step, x, problem.columns() | straight_frame(problem), dtype=x.dtype)
