"""Work on files that may crash a decoder, in a process of its own: it costs one row, not the worker.

    isolated = Isolated(seconds=600)
    isolated.call(scan, record, options)       # IsolationError where the process died three times, or took too long

A process is started at the first call and serves all later ones. Python's own exceptions come back as they are.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from vdit.errors import VditError

TRIES = 3


class IsolationError(VditError):
    """The process that worked on a file died, or took too long."""


class Isolated:
    """A process that calls functions.

    Args:
        seconds: a call may take so long; then the process is killed.
    """

    def __init__(self, *, seconds: float):
        self.seconds = seconds
        self._process: subprocess.Popen | None = None
        self._pipe: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), which must pickle, as its result must.

        Raises:
            IsolationError: the process died in each of three tries, or the call took too long in one.
            Exception: whatever the function raised.
        """
        how = ""
        for _ in range(TRIES):
            try:
                self._start()
                self._pipe.send((function, arguments))
                if not self._pipe.poll(self.seconds):
                    self.close()
                    raise IsolationError(f"took more than {self.seconds:g} s, and was stopped")
                worked, value = self._pipe.recv()
            except (EOFError, OSError):  # the process is gone
                how = self._ending()
                self.close()
                continue
            if worked:
                return value
            raise value
        raise IsolationError(f"the process that worked on it died {TRIES} times ({how}): its decoder crashes, or takes "
                             "more memory than there is")  # fmt: skip

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        if self._process is not None:
            return
        # Not multiprocessing.Process: that would import the caller's main module, which may be a whole pipeline.
        self._pipe, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "data_pipelines.isolate", str(theirs.fileno())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()

    def _ending(self) -> str:
        code = self._process.wait(10)
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"


def _serve(pipe: Any) -> None:
    """What the process does: calls until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            function, arguments = pipe.recv()
            try:
                answer = True, function(*arguments)
            except Exception as error:
                answer = False, error
            try:
                pipe.send(answer)
            except (TypeError, AttributeError, ValueError) as error:  # it does not pickle
                pipe.send((False, VditError(f"{type(answer[1]).__name__} cannot be sent back: {error}")))
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit("usage: python -m data_pipelines.isolate PIPE\n\nStarted by the pipeline, never by hand: it calls "
                 "functions that come through a pipe.\nSee data_pipelines.isolate.Isolated.\n")  # fmt: skip
    _serve(Connection(int(sys.argv[1])))
