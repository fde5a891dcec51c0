"""Notices when steps cease to come."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

_SLOW = 10  # times the usual step is a stall, where that is more than the limit


class HangDetector:
    """A thread that calls `stalled(seconds since the last step, the usual seconds)` when steps cease to come.

    limit: at least so many seconds must have passed, and ten times what a step usually takes. It is called once more
    whenever the time has doubled; `again(seconds)` when a step came after all. Nothing counts before the first step,
    which is compiled.
    """

    def __init__(self, limit: float, stalled: Callable[[float, float], None], again: Callable[[float], None]):
        self._limit, self._stalled, self._again = limit, stalled, again
        self._last: float | None = None
        self._usual: deque[float] = deque(maxlen=64)
        self._reported = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """A step has come."""
        now = time.monotonic()
        if self._last is not None:
            self._usual.append(now - self._last)
            if self._reported:
                self._again(now - self._last)
        self._last, self._reported = now, 0.0

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        while not self._closed.wait(min(self._limit / 4, 5.0)):
            last, usual = self._last, list(self._usual)
            if last is None or not usual:
                continue
            seconds, median = time.monotonic() - last, statistics.median(usual)
            if seconds > max(self._limit, _SLOW * median, 2 * self._reported):
                self._reported = seconds
                self._stalled(seconds, median)
