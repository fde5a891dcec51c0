"""Multistep sampling of a consistency model (Song et al. 2023, algorithm 1): guess the data, noise the guess, again."""

from __future__ import annotations

import dataclasses

import jax

from vdit.samplers.base import discretize, need_key, projected, scan_steps, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency:
    """For models distilled to predict the data from any level at once (vdit.experiment.distill); one step is enough.

    Each step's guess is noised afresh to the next level, so the noise of a step is not carried on. Where the model is
    the true consistency function, samples have exactly the data's distribution after any number of steps; further steps
    fix a model that is not. Of other models it shows means of what the data may be: blurred.
    """

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        key = need_key(key, "consistency")
        problem = discretize(schedule, prediction, grid)

        def step(x, says, row, step_key):
            x = row["alpha_next"] * says.x0 + row["sigma_next"] * jax.random.normal(step_key, x.shape, x.dtype)
            return projected(project, x, row["t_next"])

        x = working(x)
        asked = {"denoise": denoise, "prediction": prediction}
        return scan_steps(step, x, problem.columns(), dtype=x.dtype, key=key, **asked)
