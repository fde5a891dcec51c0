"""What a person sees of long work: a bar on a terminal, plain lines in a log, and how long the rest takes.

The time left is measured from the first steps on. Seconds that jax spends on compiling are left out of it: they say
nothing about the steps to come, and a first step that compiles for half a minute would promise days.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

_LINE_EVERY = 5.0
_QUIET = 30.0  # seconds without a line after which one says that the work still goes on
_WORTH_TELLING = 1.0  # seconds of compiling
_FIRST_SHARE = 0.05  # a first step of at least this share of the work is itself a measure of the pace
_COMPILING = "/jax/core/compile/"


class Compiling:
    """Counts the seconds that jax spends on tracing and compiling (or on reading compiled programs from its cache).

    Counts from when it is made until `close`. `on_compiled`, if given, is called after each program with its seconds.
    """

    def __init__(self, on_compiled: Callable[[float], None] | None = None):
        self._on_compiled = on_compiled
        self._spans: list[tuple[float, float]] = []  # disjoint, in order: traces lie inside each other
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._event)

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._event)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        with self._lock:
            return sum(end - start for start, end in self._spans)

    def _event(self, event: str, seconds: float, **about: object) -> None:
        if not event.startswith(_COMPILING):
            return
        end = time.monotonic()
        start = end - seconds
        with self._lock:
            while self._spans and self._spans[-1][0] >= start:
                self._spans.pop()
            self._spans.append((max(start, self._spans[-1][1] if self._spans else start), end))
        if self._on_compiled is not None and event.endswith("backend_compile_duration"):
            self._on_compiled(seconds)


class Pace:
    """How long the rest of some work takes, at the pace of what was done after the first step.

    total, start: steps in all, and those that were done before. expected: seconds for all of it, as far as they are
    known before; None: nothing is said until the pace is measured. compiling: what is left out.
    """

    def __init__(self, total: int, start: int = 0, *, compiling: Compiling, expected: float | None = None):
        self.total, self.start, self.done, self._expected = total, start, start, expected
        self._compiling, self._began = compiling, time.monotonic()
        self._compiled_before = compiling.seconds
        self._first: tuple[int, float] | None = None
        self._latest = 0.0

    def elapsed(self) -> float:
        """Seconds since the work began, compilation apart."""
        return time.monotonic() - self._began - (self._compiling.seconds - self._compiled_before)

    def update(self, done: int) -> None:
        """After `done` of the `total` steps."""
        self.done, self._latest = done, self.elapsed()
        if self._first is None:
            self._first = (done, self._latest)

    def left(self) -> float | None:
        """Seconds to the end; None as long as nothing is known."""
        if self.done >= self.total:
            return 0.0
        rest, since = self.total - self.done, self.elapsed() - self._latest
        if self._first is not None and self.done > self._first[0]:
            return max((self._latest - self._first[1]) / (self.done - self._first[0]) * rest - since, 0.0)
        if self._first is not None and self.done - self.start >= _FIRST_SHARE * (self.total - self.start):
            return max(self._first[1] / (self.done - self.start) * rest - since, 0.0)
        return None if self._expected is None else max(self._expected - self.elapsed(), 0.0)


class Display(Protocol):
    """Shows how far a run has come."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """After `step` steps; `values` are the figures to show."""

    def close(self) -> None:
        """Ends the display."""


def make_display(
    name: str,
    steps: int,
    start: int = 0,
    *,
    console: Console | None = None,
    expected: float | None = None,
    lines: bool = False,
    phase: str = "compiling ...",
) -> Display:
    """A bar if the console is a terminal, else plain lines (always, with `lines`).

    expected: seconds, see Pace. phase: what happens before the first step is done.
    """
    console = console or Console()
    kind = Bar if console.is_terminal and not lines else Lines
    return kind(name, steps, start, console=console, expected=expected, phase=phase)


def show_values(values: Mapping[str, float]) -> str:
    """The figures in one short line."""
    parts = [f"{key} {values[key]:.4g}" for key in ("loss", "grad_norm") if key in values]
    if "speed/tokens_per_second" in values:
        parts.append(f"{values['speed/tokens_per_second']:,.0f} tokens/s")
    elif "speed/steps_per_second" in values:
        parts.append(f"{values['speed/steps_per_second']:.3g} steps/s")
    if "speed/mfu" in values:
        parts.append(f"MFU {values['speed/mfu']:.0%}")
    parts += [f"{key.removeprefix('eval/')} {value:.4g}" for key, value in values.items() if _is_headline(key, values)]
    if values.get("skipped"):
        parts.append(f"skipped {values['skipped']:.0f}")
    return "  ".join(parts)


def _is_headline(key: str, values: Mapping[str, float]) -> bool:
    """Whether a figure stands for its evaluator in one line: the first one of it."""
    group = key.rpartition("/")[0]
    return key.startswith("eval/") and key == next(other for other in values if other.startswith(f"{group}/"))


class Bar:
    """A bar with the time left."""

    def __init__(self, name: str, steps: int, start: int, *, console: Console, expected: float | None, phase: str):
        self._compiling = Compiling(self._compiled)
        self._pace = Pace(steps, start, compiling=self._compiling, expected=expected)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Left(self._pace))
        self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self._task = self._bar.add_task(name, total=steps, completed=start, figures=phase)
        self._bar.start()

    def _compiled(self, seconds: float) -> None:
        if seconds >= _WORTH_TELLING and self._pace.done == self._pace.start:
            self._bar.update(self._task, figures=f"compiled in {clock_face(self._compiling.seconds)}")

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self._pace.update(step)
        figures = show_values(values)
        self._bar.update(self._task, completed=step, **({"figures": figures} if figures or step == 1 else {}))

    def close(self) -> None:
        self._compiling.close()
        self._bar.stop()


class _Left(ProgressColumn):
    """The time left, as Pace has it."""

    def __init__(self, pace: Pace):
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        left = self._pace.left()
        return Text("" if left is None else f"{clock_face(left)} left", style="progress.remaining")


class Lines:
    """A line every few seconds, at the first and last step, and now and then while a step takes long."""

    def __init__(self, name: str, steps: int, start: int, *, console: Console, expected: float | None, phase: str):
        self._name, self._out, self._values = name, console.file, {}
        self._compiling = Compiling(self._compiled)
        self._pace = Pace(steps, start, compiling=self._compiling, expected=expected)
        self._phase, self._last, self._closed = phase, -float("inf"), threading.Event()
        self._lock = threading.Lock()
        if start < steps:
            self._print(f"{name}: {phase}")
        threading.Thread(target=self._while_quiet, daemon=True).start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self._pace.update(step)
        self._values, self._phase = dict(values) or self._values, ""
        if time.monotonic() - self._last >= _LINE_EVERY or step == self._pace.total or step == self._pace.start + 1:
            self._tell(show_values(self._values))

    def close(self) -> None:
        self._closed.set()
        self._compiling.close()
        self._out.flush()

    def _compiled(self, seconds: float) -> None:
        if seconds < _WORTH_TELLING or self._phase == "":
            return
        self._phase = "working ..."
        left = self._pace.left()
        self._print(
            f"{self._name}: compiled in {clock_face(self._compiling.seconds)}"
            + ("" if left is None else f", about {clock_face(left)} left")
        )

    def _tell(self, words: str) -> None:
        left, pace = self._pace.left(), self._pace
        parts = (self._name, f"{pace.done}/{pace.total}", "" if left is None else f"{clock_face(left)} left", words)
        self._print("  ".join(filter(None, parts)))

    def _print(self, line: str) -> None:
        with self._lock:
            self._last = time.monotonic()
            print(line, file=self._out, flush=True)

    def _while_quiet(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # whoever read the output has gone: the work itself will tell
            while not self._closed.wait(_QUIET / 10):
                if time.monotonic() - self._last >= _QUIET:
                    self._tell(f"{self._phase or 'working ...'} ({clock_face(time.monotonic() - began)} so far)")


def clock_face(seconds: float) -> str:
    """130 -> "2:10"; 7330 -> "2:02:10"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
