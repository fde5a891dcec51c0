"""Sampling grids: the falling noise levels that a sampler visits, in numpy float64."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np

from vdit.diffusion.schedules import Schedule, shift_level
from vdit.errors import ConfigError

Spacing = Literal["uniform", "linspace", "trailing", "leading", "mirrored", "log_snr"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Where the levels of a grid lie, whatever their number.

    spacing, before the shift:
        uniform   even from `high` to 0 (to `low`, then 0 in its place)
        linspace  even from `high` to `low`, both visited, then 0; DDPM's respacing, as in DiT
        trailing  uniform, on the schedule's own levels (those it was trained at)
        leading   every (n // steps)-th of the schedule's own levels, the first at `low`
        mirrored  1 minus levels that are even from `low` to 1, without the last of them, then 0
        log_snr   even in log-SNR from `high` to `low`, then 0
    high: the largest unshifted level.
    low: the smallest unshifted level that is spaced for; by default the schedule's first (0.001 without).
    open_end: linspace and leading space for one more level, and leave out the lowest.
    snap: linspace keeps to the levels that the schedule was trained at.
    shift: in place of the schedule's own.
    ceiling: levels are held to this; just under 1 where a method must divide by alpha.
    last: the level that the last step reaches, in place of 0: some noise is then left in the result.

    Public grids, each with the same numbers (tests/pretrained/test_schedulers.py):
        Wan in diffusers (UniPC)         uniform, low=0.001, ceiling=1 - 1e-6: times 999, 993, 986 ... 60 (shift 3)
        Wan's own repository (UniPC)     uniform, high=0.999: from 0.999 down to 0, then shifted
        flow DPM-Solver++ in diffusers   mirrored: the same levels, but rounded otherwise
        flow Euler in diffusers          linspace, low=0.001 already shifted once: ends at 0.0089 (shift 3, 50 steps)
        DDIM and DDPM in diffusers       leading, linspace or trailing; steps_offset k is low = (k + 1) / 1000
        UniPC, DPM-Solver++ on betas     the same with open_end (trailing has none)
        Heun on betas                    the same without snap
    """

    spacing: Spacing = "uniform"
    high: float = 1.0
    low: float | None = None
    open_end: bool = False
    snap: bool = True
    shift: float | None = None
    ceiling: float = 1.0
    last: float = 0.0

    def __post_init__(self):
        if self.spacing not in get_args(Spacing):
            raise ConfigError(f"grid spacing is {self.spacing!r}: use one of {', '.join(get_args(Spacing))}")
        if not 0.0 < self.high <= 1.0:
            raise ConfigError(f"grid high is {self.high}: it must be above 0 and at most 1")
        if self.low is not None and not 0.0 <= self.low < self.high:
            raise ConfigError(f"grid low is {self.low}: it must be at least 0 and below high, {self.high}")
        if self.open_end and self.spacing not in ("linspace", "leading"):
            raise ConfigError(f"grid open_end is True with spacing {self.spacing!r}: only linspace and leading have it")
        if self.shift is not None and not self.shift > 0:
            raise ConfigError(f"grid shift is {self.shift}: it must be above 0")
        if not 0.0 <= self.last < 1.0:
            raise ConfigError(f"grid last is {self.last}: it must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(GridOptions):
    """`steps` steps from level `start` down to `last`: steps + 1 levels.

    start: below 1 to begin from partly noised data. It names the level itself, after any shift.
    """

    steps: int
    start: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"grid steps is {self.steps}: sampling needs 1 or more")
        if not 0.0 < self.start <= 1.0:
            raise ConfigError(f"grid start is {self.start}: it must be above 0 and at most 1")
        if self.low is not None and not self.low < self.start:
            raise ConfigError(f"grid low is {self.low}: it must be below start, {self.start}")

    def levels(self, schedule: Schedule) -> np.ndarray:
        """float64 [steps + 1], strictly falling to `last`; where that is above 0 it may repeat the one before."""
        spaced = _SPACINGS[self.spacing](self, schedule)
        levels = np.append(np.minimum(spaced, min(self.ceiling, self.start)), self.last)
        return check_levels(levels, may_repeat=self.last > 0)

    def first(self, schedule: Schedule) -> float:
        """The unshifted level that the shift moves to `start`."""
        if self.start == 1.0:
            return self.high
        # Shifting by 1/s undoes shifting by s.
        probe = float(self.shifted(schedule, np.float64(0.5)))
        return float(shift_level(self.start, (1.0 - probe) / probe))

    def lowest(self, schedule: Schedule) -> float:
        """The smallest unshifted level that is spaced for, where that is not 0."""
        if self.low is not None:
            return self.low
        return 1.0 / (schedule.discrete_steps or 1000)

    def shifted(self, schedule: Schedule, levels: np.ndarray) -> np.ndarray:
        """levels [...] moved by the grid's shift, or the schedule's."""
        return schedule.shifted(levels) if self.shift is None else shift_level(levels, self.shift)


def _uniform(grid: Grid, schedule: Schedule) -> np.ndarray:
    end = 0.0 if grid.low is None else grid.low
    return grid.shifted(schedule, np.linspace(grid.first(schedule), end, grid.steps + 1)[:-1])


def _linspace(grid: Grid, schedule: Schedule) -> np.ndarray:
    count = grid.steps + grid.open_end
    high, low = grid.first(schedule), grid.lowest(schedule)
    n = schedule.discrete_steps
    if n is None:
        return grid.shifted(schedule, np.linspace(1000.0 * high, 1000.0 * low, count)[: grid.steps] / 1000.0)
    if count == 1:
        return _at_times(grid, schedule, np.array([n * high - 1.0]))
    # Upwards, so that the halves among them are exact, and are rounded as others round them.
    times = np.linspace(n * low - 1.0, n * high - 1.0, count)[::-1][: grid.steps]
    return _at_times(grid, schedule, times) if grid.snap else grid.shifted(schedule, (times + 1.0) / n)


def _trailing(grid: Grid, schedule: Schedule) -> np.ndarray:
    n = schedule.discrete_steps
    if n is None:
        return _uniform(grid, schedule)
    high, low = n * grid.first(schedule), n * (grid.low or 0.0)
    levels = np.arange(high, low, -(high - low) / grid.steps)[: grid.steps]
    return _at_times(grid, schedule, np.round(levels) - 1.0)


def _leading(grid: Grid, schedule: Schedule) -> np.ndarray:
    n = schedule.discrete_steps or 1000
    count = grid.steps + grid.open_end
    stride = round(grid.first(schedule) * n) // count
    times = np.round(n * grid.lowest(schedule), 9) - 1.0 + np.arange(count)[::-1][: grid.steps] * stride
    if schedule.discrete_steps is None:
        return grid.shifted(schedule, (times + 1.0) / n)
    return _at_times(grid, schedule, times)


def _mirrored(grid: Grid, schedule: Schedule) -> np.ndarray:
    first = grid.first(schedule)
    data = np.linspace(1.0, grid.lowest(schedule) if first == 1.0 else 1.0 - first, grid.steps + 1)
    return grid.shifted(schedule, (1.0 - data)[:0:-1])


def _log_snr(grid: Grid, schedule: Schedule) -> np.ndarray:
    # log-SNR falls with the level but has no inverse in closed form for every schedule: look it up, on a
    # table that is fine near both ends, where log-SNR changes fastest.
    high = min(grid.start, grid.ceiling, float(grid.shifted(schedule, np.float64(grid.high))))
    low = float(grid.shifted(schedule, np.float64(grid.lowest(schedule))))
    table = 0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, 20001))
    table = low + (high - low) * table
    snr = schedule.log_snr(table)
    snr = np.maximum(snr, snr[np.isfinite(snr)].min() - 1.0)
    wanted = np.linspace(snr[-1], snr[0], grid.steps)
    return np.interp(wanted, snr[::-1], table[::-1])


def _at_times(grid: Grid, schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """The levels of a discrete schedule next to these of its times, which are not shifted yet."""
    n = schedule.discrete_steps
    if grid.steps > n:
        raise ConfigError(f"grid steps is {grid.steps} with {grid.spacing!r} spacing: the schedule has {n}")
    if grid.shift is not None:
        times = shift_level((times + 1.0) / n, grid.shift) * n - 1.0
    return (np.maximum(np.round(times), 0.0) + 1.0) / n


_SPACINGS = {
    "uniform": _uniform,
    "linspace": _linspace,
    "trailing": _trailing,
    "leading": _leading,
    "mirrored": _mirrored,
    "log_snr": _log_snr,
}


def check_levels(levels: np.ndarray, *, may_repeat: bool = False) -> np.ndarray:
    """levels [n + 1] as float64, or an error where no sampler could step along them.

    may_repeat: the last step may stay where it is.
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise ConfigError(f"a grid has shape {levels.shape}: it must be 1-D with 2 levels or more")
    fall = np.diff(levels)
    falls = (fall[:-1] < 0).all() and (fall[-1] < 0 or (may_repeat and fall[-1] == 0))
    if not (levels.max() <= 1.0 and levels.min() >= 0.0 and falls):
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
