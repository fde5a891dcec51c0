"""Euler's method with every step taken several times: what is made grows together with what is put back beside it.

Where a network does not know which part of its input is given, replacement alone (a sampler's `project`) leaves a jump
at the border: each step sees the given part only through the last one. Going back up, by new noise, and down again lets
the two parts meet (RePaint; Lugmayr et al. 2022, algorithm 1).
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from vdit.errors import ConfigError
from vdit.samplers.base import Problem, discretize, need_key, projected, scan_steps, straight_frame, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resample:
    """times: how often each step is taken. With 1 it is Euler's method."""

    times: int = 4

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ConfigError(f"resample times is {self.times}: give 1 or more")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        key = need_key(key, "resample")
        problem = discretize(schedule, prediction, grid)

        def step(x, says, row, step_key):
            x = row["keep"] * x + row["move"] * (says.noise - says.x0)
            x = projected(project, x, row["t_next"])
            up = row["up_keep"] * x + row["up_noise"] * jax.random.normal(step_key, x.shape, x.dtype)
            return projected(project, up, row["t_then"])

        x = working(x)
        columns = _repeated(problem, self.times)
        return scan_steps(step, x, columns, denoise=denoise, prediction=prediction, dtype=x.dtype, key=key)


def _repeated(problem: Problem, times: int) -> dict[str, np.ndarray]:
    """A row for each time that a step is taken, float64; after all but the last of them it goes up again.

    up_keep * x + up_noise * noise: from the level that the step has reached to the one where the row ends, t_then.
    """
    ratio = problem.alpha / problem.alpha_next
    noise = np.sqrt(np.maximum(problem.sigma**2 - (ratio * problem.sigma_next) ** 2, 0.0))
    columns = {name: np.repeat(column, times) for name, column in (problem.columns() | straight_frame(problem)).items()}
    again = np.tile(np.arange(times) < times - 1, len(ratio))
    columns["up_keep"] = np.where(again, np.repeat(ratio, times), 1.0)
    columns["up_noise"] = np.where(again, np.repeat(noise, times), 0.0)
    columns["t_then"] = np.where(again, columns["t"], columns["t_next"])
    return columns
