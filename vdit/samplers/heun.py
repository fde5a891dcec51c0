"""Heun's method: second order, two calls a step (one on a step that ends at clean data).

Each call is a row of the table of its own, so that the compiled step holds the network once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError
from vdit.samplers.base import (
    Problem,
    check_clip,
    discretize,
    projected,
    scan_steps,
    straight_frame,
    working,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """Averages the slopes at both ends of each step. Deterministic.

    frame: which curve counts as straight. "straight": y = x / (alpha + sigma), a flow's own; finite from
    pure noise to clean data. "exploding": y = x / alpha, as Karras et al. do for DDPM-trained networks.
    clip: hold the estimated data to [-clip, clip], where data are known to lie there.
    """

    frame: Literal["straight", "exploding"] = "straight"
    clip: float | None = None

    def __post_init__(self):
        if self.frame not in ("straight", "exploding"):
            raise ConfigError(f"heun frame is {self.frame!r}: use straight or exploding")
        check_clip(self.clip, "heun")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = discretize(schedule, prediction, grid)
        frame = straight_frame(problem) if self.frame == "straight" else _exploding_frame(problem)

        def slope(x, says, row):
            # A clipped estimate of the data implies another noise than the network's.
            noise = says.noise if self.clip is None else (x - row["alpha"] * says.x0) / row["sigma"]
            return noise - says.x0 if self.frame == "straight" else noise

        def call(carry, says, row, key):
            """x: where the step began; there: where the network is called, x itself at first."""
            x, there, first = carry
            says = says.clipped(self.clip)
            second = row["second"] > 0
            here = slope(there, says, row)
            mean_slope = jnp.where(second, 0.5 * (first + here), here)
            there = projected(project, row["keep"] * x + row["move"] * mean_slope, row["t_next"])
            return jnp.where(second, there, x), there, here

        x = working(x)
        columns = _calls(problem.columns() | frame)
        asked = {"denoise": denoise, "prediction": prediction, "at": lambda carry: carry[1]}
        return scan_steps(call, (x, x, jnp.zeros_like(x)), columns, dtype=x.dtype, **asked)[1]


def _calls(steps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A table of steps, float64 [n] each, -> one of calls: at a step's own level, then (second) at the next's."""
    columns = {name: np.repeat(column, 2) for name, column in steps.items()}
    columns["second"] = np.tile([0.0, 1.0], len(steps["t"]))
    for name in ("t", "alpha", "sigma"):
        columns[name][1::2] = steps[f"{name}_next"]
    # At clean data the second slope may divide by sigma = 0, and costs a call for nothing.
    count = -1 if steps["sigma_next"][-1] == 0 else None
    return {name: column[:count] for name, column in columns.items()}


def _exploding_frame(problem: Problem) -> dict[str, np.ndarray]:
    if problem.alpha[0] == 0.0:
        raise ConfigError(
            "heun frame is 'exploding' and the grid starts at pure noise, where x / alpha is infinite: "
            "set the frame to 'straight', or the grid's ceiling to 0.999"
        )
    ratio, ratio_next = problem.sigma / problem.alpha, problem.sigma_next / problem.alpha_next
    return {
        "keep": problem.alpha_next / problem.alpha,
        "move": problem.alpha_next * (ratio_next - ratio),
    }
