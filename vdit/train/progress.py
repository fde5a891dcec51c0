"""What a person sees of a run: a bar on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY = 5.0


class Display(Protocol):
    """Shows how far a run has come."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """After `step` steps; `values` are the figures to show."""

    def close(self) -> None:
        """Ends the display."""


def make_display(name: str, steps: int, start: int = 0, *, console: Console | None = None) -> Display:
    """A bar if the console is a terminal, else plain lines."""
    console = console or Console()
    kind = Bar if console.is_terminal else Lines
    return kind(name, steps, start, console=console)


def show_values(values: Mapping[str, float]) -> str:
    """The figures in one short line."""
    parts = [f"{key} {values[key]:.4g}" for key in ("loss", "grad_norm") if key in values]
    if "speed/tokens_per_second" in values:
        parts.append(f"{values['speed/tokens_per_second']:,.0f} tokens/s")
    elif "speed/steps_per_second" in values:
        parts.append(f"{values['speed/steps_per_second']:.3g} steps/s")
    if "speed/mfu" in values:
        parts.append(f"MFU {values['speed/mfu']:.0%}")
    if values.get("skipped"):
        parts.append(f"skipped {values['skipped']:.0f}")
    return "  ".join(parts)


class Bar:
    """A bar with the time left."""

    def __init__(self, name: str, steps: int, start: int, *, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self._task = self._bar.add_task(name, total=steps, completed=start, figures="")
        self._bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        figures = {"figures": show_values(values)} if values else {}
        self._bar.update(self._task, completed=step, **figures)

    def close(self) -> None:
        self._bar.stop()


class Lines:
    """A line every few seconds, and at the first and last step."""

    def __init__(self, name: str, steps: int, start: int, *, console: Console):
        self._name, self._steps, self._start = name, steps, start
        self._out = console.file if console is not None else sys.stdout
        self._began, self._last, self._values = time.monotonic(), -float("inf"), {}

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self._values = dict(values) or self._values
        now = time.monotonic()
        if now - self._last < _LINE_EVERY and step != self._steps:
            return
        self._last = now
        pace = (now - self._began) / max(step - self._start, 1)
        left = _clock(pace * (self._steps - step))
        line = f"{self._name}  {step}/{self._steps}  {left} left  {show_values(self._values)}"
        print(line.rstrip(), file=self._out, flush=True)

    def close(self) -> None:
        self._out.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
