"""Short work for the devices that does not wait for jobs: steps of worlds that are played, expansions, warm-ups.

The thread that makes the jobs serves it whenever it looks up. While that thread compiles it cannot look up: on a
machine of one device a second thread then does it. (Programs of several devices that two threads start could wait for
each other.)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 0.25  # seconds without a look up after which the second thread does what is urgent
COURTESY = 2.0  # seconds that a job waits, between two steps, for what that thread does; opening a world takes longer


class Urgent:
    """What is urgent, in the order in which it came: see the module.

    Args:
        helped: whether there is a second thread.
    """

    def __init__(self, *, helped: bool):
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._looked, self._called, self._helping = time.monotonic(), threading.Event(), threading.Lock()
        self._ending = False
        self._helper = threading.Thread(target=self._help, name="vdit-urgent", daemon=True) if helped else None
        if self._helper is not None:
            self._helper.start()

    def put(self, work: Callable[[], T]) -> Future[T]:
        """Hands in work; the future has what it returns or raises."""
        future: Future = Future()
        self._queue.put((work, future))
        self._called.set()
        return future

    def serve(self) -> None:
        """By the jobs' thread: what is there now, and not what comes meanwhile, so that jobs and worlds take turns."""
        self._looked = time.monotonic()
        # What the other thread has begun ends first. XLA's threads take the newest work, so a job that went on beside
        # it would hold it up for as long as the job lasts.
        if self._helping.acquire(timeout=COURTESY):
            self._helping.release()
        for _ in range(self._queue.qsize()):
            self._looked = time.monotonic()
            self._serve_one()
        self._looked = time.monotonic()

    def close(self, timeout: float) -> None:
        """Ends the second thread."""
        self._ending = True
        self._called.set()
        if self._helper is not None:
            self._helper.join(timeout)

    def _serve_one(self) -> None:
        try:
            work, future = self._queue.get_nowait()
        except queue.Empty:  # the other thread was first
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    def _help(self) -> None:
        while not self._ending:
            self._called.wait()
            self._called.clear()
            while self._queue.qsize() and not self._ending:
                left = self._looked + PATIENCE - time.monotonic()
                if left > 0:
                    time.sleep(left)
                else:
                    with self._helping:
                        self._serve_one()
