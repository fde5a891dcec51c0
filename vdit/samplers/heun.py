"""Heun's method: second order, two calls a step (one on a step that ends at clean data)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from vdit.errors import ConfigError
from vdit.samplers.base import (
    Problem,
    estimate,
    estimate_at,
    lay_out,
    projected,
    run_steps,
    straight_frame,
    working,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """Averages the slopes at both ends of each step. Deterministic.

    frame: which curve counts as straight. "straight": y = x / (alpha + sigma), a flow's own; finite from
    pure noise to clean data. "exploding": y = x / alpha, as Karras et al. do for DDPM-trained networks.
    """

    frame: Literal["straight", "exploding"] = "straight"

    def __post_init__(self):
        if self.frame not in ("straight", "exploding"):
            raise ConfigError(f"heun frame is {self.frame!r}: use straight or exploding")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = lay_out(schedule, prediction, grid)
        frame = straight_frame(problem) if self.frame == "straight" else _exploding_frame(problem)
        columns = problem.columns() | frame | {"average": problem.sigma_next > 0}

        def slope(says):
            return says.noise - says.x0 if self.frame == "straight" else says.noise

        def step(x, row, key):
            first = slope(estimate(denoise, x, row, prediction))

            def averaged():
                there = projected(project, row["keep"] * x + row["move"] * first, row["t_next"])
                level = row["t_next"], row["alpha_next"], row["sigma_next"]
                return 0.5 * (first + slope(estimate_at(denoise, there, *level, prediction)))

            # At clean data the second slope may divide by sigma = 0, and costs a call for nothing.
            mean_slope = jax.lax.cond(row["average"] > 0, averaged, lambda: first)
            return projected(project, row["keep"] * x + row["move"] * mean_slope, row["t_next"])

        x = working(x)
        return run_steps(step, x, columns, dtype=x.dtype)


def _exploding_frame(problem: Problem) -> dict[str, np.ndarray]:
    if problem.alpha[0] == 0.0:
        raise ConfigError(
            "heun frame is 'exploding' and the grid starts at pure noise, where x / alpha is infinite: "
            "use frame='straight', or Grid(..., ceiling=0.999)"
        )
    ratio, ratio_next = problem.sigma / problem.alpha, problem.sigma_next / problem.alpha_next
    return {
        "keep": problem.alpha_next / problem.alpha,
        "move": problem.alpha_next * (ratio_next - ratio),
    }
