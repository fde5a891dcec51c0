"""What all samplers share: the interface, the loop over steps, and coefficients.

The network is called once for each row of the table (`scan_steps`), so what it remembers from call to call is one more
part of the state, of which a sampler's step knows nothing.

A sampler first turns its grid of levels into a table of coefficients, a column for each, in numpy float64
while tracing (differences of logarithms would lose digits in float32). The loop over steps is one
`jax.lax.scan` over the table's rows: one compiled step, one state kept, whatever the number of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vdit.diffusion.config import Prediction
from vdit.diffusion.objectives import to_clean_and_noise
from vdit.diffusion.schedules import Schedule
from vdit.errors import ConfigError
from vdit.reprs import short_repr
from vdit.samplers.grid import Grid, resolve
from vdit.types import Array, PyTree

Denoise = Callable[[Array, Array], Array]
Project = Callable[[Array, Array], Array]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class StatefulDenoiser:
    """A denoiser that remembers something from call to call.

    ask(x, t, memory, done, left) -> (prediction, memory), as a Denoise; done, left: int32 [], how many calls there
        were before this one, and how many there will be after it.
    memory: a tree of arrays, as it is before the first call.
    """

    ask: Callable[[Array, Array, PyTree, Array, Array], tuple[Array, PyTree]]
    memory: PyTree


@dataclasses.dataclass(kw_only=True)
class Segment:
    """A denoiser with which a sampler makes some of its calls only: somebody may look on between two programs.

    A sampler takes it as it takes any denoiser, while it is traced. What it then returns belongs to the state after
    the segment's calls.

    denoiser: of the whole. state: that of the loop before the segment, None at the beginning. start: int32 [], calls
    before it. count: calls of it; 0 finds the state before the first.
    Set while tracing: state, after the segment; calls, of the whole; estimate, the data as the last call has it.
    """

    denoiser: Denoise | StatefulDenoiser
    state: PyTree = None
    start: Array | int = 0
    count: int = 1
    calls: int = 0
    estimate: Array | None = None

    def scan(self, call: Callable[[PyTree, PyTree], tuple[PyTree, Array]], first: PyTree, rows: PyTree) -> PyTree:
        """In the place of jax.lax.scan: the state after the segment's calls, and nothing for each."""
        self.state = first if self.state is None else self.state
        if self.count:
            rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, self.start, self.count), rows)
            self.state, estimates = jax.lax.scan(call, self.state, rows)
            self.estimate = estimates[-1]
        return self.state


class Sampler(Protocol):
    """A way down from noise to data. Frozen: its options are fields."""

    def sample(
        self,
        denoise: Denoise | StatefulDenoiser,
        x: Array,
        *,
        schedule: Schedule,
        prediction: Prediction,
        grid: Grid | np.ndarray | int,
        key: Array | None = None,
        project: Project | None = None,
    ) -> Array:
        """x [...] at the grid's first level -> x [...] at its last (0 unless given otherwise).

        denoise(x [... c], t []) -> prediction [... c]; [... 2c] where a variance is learned too, which
            only "ddpm" uses. t is the noise level; `schedule.time(t)` is the network's time.
        grid: static; see vdit.samplers.grid.
        key: for samplers that add noise.
        project(x, t) -> x: called after each step with the level just reached, to put known tokens back.
        """
        ...


class Estimate(NamedTuple):
    """What the network says at one step. x0, noise: [... c]; variance: [... c] raw, or None."""

    x0: Array
    noise: Array
    variance: Array | None

    def clipped(self, limit: float | None) -> Estimate:
        """The same with x0 in [-limit, limit], where there is a limit; the noise stays what the network says."""
        return self if limit is None else self._replace(x0=jnp.clip(self.x0, -limit, limit))


class Problem(NamedTuple):
    """The table's common columns, all float64 [n]: this step's level and the next's.

    t and t_next are what the network and `project` are told: next to the levels, where these are not safe
    to round to float32 (Schedule.rounding).
    """

    t: np.ndarray
    t_next: np.ndarray
    alpha: np.ndarray
    alpha_next: np.ndarray
    sigma: np.ndarray
    sigma_next: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        return self._asdict()

    def half_log_snr(self) -> tuple[np.ndarray, np.ndarray]:
        """log(alpha / sigma) at this level and the next; +inf at sigma 0.

        alpha is held above 1e-6, so that multistep methods can start from pure noise.
        """
        with np.errstate(divide="ignore"):
            here = np.log(np.maximum(self.alpha, 1e-6)) - np.log(self.sigma)
            there = np.log(np.maximum(self.alpha_next, 1e-6)) - np.log(self.sigma_next)
        return here, there


def discretize(schedule: Schedule, prediction: Prediction, grid: Grid | np.ndarray | int) -> Problem:
    """The levels of a run, checked against what the prediction can tell there."""
    levels = resolve(grid, schedule)
    alpha, sigma = schedule.alpha(levels), schedule.sigma(levels)
    if prediction == "noise" and alpha[0] == 0.0:
        raise ConfigError(
            "prediction is 'noise' and the grid starts at pure noise, where it says nothing of the data: "
            "start lower, for instance Grid(..., ceiling=0.999)"
        )
    told = schedule.rounding(levels)
    return Problem(told[:-1], told[1:], alpha[:-1], alpha[1:], sigma[:-1], sigma[1:])


def estimate(denoise: Denoise, x: Array, row: dict[str, Array], prediction: Prediction) -> Estimate:
    """Calls the network at this step's level: x [... c] -> Estimate."""
    return _estimate(denoise(x, row["t"]), x, row, prediction)


def _estimate(output: Array, x: Array, row: dict[str, Array], prediction: Prediction) -> Estimate:
    output, variance = output.astype(x.dtype), None
    if output.shape != x.shape:
        output, variance = jnp.split(output, 2, axis=-1)
    x0, noise = to_clean_and_noise(prediction, output, x, row["alpha"], row["sigma"])
    return Estimate(x0, noise, variance)


def check_clip(clip: float | None, name: str) -> None:
    if clip is not None and not clip > 0:
        raise ConfigError(f"{name} clip is {clip}: it must be above 0, or None for no limit")


def run_steps(
    step: Callable[[Any, dict[str, Array], Array | None], Any],
    carry: Any,
    columns: dict[str, np.ndarray],
    *,
    dtype: jnp.dtype,
    key: Array | None = None,
) -> Any:
    """Scans step(carry, row, key) -> carry over the table's rows, each with a key of its own."""
    rows = {name: jnp.asarray(column, dtype) for name, column in columns.items()}
    keys = None if key is None else jax.random.split(key, len(columns["t"]))

    def body(carry, xs):
        row, step_key = xs
        return step(carry, row, step_key), None

    return jax.lax.scan(body, carry, (rows, keys))[0]


def scan_steps(
    step: Callable[[Any, Estimate, dict[str, Array], Array | None], Any],
    carry: Any,
    columns: dict[str, np.ndarray],
    *,
    denoise: Denoise | StatefulDenoiser | Segment,
    prediction: Prediction,
    dtype: jnp.dtype,
    at: Callable[[Any], Array] = lambda carry: carry,
    key: Array | None = None,
) -> Any:
    """The sampling loop: one compiled step, which asks the network once, scanned over the table's rows.

    Args:
        step: (carry, estimate, row, key) -> carry. estimate: what the network says of x = at(carry) at this row's
            level.
        carry: the state before the first step, any tree of arrays.
        columns: the table, float64 [n] each; "t", "alpha" and "sigma" are those of the call.
        denoise: the network; a StatefulDenoiser keeps its memory in the scan's state.
        prediction: what the network predicts.
        dtype: of the rows that `step` gets.
        at: carry -> x.
        key: split into one key for each step; None gives the steps None.

    Returns:
        The state after the last step.
    """
    segment = denoise if isinstance(denoise, Segment) else None
    denoise = denoise if segment is None else segment.denoiser
    stateful, calls = isinstance(denoise, StatefulDenoiser), len(columns["t"])
    rows = {name: jnp.asarray(column, dtype) for name, column in columns.items()}
    keys = None if key is None else jax.random.split(key, calls)

    def call(state, xs):
        (carry, memory, done), (row, step_key) = state, xs
        x = at(carry)
        if stateful:
            output, memory = denoise.ask(x, row["t"], memory, done, calls - 1 - done)
        else:
            output = denoise(x, row["t"])
        says = _estimate(output, x, row, prediction)
        return (step(carry, says, row, step_key), memory, done + 1), None if segment is None else says.x0

    first = carry, denoise.memory if stateful else None, jnp.int32(0)
    if segment is not None:
        segment.calls = calls
        return segment.scan(call, first, (rows, keys))[0]
    return jax.lax.scan(call, first, (rows, keys))[0][0]


def working(x: Array) -> Array:
    """x in float32 at least: a state in bfloat16 would lose the small steps."""
    return jnp.asarray(x).astype(jnp.promote_types(jnp.asarray(x).dtype, jnp.float32))


def projected(project: Project | None, x: Array, t: Array) -> Array:
    """x with its known parts put back, if there are any."""
    return x if project is None else project(x, t).astype(x.dtype)


def need_key(key: Array | None, name: str) -> Array:
    if key is None:
        raise ConfigError(f"sampler {name!r} adds noise at each step: give it key=jax.random.key(seed)")
    return key


class Posterior(NamedTuple):
    """q(x_next | x, x0), Gaussian, for each step, float64 [n]; holds for any schedule, not only VP ones.

    Its mean is from_x0 * x0 + from_x * x, its variance `variance`: the least a step can have. `largest` is
    the variance of x_next given x where the data are a unit Gaussian: beta, in a DDPM.
    """

    from_x0: np.ndarray
    from_x: np.ndarray
    variance: np.ndarray
    largest: np.ndarray


def posterior(problem: Problem) -> Posterior:
    """The posterior of each step of a run."""
    ratio = problem.alpha / problem.alpha_next
    forward = problem.sigma**2 - (ratio * problem.sigma_next) ** 2
    share = forward / problem.sigma**2
    power = problem.alpha**2 + problem.sigma**2
    power_next = problem.alpha_next**2 + problem.sigma_next**2
    return Posterior(
        from_x0=problem.alpha_next * share,
        from_x=ratio * (problem.sigma_next / problem.sigma) ** 2,
        variance=share * problem.sigma_next**2,
        largest=forward * power_next / power,
    )


def straight_frame(problem: Problem) -> dict[str, np.ndarray]:
    """Columns of a step along the slope noise - x0: x_next = keep * x + move * slope, float64 [n].

    With y = x / (alpha + sigma) and s = sigma / (alpha + sigma), every schedule becomes a straight path
    y = (1 - s) x0 + s noise, whose slope is finite at both ends. For a flow y is x itself.
    """
    total, total_next = problem.alpha + problem.sigma, problem.alpha_next + problem.sigma_next
    return {
        "keep": total_next / total,
        "move": total_next * (problem.sigma_next / total_next - problem.sigma / total),
    }
