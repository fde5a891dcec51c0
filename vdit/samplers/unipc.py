"""UniPC (Zhao et al. 2023), on data estimates.

The predictor is a multistep method; of order 2 it is DPM-Solver++(2M)'s step. The corrector then uses the
network's word at the new level, which the next step needs anyway, to redo the step just taken: it costs no
call and gains an order.

In l = log(alpha / sigma), over a step of h from l, x' = (sigma' / sigma) x + alpha' (1 - exp(-h)) x_0, and
then corrections alpha' B(h) rho_k (x_0(l + r_k h) - x_0) / r_k for other estimates, at places r_k in units
of the step. The weights rho_k make polynomials exact, up to the powers that there are places for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError
from vdit.samplers.base import Problem, discretize, projected, scan_steps, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC:
    """Deterministic. With the corrector one order above `order`; first on a lowered last step.

    order: of the predictor, 1 to 3; the first steps are lower, having fewer estimates to look back on.
    solver: B(h) is h ("bh1") or 1 - exp(-h) ("bh2").
    skip_corrections: the corrector redoes no step before this one; more is steadier under strong guidance.
    lower_order_final: order 1 in the last step, and at most 2 in the one before. A last step onto clean data
        is always first order. The corrector never redoes the last step.
    """

    order: int = 2
    solver: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    skip_corrections: int = 0
    lower_order_final: bool = True

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise ConfigError(f"unipc order is {self.order}: use 1, 2 or 3")
        if self.solver not in ("bh1", "bh2"):
            raise ConfigError(f"unipc solver is {self.solver!r}: use bh1 or bh2")
        if self.skip_corrections < 0:
            raise ConfigError(f"unipc skip_corrections is {self.skip_corrections}: it must be at least 0")

    def sample(self, denoise, x, *, schedule, prediction, grid, key=None, project=None):
        """See vdit.samplers.base.Sampler."""
        problem = discretize(schedule, prediction, grid)
        columns = problem.columns() | self._columns(problem)

        def step(carry, says, row, key):
            (x, corrected, past), x0 = carry, says.x0
            corrected = row["redo_guess"] * x + row["redo_x"] * corrected + _weighted(row["redo_x0"], x0, *past)
            x = row["from_x"] * corrected + _weighted(row["from_x0"], x0, *past)
            return projected(project, x, row["t_next"]), corrected, (x0, *past)[: self.order]

        x = working(x)
        blank = jnp.zeros_like(x)
        asked = {"denoise": denoise, "prediction": prediction, "at": lambda carry: carry[0]}
        return scan_steps(step, (x, blank, (blank,) * self.order), columns, dtype=x.dtype, **asked)[0]

    def _columns(self, problem: Problem) -> dict[str, np.ndarray]:
        """Weights, float64, at step i.

        In x_{i+1}: of the corrected x_i (from_x [n]), and of the data estimates at i, i - 1, ...
        (from_x0 [n, order + 1]). In the corrected x_i: of the predicted one (redo_guess [n]), of the
        corrected x_{i-1} (redo_x [n]), and of the same estimates (redo_x0 [n, order + 1]).
        """
        level, level_next = problem.half_log_snr()
        n = len(level)
        from_x0, redo_x0 = np.zeros((n, self.order + 1)), np.zeros((n, self.order + 1))
        redo_guess, redo_x = np.ones(n), np.zeros(n)
        orders = self._orders(problem)
        for i in range(n):
            back = np.array([level[i - k] - level[i] for k in range(1, orders[i])])
            predicted = self._weights(level_next[i] - level[i], back, corrects=False)
            from_x0[i, : orders[i]] = problem.alpha_next[i] * predicted
            if i == 0 or not self.corrector or i <= self.skip_corrections:
                continue
            # Redone at the order at which it was predicted, with the new estimate besides.
            back = np.array([level[i - 1 - k] - level[i - 1] for k in range(1, orders[i - 1])])
            corrected = self._weights(level[i] - level[i - 1], back, corrects=True)
            redo_x0[i, : orders[i - 1] + 1] = problem.alpha[i] * np.roll(corrected, 1)
            redo_guess[i], redo_x[i] = 0.0, problem.sigma[i] / problem.sigma[i - 1]
        from_x = problem.sigma_next / problem.sigma
        return {
            "from_x": from_x,
            "from_x0": from_x0,
            "redo_guess": redo_guess,
            "redo_x": redo_x,
            "redo_x0": redo_x0,
        }

    def _orders(self, problem: Problem) -> np.ndarray:
        """The predictor's order at each step, int [n]."""
        n = len(problem.t)
        orders = np.minimum(self.order, np.arange(1, n + 1))
        if self.lower_order_final:
            orders = np.minimum(orders, np.arange(n, 0, -1))
        if problem.sigma_next[-1] == 0:
            orders[-1] = 1
        return orders

    def _weights(self, h: float, back: np.ndarray, *, corrects: bool) -> np.ndarray:
        """Weights over alpha' of the estimates at the step's start, at `back` from it, and, if the step is
        corrected, at its end: float64 [1 + len(back) + corrects]. h: the step's length.
        """
        phi = np.expm1(-h)
        places = back / h
        if corrects:
            places = np.append(places, 1.0)
        if len(places) == 1:
            # A half is what the condition below tends to as h goes to 0; it keeps the order.
            rho = np.array([0.5])
        else:
            powers = np.arange(len(places))
            rho = np.linalg.solve(places[None] ** powers[:, None], _moments(h, len(places)) * phi / self._scale(h))
        gain = -self._scale(h) * rho / places
        return np.append(-phi - gain.sum(), gain)

    def _scale(self, h: float) -> float:
        return -h if self.solver == "bh1" else np.expm1(-h)


def _moments(h: float, count: int) -> np.ndarray:
    """What x_0 = r, r^2, ... r^count over a step weigh, over what x_0 = 1 does: float64 [count]."""
    phi = np.expm1(-h)
    moments, rest = [], phi / -h - 1.0
    for k in range(1, count + 1):
        moments.append(math.factorial(k) * rest / phi)
        rest = rest / -h - 1.0 / math.factorial(k + 1)
    return np.array(moments)


def _weighted(weights, *values):
    """The sum of weights [k] times values, each of one shape."""
    return sum(weights[i] * value for i, value in enumerate(values))
