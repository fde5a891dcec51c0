"""How a command ends: one line with the reason, and the exit code. A closed output never ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from vdit.errors import (
    EX_TEMPFAIL,
    EX_USAGE,
    INTERRUPTED,
    BucketError,
    HostsError,
    Preempted,
    VditError,
    no_room,
    reason,
)
from vdit.reprs import shown_bytes

# How jax words it, with the bytes that were wanted.
_NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out.of.memory", re.IGNORECASE)
_WANTED = re.compile(r"(?:allocat\w+ (?:for )?|Used )(\d[\d,]*\.?\d*) ?(bytes|[KMGT](?:i?B)?)?", re.IGNORECASE)


def ending(error: BaseException) -> tuple[str, int] | None:
    """(line, exit code) for the exception that ended a command; None for vdit's own faults, which need a traceback."""
    if isinstance(error, KeyboardInterrupt):
        return _line(str(error) or "interrupted"), INTERRUPTED
    if isinstance(error, Preempted):
        return _line(str(error) or "stopped by SIGTERM"), EX_TEMPFAIL
    if isinstance(error, HostsError):
        return _line(str(error)), EX_TEMPFAIL
    if isinstance(error, BucketError) and error.transient:
        return _line(str(error)), EX_TEMPFAIL
    if isinstance(error, VditError):
        return _line(str(error)), EX_USAGE
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return _line(_out_of_memory(error)), EX_USAGE
    if isinstance(error, OSError) and error.filename is not None:
        words = reason(error) if no_room(error) else error.strerror
        return _line(f"{error.filename}: {words}"), EX_USAGE
    if isinstance(error, OSError) and no_room(error):
        return _line(reason(error)), EX_USAGE
    return None


def _out_of_memory(error: BaseException) -> str:
    """Memory that was requested, memory that is free, and what helps."""
    device, there = "the host", None
    if isinstance(error, RuntimeError):
        device, there = _device_memory()
    wanted = _WANTED.search(str(error))
    parts = [] if wanted is None else [f"{_size(*wanted.groups())} were wanted at once"]
    parts += [] if there is None else [f"{device} has {there}"]
    found = f" ({', '.join(parts)})" if parts else ""
    return (
        f"{device} is out of memory{found}: make less at once (--size, --frames, --batch; in training data.row_tokens, "
        "batch_size or remat), hold weights as --weights int8, or share the work between devices (--mesh)"
    )


def _device_memory() -> tuple[str, str | None]:
    """The kind of the first device, and the memory that it or the machine has."""
    import jax

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    total = stats.get("bytes_limit")
    if total is None and device.platform == "cpu":
        from vdit.generate.host_memory import total_memory

        total = total_memory()
    return f"device {device.device_kind}", None if total is None else shown_bytes(total)


def _size(count: str, unit: str | None) -> str:
    if unit is not None and unit.lower() != "bytes":
        return f"{count.rstrip('.')} {unit}"
    return shown_bytes(float(count.replace(",", "")))


def _line(text: str) -> str:
    return " ".join(text.split())


@contextlib.contextmanager
def outlived_output() -> Iterator[None]:
    """While entered, a reader of stdout or stderr that goes away, or their full disk, does not end the work.

    `vdit sample RUN --prompts FILE | head -1` makes all of its videos. After a failure that is not a closed pipe, one
    line on the other stream says that output is lost.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout, sys.stderr = (_Outlived(nowhere if stream is None else stream) for stream in before)  # None: >&-
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # what fails at the interpreter's end changes the exit code
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def heard_interrupts() -> Iterator[None]:
    """While entered, a Ctrl-C that comes in a callback from C, such as jax's of the garbage collector, is not lost.

    Python drops what is raised there. A thread sends the interrupt again, once the main thread has left the hook:
    what is raised inside the hook is dropped too, and on a busy machine the hook can outlast any fixed delay.
    """
    before, inside = sys.unraisablehook, False

    def again() -> None:
        time.sleep(0.01)
        while inside:
            time.sleep(0.01)
        if sys.unraisablehook is hook:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def hook(failure: sys.UnraisableHookArgs) -> None:
        nonlocal inside
        if failure.exc_type is not KeyboardInterrupt:
            before(failure)
            return
        inside = True
        try:
            threading.Thread(target=again, daemon=True).start()
        finally:
            inside = False

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class _Outlived:
    """A text stream that goes on after it fails: from then on what is written to it is lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        """From now on the stream leads nowhere: what it holds back would fail again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        finally:
            os.close(nowhere)
        if error.errno != errno.EPIPE and self is not sys.stderr:
            print(f"vdit: warning: output is lost: {reason(error)}; the work goes on", file=sys.stderr, flush=True)
