"""From data up to the noise that Euler's method would bring back to them: the way down, step by step in reverse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vdit.diffusion.config import Prediction
from vdit.diffusion.schedules import Schedule
from vdit.errors import ConfigError
from vdit.samplers.base import Denoise, Project, discretize, estimate, projected, run_steps, straight_frame, working
from vdit.samplers.grid import Grid
from vdit.types import Array


def invert(
    denoise: Denoise,
    x: Array,
    *,
    schedule: Schedule,
    prediction: Prediction,
    grid: Grid | np.ndarray | int,
    iterations: int = 5,
    project: Project | None = None,
) -> Array:
    """x [...] at the grid's last level -> x [...] at its first, from where `Euler().sample` on that grid goes to x.

    DDIM's inversion (Song et al. 2021) takes the slope of each step at its wrong end, and drifts. Here each step is
    undone exactly, y = keep * x + move * slope(x) solved for x by fixed-point iteration (Pan et al. 2023), which
    converges where a step is shorter than what the slope changes over; calls to the network: steps * iterations.
    iterations: 1 is DDIM's inversion. project: as in Sampler, called with each state and the level it is at.
    """
    if iterations < 1:
        raise ConfigError(f"iterations={iterations} of inversion: give 1 or more")
    problem = discretize(schedule, prediction, grid)
    columns = {name: column[::-1] for name, column in (problem.columns() | straight_frame(problem)).items()}

    def step(y, row, key):
        def closer(_, x):
            says = estimate(denoise, x, row, prediction)
            return projected(project, (y - row["move"] * (says.noise - says.x0)) / row["keep"], row["t"])

        return jax.lax.fori_loop(0, iterations, closer, projected(project, y / row["keep"], row["t"]))

    x = working(x)
    return run_steps(step, x, columns, dtype=jnp.promote_types(x.dtype, jnp.float32))
