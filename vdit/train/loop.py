"""The loop. Its order, for step n = 1, 2, ...:

    1. dispatch step n on the batch that is already on the devices;
    2. fetch batch n+1 and put it on the devices, while they work;
    3. handle the metrics of step n-1, which are ready by now (so the devices never wait for the host);
    4. if n is a step to evaluate, save, sample or stop at: handle the metrics of n, evaluate, save, call the hooks.

A checkpoint of step n holds the data iterator's place after batch n, though batch n+1 was fetched
already; and the metrics of step n are on disk before the checkpoint is. So a resumed run goes on
with the same data, and its record has no hole.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from vdit.checkpoint import BestStep, Checkpointer, DataIterator
from vdit.checkpoint.files import steps_in
from vdit.checkpoint.integrity import is_finalized
from vdit.dist.mesh import host_share
from vdit.dist.multihost import is_primary_host
from vdit.dist.rules import num_batch_shards
from vdit.errors import ConfigError, DataError, NumericsError, TrainingError
from vdit.experiment.evaluator import Measure
from vdit.experiment.training import TrainConfig
from vdit.reprs import short_repr
from vdit.train.logging import Speed, Writer, write_all
from vdit.train.monitor import RunMonitor, origin_of_nan
from vdit.train.progress import Display, make_display
from vdit.train.state import StatePlan, TrainState
from vdit.train.step import TrainStep
from vdit.types import PyTree


class PrefetchToDevice:
    """Batches on the devices, one ahead, each with the state of the data iterator right after it.

    data: iterator of trees of arrays [b ...]. remaining: batches that will be asked for; none is
    fetched beyond, so that the iterator ends where the run does.
    """

    def __init__(self, data: Iterator[PyTree], train_step: TrainStep, *, remaining: int):
        self._data, self._remaining = data, remaining
        self._shardings = train_step.shardings
        self._pieces = train_step.plan.config.accumulation
        self._size = train_step.plan.config.batch_size
        self._num_shards = num_batch_shards(train_step.plan.mesh)
        self._share = host_share(train_step.plan.mesh)
        self._next: tuple[PyTree, Any] | None = None
        self._taken = 0

    def fill(self) -> None:
        """Fetches the next batch, if there is one to fetch and it was not fetched already."""
        if self._next is not None or self._remaining <= 0:
            return
        try:
            batch = next(self._data)
        except StopIteration:
            raise DataError(
                f"the data ended after {self._taken} batches, {self._remaining} more are needed: "
                "repeat the source or lower the steps"
            ) from None
        iterator_state = self._data.get_state() if hasattr(self._data, "get_state") else None
        self._remaining -= 1
        self._next = self._put(batch), iterator_state

    def take(self) -> tuple[PyTree, Any]:
        """(the next batch on the devices, the state of the data iterator after it)."""
        self.fill()
        taken, self._next = self._next, None
        self._taken += 1
        return taken

    def _put(self, batch: PyTree) -> PyTree:
        """The global batch, of which each device of this host gets its part: rows, and tokens of rows."""
        if self._size % (self._pieces * self._num_shards):
            raise ConfigError(
                f"batch_size={self._size} must be a multiple of accumulation * data * fsdp = "
                f"{self._pieces} * {self._num_shards}"
            )
        batch = jax.tree.map(self._fold, batch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(self._global(leaf.shape), leaf.dtype), batch)
        return jax.tree.map(self._make, batch, shapes, self._shardings(shapes))

    def _fold(self, leaf: np.ndarray) -> np.ndarray:
        """[b ...] as it is, or [a b/a ...] for `accumulation` a: row r is in piece r % a, on any number of hosts."""
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] * self._share.count != self._size:
            raise DataError(
                f"a batch has an array of shape {leaf.shape}: the first dimension must be "
                f"batch_size / hosts = {self._size // self._share.count}"
            )
        return leaf if self._pieces == 1 else leaf.reshape(-1, self._pieces, *leaf.shape[1:]).swapaxes(0, 1)

    def _global(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows = self._rows_at
        return (*shape[:rows], shape[rows] * self._share.count, *shape[rows + 1 :])

    @property
    def _rows_at(self) -> int:
        """Which dimension of a batch's arrays counts the rows."""
        return int(self._pieces > 1)

    def _make(self, leaf: np.ndarray, whole: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        at = self._rows_at

        def part(index: tuple[slice, ...]) -> np.ndarray:
            rows = self._share.local(index[at], whole.shape[at])
            return leaf[(*index[:at], rows, *index[at + 1 :])]

        return jax.make_array_from_callback(whole.shape, sharding, part)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every `every` steps, `measure(params)` -> figures, logged as "eval/NAME/FIGURE". All hosts call it.

    name: of the evaluator.
    params: the averaged ones, where there are any.
    """

    every: int
    name: str
    measure: Measure

    def __call__(self, state: TrainState) -> dict[str, float]:
        figures = self.measure(state.params if state.ema is None else state.ema)
        return {f"eval/{self.name}/{key}": float(value) for key, value in figures.items()}


class Hook(Protocol):
    """Called every so many steps, with the state of that step; it must not keep the state."""

    every: int

    def __call__(self, step: int, state: TrainState, writers: Sequence[Writer]) -> None:
        """step: steps done. The state's arrays are given away to the next step after the call."""


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleHook:
    """Gives sampled videos to the writers while training goes on.

    every: steps between calls. sample: (step, state) -> {name: videos [b t h w 3]}. fps: frame rate of the videos.
    All hosts call it; where there are several, each must be able to read all of the videos.
    """

    every: int
    sample: Any
    fps: float = 8.0

    def __call__(self, step: int, state: TrainState, writers: Sequence[Writer]) -> None:
        for name, videos in self.sample(step, state).items():
            videos = np.asarray(videos)
            if not np.isfinite(videos).all():
                raise NumericsError(f"{name} hold NaN or infinity, and are not shown")
            for writer in writers:
                writer.videos(step, name, videos, self.fps)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a run tells of itself.

    writers: get the metrics. console: where progress is shown; None is the terminal.
    flops_per_step: for the utilisation that is shown; None shows none. peak_flops: of the devices; None measures it.
    """

    writers: Sequence[Writer] = ()
    console: Console | None = None
    flops_per_step: float | None = None
    peak_flops: float | None = None


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """state: after the last step. metrics: of the last step. stopped: whether a signal ended it early."""

    state: TrainState
    metrics: dict[str, float]
    stopped: bool


def start(
    plan: StatePlan,
    key: jax.Array,
    checkpointer: Checkpointer | None = None,
    data: DataIterator | None = None,
    params: PyTree | None = None,
) -> TrainState:
    """The state to train from: the last checkpoint's, or a new one.

    Args:
        plan: of `plan_state`.
        key: the run's random key.
        checkpointer: where checkpoints are; None starts a new state.
        data: the data iterator, which is moved to the checkpoint's position.
        params: what a new state begins with, donated; None makes fresh parameters.

    Returns:
        The state, on the plan's mesh.
    """
    if checkpointer is None or checkpointer.latest_step() is None:
        return plan.create(key) if params is None else plan.with_params(params, key)
    return TrainState.from_trees(checkpointer.restore(plan.abstract.trees(), data=data))


def train(
    state: TrainState,
    train_step: TrainStep,
    data: Iterator[PyTree],
    *,
    name: str = "train",
    checkpointer: Checkpointer | None = None,
    hooks: Sequence[Hook | Evaluation] = (),
    report: Report | None = None,
    monitor: RunMonitor | None = None,
) -> TrainResult:
    """Trains from `state` to `config.steps`. Saves, logs, evaluates and samples on the way, and saves at the end.

    SIGTERM and Ctrl-C, on any host, end the run on all hosts after the same step, with a checkpoint; before the first
    step is done, at once.

    Args:
        state: where to begin; donated.
        train_step: of `make_train_step`.
        data: endless iterator of trees of numpy arrays [b ...], b being the host's part of batch_size; with `get_state`
            and `set_state` where a checkpointer is given.
        name: of the stage, for the display.
        checkpointer: where checkpoints go; None keeps none.
        hooks: are called every so many steps; evaluations before the checkpoint of their step, others after it.
        report: where metrics and progress go; None shows progress on the terminal.
        monitor: watches this process, entered already; None makes one for this call.

    Returns:
        The last state, its metrics, and whether a signal ended the run early.

    Raises:
        ConfigError: `best_metric` is measured by no evaluation among the hooks.
        TrainingError: more than `max_nonfinite` steps in a row were skipped, or the last one was (after its save).
    """
    config = train_step.plan.config
    _check_best(config.best_metric, [hook.name for hook in hooks if isinstance(hook, Evaluation)])
    step = int(state.step)
    with contextlib.ExitStack() as inside:
        monitor = inside.enter_context(RunMonitor()) if monitor is None else monitor
        log = inside.enter_context(_log(name, step, config, report or Report(), monitor))
        inside.enter_context(
            monitor.steps(
                name, step, train_step.plan.mesh, stall=config.stall_seconds, saved=_last_saved(checkpointer)
            )
        )
        stop, clock = monitor.stop, monitor.clock
        best = None
        if checkpointer is not None and config.best_metric is not None:
            best = BestStep(checkpointer, config.best_metric, lowest=config.best_is == "lowest", warn=monitor.warn)
        batches = PrefetchToDevice(data, train_step, remaining=config.steps - step)
        batches.fill()
        with contextlib.ExitStack() as calm:
            first = True
            while step < config.steps:
                batch, iterator_state = batches.take()
                clock.book("input")
                monitor.profiler.before(step + 1)
                state, metrics = train_step.at(step)(state, batch)
                step += 1
                monitor.status.step = step
                if first:  # from here on there is something to save
                    calm.enter_context(stop.deferred())
                clock.book("other" if first else "compute")
                first = False
                monitor.at("waiting for data")
                batches.fill()
                # the devices stood idle if they were done before the batch came
                clock.book("input" if metrics["loss"].is_ready() else "compute")
                monitor.at("training")
                with _explained(state, batch, train_step, log):
                    log.push(step, metrics)
                monitor.traced(step, metrics)
                stopping = stop.reached()
                last = stopping or step == config.steps
                due = [hook for hook in hooks if hook.every and step % hook.every == 0 and not stopping]
                measuring = [hook for hook in due if isinstance(hook, Evaluation)]
                saving = checkpointer is not None and (last or step % config.save_every == 0)
                if saving or due or last:
                    with _explained(state, batch, train_step, log):
                        log.drain()
                if measuring:
                    monitor.at("evaluating")
                    figures = {name: value for one in measuring for name, value in one(state).items()}
                    log.evaluated(step, figures)
                    saving |= best is not None and best.take(step, figures)
                    clock.book("evaluate")
                if saving:
                    monitor.at("saving")
                    checkpointer.save(step, state.trees(), iterator_state=iterator_state)
                    clock.book("checkpoint")
                for hook in due:
                    if isinstance(hook, Evaluation):
                        continue
                    monitor.at("sampling")
                    try:
                        hook(step, state, log.writers)
                    except NumericsError as error:
                        monitor.warn(f"step {step}: {error}; training goes on")
                    clock.book("sample")
                if saving or due:
                    log.speed.restart()
                    monitor.at("training")
                if stopping:
                    monitor.note(f"stopping at step {step}: {stop.asked or 'another host was asked to'}")
                    break
            if checkpointer is not None:
                monitor.at("saving")
                checkpointer.wait()
                clock.book("checkpoint")
        row = int(log.latest.get("skipped_in_a_row", 0))
        if row and step == config.steps:
            with _explained(state, batch, train_step, log):
                raise _NotFinite(f"the last {row} of {step} steps were skipped")
        return TrainResult(state=state, metrics=log.latest, stopped=int(state.step) < config.steps)


@contextlib.contextmanager
def _log(name: str, step: int, config: TrainConfig, report: Report, monitor: RunMonitor) -> Iterator[_Log]:
    """The record of a stage from `step` on; closes its display, and sees what is written safe, at the end."""
    with contextlib.ExitStack() as inside:
        display = make_display(name, config.steps, step, console=report.console) if is_primary_host() else None
        if display is not None:
            inside.callback(display.close)
        log = _Log(config, report, display, monitor)
        for writer in log.writers:
            inside.callback(writer.flush)
        yield log


def _check_best(metric: str | None, evaluators: Sequence[str]) -> None:
    """ConfigError unless one of these evaluators can measure the metric; which of its figures it is shows later."""
    if metric is not None and not any(metric.startswith(f"eval/{name}/") for name in evaluators):
        known = ", ".join(f"eval/{name}/..." for name in evaluators) or "no evaluator is set"
        raise ConfigError(f"best_metric={metric!r}: is not measured in this stage ({known})")


def _last_saved(checkpointer: Checkpointer | None) -> Callable[[], int | None]:
    """Looks up the newest complete step on disk, without waiting for the one under way."""

    def look() -> int | None:
        folder = checkpointer.directory
        return max((step for step in steps_in(folder) if is_finalized(folder / str(step))), default=None)

    return look if checkpointer is not None else lambda: None


class _NotFinite(Exception):
    """Steps were skipped, too many or the last ones, because their loss or gradient was not finite."""


@contextlib.contextmanager
def _explained(state: TrainState, batch: PyTree, train_step: TrainStep, log: _Log) -> Iterator[None]:
    """Adds to _NotFinite where the NaN comes from."""
    try:
        yield
    except _NotFinite as error:
        origin = origin_of_nan(state, batch, train_step.frozen, log.latest)
        raise TrainingError(f"{error}, as their loss or gradient was not finite; {origin}") from None


class _Log:
    """Holds the metrics of one step back until the next step has been dispatched."""

    def __init__(self, config: TrainConfig, report: Report, display: Display | None, monitor: RunMonitor):
        self.writers = tuple(report.writers) if is_primary_host() else ()
        self.speed = Speed(flops_per_step=report.flops_per_step, peak_flops=report.peak_flops)
        self._config, self._display = config, display
        self._monitor, self._since = monitor, 0
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._first = True
        self.latest: dict[str, float] = {}
        self._figures: dict[str, float] = {}  # the latest of evaluators

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the step just dispatched, and handles those of the step before it."""
        before, self._pending = self._pending, (step, metrics)
        if before is not None:
            self._handle(*before)

    def drain(self) -> None:
        """Handles what is held back, and sees it safely written."""
        if self._pending is not None:
            before, self._pending = self._pending, None
            self._handle(*before)
        for writer in self.writers:
            writer.flush()

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Takes the figures of evaluators: written, and shown from now on."""
        write_all(self.writers, step, figures)
        for writer in self.writers:
            writer.flush()
        self._figures |= figures
        if self._display is not None:
            self._display.update(step, self.latest | self._figures)

    def _handle(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        self._monitor.clock.book("compute")
        self._monitor.moved()
        self._since += 1
        self.latest = values
        self._check(step, values)
        self.speed.add(values.get("tokens"))
        shown: dict[str, float] = {}
        if step % self._config.log_every == 0 or step == self._config.steps:
            shown = values | ({} if self._first else self.speed.report() | self._monitor.figures(self._since))
            self._since = 0
            write_all(self.writers, step, shown)
        if self._first:  # the first step compiles: not a measure of speed
            self._first = False
            self.speed.restart()
            self._monitor.figures(1)
        if self._display is not None:
            self._display.update(step, shown | self._figures if shown else shown)
        self._monitor.clock.book("other")

    def _check(self, step: int, values: dict[str, float]) -> None:
        row, limit = int(values["skipped_in_a_row"]), self._config.max_nonfinite
        if row:
            figures = f"loss {values['loss']}, norm of the gradient {values['grad_norm']}"
            self._monitor.note(f"step {step}: skipped, {figures}")
        if row > limit:
            raise _NotFinite(f"step {step}: {row} steps in a row were skipped, more than max_nonfinite={limit}")
