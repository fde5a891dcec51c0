"""Where the time of a loop goes."""

from __future__ import annotations

import time

KINDS = ("input", "compute", "checkpoint", "evaluate", "sample", "other")


class StepTimer:
    """Books all wall time to one of `KINDS`, so that its shares add up to one.

    input: the devices stood idle for want of a batch. compute: they worked, a batch being read meanwhile or not.
    checkpoint: the loop waited for a save. evaluate: evaluators. sample: hooks. other: the rest,
    metrics written and steps compiled.
    """

    def __init__(self):
        self._mark = time.perf_counter()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._whole = dict.fromkeys(KINDS, 0.0)

    def book(self, kind: str) -> None:
        """The time since the last call was this."""
        now = time.perf_counter()
        self._seconds[kind] += now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        """Seconds of each kind since the last call; what is not booked yet is `other`."""
        self.book("other")
        taken, self._seconds = self._seconds, dict.fromkeys(KINDS, 0.0)
        for kind, seconds in taken.items():
            self._whole[kind] += seconds
        return taken

    def whole(self) -> dict[str, float]:
        """Seconds of each kind since the beginning."""
        return {kind: self._whole[kind] + self._seconds[kind] for kind in KINDS}
