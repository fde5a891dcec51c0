"""Videos written while they are generated. Ctrl-C ends them early and keeps the frames written so far."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vdit.cli import output

if TYPE_CHECKING:
    from vdit.cli.status import Status, Work


class Interrupts:
    """While entered, the first Ctrl-C sets `asked`, the second raises KeyboardInterrupt as usual.

    `at_once`: while entered, the first raises too, where nothing is lost by it. On several hosts, of which only one
    may have heard it, Ctrl-C is left as it is.
    """

    def __init__(self):
        self.asked = self._raising = False
        self._before = None

    def __enter__(self) -> Interrupts:
        import jax

        alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        self._before = signal.signal(signal.SIGINT, self._handle) if alone else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self._raising = True
        try:
            yield
        finally:
            self._raising = False

    def _handle(self, number: int, frame: object) -> None:
        if self.asked or self._raising:
            raise KeyboardInterrupt
        self.asked = True
        print("vdit: stops once the frames in work are made; Ctrl-C again leaves no file", file=sys.stderr, flush=True)


def write(
    target: output.Target, pieces: Iterable, fps: float, status: Status, *,
    display: Work | None = None, interrupts: Interrupts | None = None,
) -> bool:  # fmt: skip
    """Writes pieces [t h w 3] to a video file as they come, makes its folder, and prints its path. Whether all came.

    display: shows how many frames there are. After Ctrl-C the piece that is being made is waited for, and the file
    holds what was made; a second Ctrl-C leaves no file (`interrupts`: for pieces that ask about it themselves). On
    several hosts the first alone writes, and all of them make.
    """
    from vdit.dist.multihost import is_primary_host
    from vdit.video.read import write_video

    with Interrupts() if interrupts is None else interrupts as interrupts:
        pieces = _shown(pieces, display, interrupts)
        if is_primary_host():
            status.wrote(output.put(target, lambda part: write_video(part, pieces, fps=fps)))
        else:
            for _ in pieces:
                pass
    return not interrupts.asked


def _shown(pieces: Iterable, display: Work | None, interrupts: Interrupts) -> Iterator:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if display is not None:
            display.update(done, {})
        if interrupts.asked:
            return
