"""A profiler trace of some steps: asked for on the command line, by a signal, or by a file in the run's folder."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from vdit.errors import ConfigError, reason
from vdit.types import PyTree

STEPS = 3  # that a trace asked for on the way takes
ASK = "profile"  # the file; it may hold the number of steps


def parse_steps(text: str) -> tuple[int, int]:
    """"20:25" -> (20, 25): the first and the last step of a trace."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile={text!r}: give the first and the last step, 20:25 for instance")
    return int(first), int(last)


class Profiler:
    """Traces steps into `folder`, to be opened in TensorBoard or Perfetto.

    folder: None for no traces. steps: the first and last step of one that is asked for from the start. ask: a file
    that asks for one when it appears; it is removed. SIGUSR1 asks, too, where the context is entered.
    """

    def __init__(self, folder: Path | None, *, steps: tuple[int, int] | None = None, ask: Path | None = None):
        self._folder, self._range, self._ask = folder, steps, ask
        self._wanted = 0  # steps that were asked for
        self._last: int | None = None  # of the trace under way
        self._before: object = None
        self.warn: Callable[[str], None] = lambda line: None

    def __enter__(self) -> Profiler:
        main = threading.current_thread() is threading.main_thread()
        if self._folder is not None and main and hasattr(signal, "SIGUSR1"):
            self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        if self._last is not None:
            self._stop()

    def look(self) -> None:
        """Looks for the file; called now and then."""
        if self._ask is None or self._last is not None or not self._ask.exists():
            return
        count = STEPS
        with contextlib.suppress(OSError, ValueError):
            count = max(int(self._ask.read_text().strip() or STEPS), 1)
        with contextlib.suppress(OSError):
            self._ask.unlink()
        self._wanted = count

    def before(self, step: int) -> None:
        """Called right before a step is dispatched."""
        if self._folder is None or self._last is not None:
            return
        if self._wanted:
            self._start(step + self._wanted - 1)
            self._wanted = 0
        elif self._range is not None and self._range[0] <= step <= self._range[1]:
            self._start(self._range[1])

    def after(self, step: int, outputs: PyTree) -> Path | None:
        """Called when a step has been dispatched; the trace's folder where it ends the trace, which waits for it."""
        if self._last is None or step < self._last:
            return None
        jax.block_until_ready(outputs)
        return self._folder if self._stop() else None

    def _start(self, last: int) -> None:
        with self._outlived():
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._last = last

    def _stop(self) -> bool:
        """Whether the trace is written."""
        self._last = None
        with self._outlived() as failures:
            jax.profiler.stop_trace()
        return not failures

    @contextlib.contextmanager
    def _outlived(self) -> Iterator[list[Exception]]:
        """A trace that fails (on a full disk, or where another one is under way) costs a warning, not the run."""
        failures: list[Exception] = []
        try:
            yield failures
        except (OSError, RuntimeError) as error:
            failures.append(error)
            self._range = None
            self.warn(f"{self._folder}: no profiler trace: {reason(error)}; training goes on")

    def _on_signal(self, number: int, frame: object) -> None:
        self._wanted = STEPS
