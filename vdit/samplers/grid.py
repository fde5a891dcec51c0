"""Sampling grids: the falling noise levels that a sampler visits, in numpy float64."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np

from vdit.diffusion.schedules import Schedule, shift_level
from vdit.errors import ConfigError

Spacing = Literal["uniform", "linspace", "trailing", "leading", "log_snr"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """`steps` steps from level `start` down to 0: steps + 1 levels.

    spacing, before the shift:
        uniform   even from start to 0 (to `low`, then 0 in its place)
        linspace  even from start to `low`, both visited, then 0; DDPM's respacing, as in DiT
        trailing  uniform, on the schedule's own levels (those it was trained at)
        leading   every (n // steps)-th of the schedule's own levels, the first at `low`
        log_snr   even in log-SNR from start to `low`, then 0
    start: below 1 to begin from partly noised data. It names the level itself, after any shift.
    low: the smallest unshifted level that is spaced for; by default the schedule's first (0.001 without).
    shift: in place of the schedule's own.
    ceiling: levels are held to this; just under 1 where a method must divide by alpha.
    """

    steps: int
    spacing: Spacing = "uniform"
    start: float = 1.0
    low: float | None = None
    shift: float | None = None
    ceiling: float = 1.0

    def __post_init__(self):
        if self.spacing not in get_args(Spacing):
            raise ConfigError(f"grid spacing is {self.spacing!r}: use one of {', '.join(get_args(Spacing))}")
        if self.steps < 1:
            raise ConfigError(f"grid steps is {self.steps}: sampling needs 1 or more")
        if not 0.0 < self.start <= 1.0:
            raise ConfigError(f"grid start is {self.start}: it must be above 0 and at most 1")
        if self.low is not None and not 0.0 <= self.low < self.start:
            raise ConfigError(f"grid low is {self.low}: it must be at least 0 and below start, {self.start}")
        if self.shift is not None and not self.shift > 0:
            raise ConfigError(f"grid shift is {self.shift}: it must be above 0")

    def levels(self, schedule: Schedule) -> np.ndarray:
        """float64 [steps + 1], strictly falling, the last 0."""
        spaced = _SPACINGS[self.spacing](self, schedule)
        levels = np.append(np.minimum(spaced, min(self.ceiling, self.start)), 0.0)
        return check_levels(levels)

    def first(self, schedule: Schedule) -> float:
        """The unshifted level that the shift moves to `start`."""
        if self.start == 1.0:
            return 1.0
        # Shifting by 1/s undoes shifting by s.
        probe = float(self._shifted(schedule, np.float64(0.5)))
        return float(shift_level(self.start, (1.0 - probe) / probe))

    def lowest(self, schedule: Schedule) -> float:
        if self.low is not None:
            return self.low
        return 1.0 / (schedule.discrete_steps or 1000)

    def _shifted(self, schedule: Schedule, levels: np.ndarray) -> np.ndarray:
        return schedule.shifted(levels) if self.shift is None else shift_level(levels, self.shift)


def _uniform(grid: Grid, schedule: Schedule) -> np.ndarray:
    end = 0.0 if grid.low is None else grid.low
    return grid._shifted(schedule, np.linspace(grid.first(schedule), end, grid.steps + 1)[:-1])


def _linspace(grid: Grid, schedule: Schedule) -> np.ndarray:
    levels = np.linspace(grid.first(schedule), grid.lowest(schedule), grid.steps)
    return _snap(grid, schedule, grid._shifted(schedule, levels))


def _trailing(grid: Grid, schedule: Schedule) -> np.ndarray:
    return _snap(grid, schedule, _uniform(grid, schedule))


def _leading(grid: Grid, schedule: Schedule) -> np.ndarray:
    n = schedule.discrete_steps or 1000
    stride = round(grid.first(schedule) * n) // grid.steps
    levels = grid.lowest(schedule) + np.arange(grid.steps)[::-1] * stride / n
    return _snap(grid, schedule, grid._shifted(schedule, levels))


def _log_snr(grid: Grid, schedule: Schedule) -> np.ndarray:
    # log-SNR falls with the level but has no inverse in closed form for every schedule: look it up, on a
    # table that is fine near both ends, where log-SNR changes fastest.
    high = min(grid.start, grid.ceiling)
    low = float(grid._shifted(schedule, np.float64(grid.lowest(schedule))))
    table = 0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, 20001))
    table = low + (high - low) * table
    snr = schedule.log_snr(table)
    snr = np.maximum(snr, snr[np.isfinite(snr)].min() - 1.0)
    wanted = np.linspace(snr[-1], snr[0], grid.steps)
    return np.interp(wanted, snr[::-1], table[::-1])


def _snap(grid: Grid, schedule: Schedule, levels: np.ndarray) -> np.ndarray:
    n = schedule.discrete_steps
    if n is None:
        return levels
    if grid.steps > n:
        raise ConfigError(f"grid steps is {grid.steps} with {grid.spacing!r} spacing: the schedule has {n}")
    return np.maximum(np.round(levels * n), 1.0) / n


_SPACINGS = {
    "uniform": _uniform,
    "linspace": _linspace,
    "trailing": _trailing,
    "leading": _leading,
    "log_snr": _log_snr,
}


def check_levels(levels: np.ndarray) -> np.ndarray:
    """levels [n + 1] as float64, or an error where no sampler could step along them."""
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise ConfigError(f"a grid has shape {levels.shape}: it must be 1-D with 2 levels or more")
    if not (levels.max() <= 1.0 and levels.min() >= 0.0 and (np.diff(levels) < 0).all()):
        raise ConfigError(f"a grid of levels {levels}: they must fall strictly, from 1 to 0 at most")
    return levels


def resolve(grid: Grid | np.ndarray | int, schedule: Schedule) -> np.ndarray:
    """A Grid, explicit levels [n + 1], or a number of steps -> levels float64 [n + 1].

    A number of steps means evenly spaced from 1 to 0, on the schedule's own levels where it has some.
    """
    if isinstance(grid, Grid):
        return grid.levels(schedule)
    if isinstance(grid, (int, np.integer)):
        return Grid(steps=int(grid), spacing="trailing").levels(schedule)
    return check_levels(grid)
