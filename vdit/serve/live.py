"""How a model is served, and a job that has not ended as those who follow it see it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

from vdit.serve.schema import Limits, VideoRequest
from vdit.serve.store import Job


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served.

    Attributes:
        folder: of jobs, uploads and results.
        name: of the model, as clients see it.
        run: what stands for the model in the commands that clients are shown.
        limits: what clients may ask for.
        batch: jobs that are made by one call at most.
        pack: whether jobs of several sizes go into one call too, in packed rows of tokens. On a CPU that costs
            more than calls of their own (docs/serving.md).
        log_prompts: whether prompts are logged.
        examples: prompts that the page proposes.
    """

    folder: Path
    name: str
    run: str
    limits: Limits = Limits()
    batch: int = 8
    pack: bool = False
    log_prompts: bool = False
    examples: tuple[str, ...] = ()


class Cancelled(Exception):
    """A client does not want the job any more."""


class Stopping(Exception):
    """The server ends; the job goes on after its next start."""


class Live:
    """A job that has not ended, with what those who follow it are told.

    Attributes:
        job: what is kept of it. address: where it came from. cancelled: whether it is to be stopped.
        step, steps: calls of the network, of the canvas at hand. preview: a PNG of what is seen so far.
        version: grows with every change; preview_version: the version at which the preview was new.
    """

    def __init__(self, job: Job, address: str = ""):
        self.job, self.address, self.cancelled = job, address, False
        self.request = VideoRequest.model_validate(job.request)
        self.step, self.steps = 0, 0
        self.preview: bytes | None = None
        self.version = self.preview_version = 0
        self._listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()

    def changed(self) -> None:
        with self._lock:
            self.version += 1
            listeners = list(self._listeners.items())
        for event, loop in listeners:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(event.set)

    @contextlib.contextmanager
    def followed(self) -> Iterator[asyncio.Event]:
        """An asyncio.Event that is set at every change. For the thread of an event loop."""
        event = asyncio.Event()
        with self._lock:
            self._listeners[event] = asyncio.get_running_loop()
        try:
            yield event
        finally:
            with self._lock:
                del self._listeners[event]
