"""One run in a folder at a time."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from vdit.checkpoint.agree import on_first
from vdit.checkpoint.files import Warn, say
from vdit.errors import CheckpointError

LOCK = "run.lock"
_LOOK = 0.1  # seconds
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class RunLock:
    """Keeps other runs out of a folder while it is held, as a context manager; all hosts of a run enter it at once.

    folder: made if absent. The first host's process holds a lock of the kernel's on a file in it, which goes when the
    process does, however that ends: there are no stale locks. patience: seconds that a predecessor has to end. Where
    the filesystem has no locks, `warn` says so and the run continues. CheckpointError if the folder is taken.
    """

    def __init__(self, folder: str | Path, *, patience: float = 10.0, warn: Warn = say):
        self._path = Path(folder).absolute() / LOCK
        self._patience, self._warn = patience, warn
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        on_first(self._take)
        return self

    def __exit__(self, *_) -> None:
        self._let_go()

    def _take(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        _close_in_children(self)
        end = time.monotonic() + self._patience
        while not self._try():
            if time.monotonic() >= end:
                self._let_go()
                raise CheckpointError(
                    f"{self._path.parent} is being trained by {self._holder()}: stop it, or give another folder"
                )
            time.sleep(_LOOK)
        started = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        with contextlib.suppress(OSError):  # on a full disk: the lock holds all the same, only its words are missing
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, holder.encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._warn(f"{self._path.parent}: this filesystem has no locks: see to it that one run at a time uses it")
        return True

    def _holder(self) -> str:
        """The other run in words; it may be about to write them, or to end."""
        try:
            holder = json.loads(self._path.read_text())
            return f"pid {holder['pid']} on {holder['host']} since {holder['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _let_go(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _close_in_children(lock: RunLock) -> None:
    """A forked child, such as a worker that reads data, must not keep the lock when its parent is killed."""
    held = weakref.ref(lock)
    os.register_at_fork(after_in_child=lambda: held() is not None and held()._let_go())
