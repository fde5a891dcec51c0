"""SIGTERM and Ctrl-C: where a run stops, and on several hosts at which step all of them do.

Inside the loop a signal is noted, and the run ends after a step, saved. Everywhere else there is nothing to save, and
it ends at once by an exception: KeyboardInterrupt for Ctrl-C, Preempted for SIGTERM. A thread watches the signals too:
a call into a compiler can hold the main thread for minutes, in which Python handles none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

from vdit import internals
from vdit.errors import EX_TEMPFAIL, INTERRUPTED, Preempted

# Seconds that the main thread has to act on a signal where nothing is to be saved: alone, and to tell other hosts.
_GRACE, _GRACE_AMONG_HOSTS = 1.0, 5.0
_LOOK = 1.5  # seconds in which jax notices a signal, for sure
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionHandler:
    """Whether the run is to stop, and why. A context manager: the signals are its own while it is entered.

    Several hosts stop at one step by jax's preemption service: it hears of SIGTERM on any host, and names a step that
    none has begun, and `agreed` is then true. `last_words` is called, with the signal's name, before the thread ends
    a process whose main thread cannot. `outlook` says what the same command will do when it is started again; "" for
    nothing to say.
    """

    def __init__(self):
        self.last_words: Callable[[str], None] = lambda name: None
        self.outlook: Callable[[], str] = lambda: ""
        self.agreed = False
        self._asked: int | None = None
        self._deferring = self._holding = False
        self._calls = 0
        self._notify: Callable[[int], None] | None = None
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._old_pipe = -1
        self._old_hook = sys.unraisablehook

    @property
    def asked(self) -> str | None:
        """The signal that asked this process to stop."""
        return None if self._asked is None else signal.Signals(self._asked).name

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is not threading.main_thread():
            return self  # signals reach the main thread only
        # With several hosts and nobody who took over jax's handler (see `take_over`), SIGTERM stays jax's.
        several = jax.distributed.is_initialized() and self._notify is None
        for number in (signal.SIGINT,) if several else _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(self._old_pipe)
            sys.unraisablehook = self._old_hook
            os.close(self._pipe[1])  # the thread reads the end of it
            self._pipe = None

    def take_over(self) -> None:
        """After jax.distributed has started: SIGTERM comes here again, and is handed on to jax's handler.

        jax's is one of C, set past Python, that puts a flag up and returns.
        """
        if not self._before:
            return
        self._notify = internals.take_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While entered, a signal is noted only; the caller asks `reached` after each step."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While entered, a signal raises nothing, and jax is not told; the thread ends the process if this takes long.

        For where hosts meet and part: an exception in the middle would leave the others waiting for this one.
        """
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def settle(self) -> None:
        """Before hosts part: waits until jax has asked them all about a signal that came when no step was left.

        It looks for signals once a second, and a host that has gone in between would keep the others for minutes.
        """
        if self._notify is not None and self._asked is not None and not self.agreed:
            time.sleep(_LOOK)

    def reached(self) -> bool:
        """Whether to stop after this step. Every host calls it after every step, and all get the same answer."""
        if jax.process_count() == 1:
            return self._asked is not None
        self._calls += 1  # over all stages: jax wants a count that never falls
        self.agreed = reached_preemption_sync_point(self._calls)
        return self.agreed

    def check(self) -> None:
        """Ends the run where it was asked to stop."""
        if self._asked is not None:
            self.end()

    def end(self) -> None:
        """Raises what a stopped run ends with; on a host that had no signal of its own, another one had."""
        self._holding = True  # once is enough: the next signal must not interrupt the parting from the others
        raise self._end_of(self._asked)

    def _end_of(self, number: int | None) -> BaseException:
        """What ends a run that this signal stops; its words say what the same command will do next."""
        kind, words = Preempted, "stopped by SIGTERM"
        if number == signal.SIGINT:
            kind, words = KeyboardInterrupt, "interrupted"
        return kind("; ".join(filter(None, (words, self.outlook()))))

    def _handle(self, number: int, frame: object) -> None:
        if self._asked is not None and number == signal.SIGINT and not self._holding:
            self.agreed = False  # the others go on with what this host leaves here
            raise self._end_of(number)  # the second Ctrl-C: now
        self._asked = number if self._asked is None else self._asked
        if self._notify is not None and not self._holding:
            self._notify(signal.SIGTERM)
        if not (self._deferring or self._holding):
            self.end()

    def _unraisable(self, failure: sys.UnraisableHookArgs) -> None:
        """What `_handle` raised in the middle of a callback from C is lost there: the thread ends the process."""
        if self._asked is None or failure.exc_type not in (KeyboardInterrupt, Preempted):
            self._old_hook(failure)

    def _watch(self, pipe: int) -> None:
        """Ends the process where the main thread is held by a long call and nothing is to be saved."""
        asked: int | None = None
        while numbers := os.read(pipe, 64):
            asked = next((number for number in numbers if number in _SIGNALS), asked)
            alone = not (self._holding or jax.distributed.is_initialized())
            until = time.monotonic() + (_GRACE if alone else _GRACE_AMONG_HOSTS)
            while asked is not None and time.monotonic() < until and self._pipe is not None:
                time.sleep(0.1)
            if asked is not None and self._pipe is not None and not self._deferring:
                self.last_words(signal.Signals(asked).name)
                print(f"vdit: {self._end_of(asked)}", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED if asked == signal.SIGINT else EX_TEMPFAIL)
        os.close(pipe)
