"""The loop. Its order, for step n = 1, 2, ...:

    1. dispatch step n on the batch that is already on the devices;
    2. fetch batch n+1 and put it on the devices, while they work;
    3. handle the metrics of step n-1, which are ready by now (so the devices never wait for the host);
    4. if n is a step to save, sample or stop at: handle the metrics of n, save, call the hooks.

A checkpoint of step n holds the data iterator's place after batch n, though batch n+1 was fetched
already; and the metrics of step n are on disk before the checkpoint is. So a resumed run goes on
with the same data, and its record has no hole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from vdit.checkpoint import Checkpointer, DataIterator
from vdit.dist.multihost import any_host, is_first
from vdit.dist.rules import batch_ways
from vdit.dist.share import host_share
from vdit.errors import ConfigError, DataError, TrainingError
from vdit.train.config import TrainConfig
from vdit.train.metrics import Speed, Writer, write_all
from vdit.train.progress import Display, make_display
from vdit.train.state import StatePlan, TrainState
from vdit.train.step import TrainStep
from vdit.types import PyTree


class Hook(Protocol):
    """Called every so many steps, with the state of that step; it must not keep the state."""

    every: int

    def __call__(self, step: int, state: TrainState, writers: Sequence[Writer]) -> None:
        """step: steps done. The state's arrays are given away to the next step after the call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleHook:
    """Every `every` steps, `draw(step, state)` -> {name: videos [b t h w 3]}, given to the writers."""

    every: int
    draw: Any
    fps: float = 8.0

    def __call__(self, step: int, state: TrainState, writers: Sequence[Writer]) -> None:
        for name, videos in self.draw(step, state).items():
            for writer in writers:
                writer.videos(step, name, np.asarray(videos), self.fps)


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
    """The state to train from: the last checkpoint's, with `data` moved to its place, or a new one.

    params: what a new one begins with, donated; None makes fresh parameters.
    """
    if checkpointer is None or checkpointer.latest_step() is None:
        return plan.create(key) if params is None else plan.adopt(params, key)
    return TrainState.from_trees(checkpointer.restore(plan.abstract.trees(), data=data))


def train(
    state: TrainState,
    train_step: TrainStep,
    data: Iterator[PyTree],
    *,
    name: str = "train",
    checkpointer: Checkpointer | None = None,
    writers: Sequence[Writer] = (),
    hooks: Sequence[Hook] = (),
    flops_per_step: float | None = None,
    peak_flops: float | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Trains from `state` to `config.steps`; saves, logs and samples on the way, and saves at the end.

    state: donated. data: endless iterator of trees of numpy arrays [b ...], b the host's share of
    batch_size; with `get_state`/`set_state` where a checkpointer is given. hooks, writers: see there.
    SIGTERM and Ctrl-C end the run after the step under way, with a checkpoint.
    """
    config = train_step.plan.config
    step = int(state.step)
    feed = Feed(data, train_step, remaining=config.steps - step)
    speed = Speed(flops_per_step=flops_per_step, peak_flops=peak_flops)
    writers = tuple(writers) if is_first() else ()
    display = make_display(name, config.steps, step, console=console) if is_first() else None
    log = _Log(config=config, writers=writers, speed=speed, display=display)
    try:
        with _stop_signal() as stop:
            while step < config.steps:
                batch, place = feed.take()
                state, metrics = train_step(state, batch)
                step += 1
                feed.fill()
                log.push(step, metrics)
                stopping = _should_stop(stop, step, config)
                last = stopping or step == config.steps
                due = [hook for hook in hooks if hook.every and step % hook.every == 0]
                saving = checkpointer is not None and (last or step % config.save_every == 0)
                if saving or due or last:
                    log.drain()
                if saving:
                    checkpointer.save(step, state.trees(), place=place)
                for hook in due:
                    hook(step, state, writers)
                if saving or due:
                    speed.restart()
                if stopping:
                    break
        if checkpointer is not None:
            checkpointer.wait()
        return TrainResult(state=state, metrics=log.latest, stopped=step < config.steps)
    finally:
        if display is not None:
            display.close()
        for writer in writers:
            writer.flush()


class Feed:
    """Batches on the devices, one ahead, each with the place of the data right after it.

    data: iterator of trees of arrays [b ...]. remaining: batches that will be asked for; none is
    fetched beyond, so that the iterator ends where the run does.
    """

    def __init__(self, data: Iterator[PyTree], train_step: TrainStep, *, remaining: int):
        self._data, self._remaining = data, remaining
        self._place = train_step.place
        self._pieces = train_step.plan.config.accumulation
        self._size = train_step.plan.config.batch_size
        self._ways = batch_ways(train_step.plan.mesh)
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
        place = self._data.get_state() if hasattr(self._data, "get_state") else None
        self._remaining -= 1
        self._next = self._put(batch), place

    def take(self) -> tuple[PyTree, Any]:
        """(the next batch on the devices, the place of the data after it)."""
        self.fill()
        taken, self._next = self._next, None
        self._taken += 1
        return taken

    def _put(self, batch: PyTree) -> PyTree:
        """The global batch, of which each device of this host gets its part: rows, and tokens of rows."""
        if self._size % (self._pieces * self._ways):
            raise ConfigError(
                f"batch_size={self._size} must be a multiple of accumulation * data * fsdp = "
                f"{self._pieces} * {self._ways}"
            )
        batch = jax.tree.map(self._fold, batch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(self._global(leaf.shape), leaf.dtype), batch)
        return jax.tree.map(self._make, batch, shapes, self._place(shapes))

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

    def _make(self, leaf: np.ndarray, whole: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.Array:
        at = self._rows_at

        def part(index: tuple[slice, ...]) -> np.ndarray:
            rows = self._share.local(index[at], whole.shape[at])
            return leaf[(*index[:at], rows, *index[at + 1 :])]

        return jax.make_array_from_callback(whole.shape, place, part)


class _Log:
    """Holds the metrics of one step back until the next step has been dispatched."""

    def __init__(
        self, *, config: TrainConfig, writers: Sequence[Writer], speed: Speed, display: Display | None
    ):
        self._config, self._writers, self._speed, self._display = config, writers, speed, display
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._first = True
        self.latest: dict[str, float] = {}

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
        for writer in self._writers:
            writer.flush()

    def _handle(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        self.latest = values
        self._check(step, values)
        self._speed.add(values.get("tokens"))
        shown: dict[str, float] = {}
        if step % self._config.log_every == 0 or step == self._config.steps:
            shown = values | ({} if self._first else self._speed.report())
            write_all(self._writers, step, shown)
        if self._first:  # the first step compiles: not a measure of speed
            self._first = False
            self._speed.restart()
        if self._display is not None:
            self._display.update(step, shown)

    def _check(self, step: int, values: dict[str, float]) -> None:
        row, limit = int(values["skipped_in_a_row"]), self._config.max_nonfinite
        if row > limit:
            raise TrainingError(
                f"step {step}: {row} steps in a row had a loss or gradient that is not finite, the limit is "
                f"max_nonfinite={limit}: lower the learning rate, lengthen the warm-up, or check the data"
            )


def _should_stop(stop: threading.Event, step: int, config: TrainConfig) -> bool:
    """Whether to end after this step. Several hosts must agree, which costs a wait: they ask as they log."""
    if jax.process_count() == 1:
        return stop.is_set()
    return step % config.log_every == 0 and any_host(stop.is_set())


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first Ctrl-C set; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return

    def ask(number, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
