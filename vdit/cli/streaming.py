"""Videos written while they are generated. Ctrl-C ends them early and keeps the frames written so far."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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
    display: Work | None = None, interrupts: Interrupts | None = None, sound: Soundtrack | None = None,
) -> bool:  # fmt: skip
    """Writes pieces [t h w 3] to a video file as they come, makes its folder, and prints its path. Whether all came.

    display: shows how many frames there are. After Ctrl-C the piece that is being made is waited for, and the file
    holds what was made; a second Ctrl-C leaves no file (`interrupts`: for pieces that ask about it themselves). On
    several hosts the first alone writes, and all of them make. sound: what goes along with the frames.
    """
    from vdit.dist.multihost import is_primary_host
    from vdit.video.read import write_video

    with Interrupts() if interrupts is None else interrupts as interrupts:
        pieces = Pieces(pieces, display, interrupts)
        if is_primary_host():
            along = {} if sound is None else {"sound": lambda: sound.parts(pieces.done, fps)}
            status.wrote(output.put(target, lambda part: write_video(part, pieces, fps=fps, **along)))
        else:
            for _ in pieces:
                pass
    return not interrupts.asked


class Pieces:
    """Pieces, until an interrupt is asked for. done: frames so far."""

    def __init__(self, pieces: Iterable, display: Work | None = None, interrupts: Interrupts | None = None):
        self._pieces, self._display, self._interrupts, self.done = pieces, display, interrupts, 0

    def __iter__(self) -> Iterator:
        for piece in self._pieces:
            yield piece
            self.done += len(piece)
            if self._display is not None:
                self._display.update(self.done, {})
            if self._interrupts is not None and self._interrupts.asked:
                return


class Counted:
    """A video that is given (vdit.generate.sliding.Frames). read: frames of it that were read the last time."""

    def __init__(self, video):
        self._video, self.read = video, 0

    def __getattr__(self, name: str):
        return getattr(self._video, name)

    def __iter__(self) -> Iterator:
        self.read = 0
        for piece in self._video:
            self.read += piece.shape[1]
            yield piece


@dataclasses.dataclass(frozen=True)
class Soundtrack:
    """What is heard along with a video, in the order of its frames.

    Each entry is a function that gives (file or None for silence, its first frame, how many frames), asked once all
    frames are made: None frames are as many as there are left.
    """

    entries: tuple[Callable[[], tuple[Path | None, int, int | None]], ...]

    @classmethod
    def of(cls, *entries) -> Soundtrack:
        return cls(entries=entries)

    def parts(self, frames: int, fps: float) -> list:
        """vdit.video.sound.SoundPart of each entry, of a video of so many frames."""
        from vdit.video.sound import SoundPart

        parts = []
        for entry in self.entries:
            path, first, count = entry()
            count = frames if count is None else min(count, frames)
            frames -= count
            parts.append(SoundPart(path=path, start=first / fps, seconds=count / fps))
        return parts
