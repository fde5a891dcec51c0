"""How the jobs at hand get on: told after each step, and between the pieces of a long video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vdit.generate.generator import window_of
from vdit.sampling.stepwise import SampledStep
from vdit.serve.live import Live
from vdit.serve.planning import Plan

if TYPE_CHECKING:
    from vdit.serve.service import Service


class Watcher:
    """Called after each step of the jobs at hand (vdit.sampling.stepwise), and between the pieces of a video.

    A world model that keeps keys and values of its past makes its frames by calls that have no steps to watch.
    """

    def __init__(self, service: Service, lives: Sequence[Live], plan: Plan):
        self._service, self._lives, self._plan = service, lives, plan
        self._made = 0
        window = plan.made if plan.task == "text" else window_of(service.generator, plan.window)
        self._window = max(1, min(plan.made, window))

    def __call__(self, step: SampledStep) -> None:
        self._service.look_up(self._lives)
        here = min(self._window, max(0, self._plan.made - self._made)) * step.done / step.calls
        self._service.preview(self._lives, step)
        for live in self._lives:
            live.step, live.steps = step.done, step.calls
        self._tell(self._made + here)

    def between(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pieces [t h w 3] of the one job at hand, as they come."""
        written, [live] = self._plan.made - self._plan.frames, self._lives  # what was given is not made
        for piece in pieces:
            self._service.look_up(self._lives)
            yield piece
            written += len(piece)
            self._service.show_piece(live, piece)
            self._tell(written)

    def _tell(self, made: float) -> None:
        progress = min(99, int(100 * made / max(1, self._plan.made)))
        for live in self._lives:
            live.job.progress = max(live.job.progress, progress)
            live.changed()

    def drawn(self, frames: int) -> None:
        """After each canvas: so many frames that were not there before."""
        self._made += frames
