"""UniPC of order 2 with B(h) = exp(h) - 1 ("bh2"), on data estimates (Zhao et al. 2023).

The predictor is DPM-Solver++(2M)'s step. The corrector then uses the network's word at the new level, which
the next step needs anyway, to redo the step just taken: it costs no call and gains an order.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from vdit.samplers.base import Problem, estimate, lay_out, projected, run_steps, working
from vdit.samplers.dpmpp2m import multistep_columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC:
    """Deterministic. Third order with the corrector, second without; first on a lowered last step.

    lower_order_final: as in DPM-Solver++(2M). The corrector never redoes the last step.
    """

    corrector: bool = True
    lower_order_final: bool = True

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = lay_out(schedule, prediction, grid)
        columns = problem.columns() | multistep_columns(problem, self.lower_order_final)
        columns |= _corrector_columns(problem, self.corrector)

        def step(carry, row, key):
            x, corrected, x0_1, x0_2 = carry
            x0 = estimate(denoise, x, row, prediction).x0
            corrected = (
                row["redo_guess"] * x
                + row["redo_x"] * corrected
                + row["redo_x0"] * x0
                + row["redo_x0_1"] * x0_1
                + row["redo_x0_2"] * x0_2
            )
            x = row["from_x"] * corrected + row["from_x0"] * x0 + row["from_before"] * x0_1
            return projected(project, x, row["t_next"]), corrected, x0, x0_1

        x = working(x)
        blank = jnp.zeros_like(x)
        return run_steps(step, (x, blank, blank, blank), columns, dtype=x.dtype)[0]


def _corrector_columns(problem: Problem, corrector: bool) -> dict[str, np.ndarray]:
    """Weights float64 [n], at step i, in the corrected x_i: of the predicted x_i, the corrected x_{i-1}, and
    the data estimates at i, i - 1 and i - 2.
    """
    names = ("redo_guess", "redo_x", "redo_x0", "redo_x0_1", "redo_x0_2")
    columns = {name: np.zeros(len(problem.t)) for name in names}
    columns["redo_guess"][:] = 1.0
    if not corrector:
        return columns
    level, _ = problem.half_log_snr()
    for i in range(1, len(level)):
        h = level[i] - level[i - 1]
        weight = -problem.alpha[i] * np.expm1(-h)
        new, old, gap = 0.5, 0.0, 1.0
        if i > 1:
            gap = (level[i - 2] - level[i - 1]) / h
            new, old = _corrector_weights(h, gap)
        columns["redo_guess"][i] = 0.0
        columns["redo_x"][i] = problem.sigma[i] / problem.sigma[i - 1]
        columns["redo_x0"][i] = weight * new
        columns["redo_x0_1"][i] = weight * (1.0 - new - old / gap)
        columns["redo_x0_2"][i] = weight * old / gap
    return columns


def _corrector_weights(h: float, gap: float) -> tuple[float, float]:
    """Weights of the differences to the new and the old estimate, a parabola's through the three.

    h: the step in log(alpha / sigma). gap: where the old estimate lies, in steps from this step's start.
    They make the integral of exp exact for x_0 linear and quadratic in log(alpha / sigma).
    """
    # Moments of exp(-h (1 - r)) against r and r^2 over the step, in units of (1 - exp(-h)).
    phi = np.expm1(-h)
    first = (phi / -h - 1.0) / phi
    second = 2.0 * ((phi / -h - 1.0) / -h - 0.5) / phi
    old = (first - second) / (1.0 - gap)
    return first - old, old
