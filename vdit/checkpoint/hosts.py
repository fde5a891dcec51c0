"""What the hosts of a run tell each other about a checkpoint, and the lock that keeps other runs out of a folder.

An Exchange goes through jax's coordination service, as Orbax's own barriers do: a save is finished in a background
thread, and there a collective on the devices would meet the training step's in another order on every host.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from vdit import buckets, internals, paths
from vdit.errors import CheckpointError, HostsError

PATIENCE = 1200  # seconds that one host waits for the slowest: as long as Orbax waits for a save
Warn = Callable[[str], None]
_numbers = itertools.count()  # each exchange has names of its own, the same on all hosts


def say(message: str) -> None:
    """Where warnings go by default: one line on stderr."""
    print(f"vdit: warning: {message}", file=sys.stderr, flush=True)


class Exchange:
    """One question that all hosts answer. All must make their exchanges in the same order, in the main thread.

    alone: this host answers its own question; such exchanges may be made by any host at any time.
    """

    def __init__(self, *, alone: bool = False):
        alone = alone or jax.process_count() == 1
        self.index, self.count = (0, 1) if alone else (jax.process_index(), jax.process_count())
        self._folder = None if alone else f"vdit/checkpoint/{next(_numbers)}"
        self._client = None if alone else internals.client()
        self._own: dict[str, str] = {}

    def put(self, name: str, value: Any) -> None:
        """Lays down this host's value (plain JSON) under a name."""
        if self._client is None:
            self._own[name] = json.dumps(value)
            return
        with _asking("the hosts"):
            self._client.key_value_set(f"{self._folder}/{name}/{self.index}", json.dumps(value))

    def seen(self, name: str) -> dict[int, Any]:
        """Host -> its value, of the hosts that laid one down so far."""
        if self._client is None:
            return {0: json.loads(self._own[name])} if name in self._own else {}
        with _asking("the hosts"):
            found = self._client.key_value_dir_get(f"{self._folder}/{name}")
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}

    def collect(self, name: str, seconds: float = PATIENCE) -> list[Any]:
        """The values of all hosts, in their order; waits for them."""
        if self._client is None:
            return [json.loads(self._own[name])]
        end = time.monotonic() + seconds
        return [self._get(f"{name}/{host}", end, f"host {host}") for host in range(self.count)]

    def agree(self, value: Any, merge: Callable[[list[Any]], Any], *, seconds: float = PATIENCE) -> Any:
        """Every host gives a value; the first one makes an answer of them, which all return; once per exchange.

        What `merge` raises is raised on all hosts, on the others as a CheckpointError with the same words. HostsError
        if a host does not answer, here as in the other methods.
        """
        if self._client is None:
            return merge([json.loads(json.dumps(value))])
        self.put("value", value)
        failure = None
        if self.index == 0:
            try:
                answer = {"answer": merge(self.collect("value", seconds))}
            except Exception as error:
                failure, answer = error, {"error": str(error), "lost": isinstance(error, HostsError)}
            with _asking("the hosts"):
                self._client.key_value_set(f"{self._folder}/answer", json.dumps(answer))
        else:
            answer = self._get("answer", time.monotonic() + seconds + 60, "the first host")
        self._forget()
        if failure is not None:
            raise failure
        if "error" in answer:
            raise (HostsError if answer["lost"] else CheckpointError)(answer["error"])
        return answer["answer"]

    def spoil(self, barriers: Iterable[str]) -> None:
        """Ends the wait of other hosts at barriers that this one will not come to.

        The service fails a barrier for all, the late ones too, once it is asked for with other members.
        """
        for name in barriers if self._client is not None else ():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.wait_at_barrier(name, 1, process_ids=[self.index])

    def _get(self, name: str, end: float, whose: str) -> Any:
        left = max(int(1000 * (end - time.monotonic())), 1)
        with _asking(whose):
            return json.loads(self._client.blocking_key_value_get(f"{self._folder}/{name}", left))

    def _forget(self) -> None:
        """The service keeps what it was told: for a run of weeks that adds up."""
        try:
            self._client.wait_at_barrier(f"{self._folder}/end", 60_000)
            if self.index == 0:
                self._client.key_value_delete(self._folder)
        except jax.errors.JaxRuntimeError:
            return  # a host is gone, which is noticed elsewhere; a few keys stay


@contextlib.contextmanager
def _asking(whom: str) -> Iterator[None]:
    """What the service says when a host is gone is no fault of a checkpoint's: the run is to be started again."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        words = str(error).strip().splitlines()[0]
        raise HostsError(f"{whom} gave no answer about a checkpoint ({words}): see its log") from None


def on_first(act: Callable[[], Any]) -> Any:
    """Has the first host act; all hosts return what came of it, or raise what went wrong."""
    return Exchange().agree(None, lambda _: act())


def this_host() -> str:
    """How a message names the host: "host 3 (name)"."""
    return f"host {jax.process_index()} ({socket.gethostname()})"


LOCK = "run.lock"
LEASE = 60.0  # seconds; see _Lease
_HELD: set[str] = set()  # tokens of this process
_LOOK = 0.1  # seconds
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class RunLock:
    """Keeps other runs out of a folder while it is held, as a context manager; all hosts of a run enter it at once.

    folder: made if absent. The first host's process holds a lock of the kernel's on a file in it, which goes when the
    process does, however that ends: there are no stale locks. patience: seconds that a predecessor has to end. Where
    the filesystem has no locks, `warn` says so and the run continues. CheckpointError if the folder is taken.
    """

    def __init__(self, folder: str | Path, *, patience: float = 10.0, warn: Warn = say):
        folder = paths.path(folder)
        self._path = folder.absolute() / LOCK if isinstance(folder, Path) else folder / LOCK
        self._lease = None if isinstance(folder, Path) else _Lease(str(self._path), warn)
        self._patience, self._warn = patience, warn
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        on_first(self._take)
        return self

    def __exit__(self, *_) -> None:
        self._let_go()

    def _take(self) -> None:
        if self._lease is not None:
            self._lease.take()
            return
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
            return _describe_holder(self._path.read_text())
        except OSError:
            return "another process"

    def _let_go(self) -> None:
        if self._lease is not None:
            self._lease.let_go()
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _close_in_children(lock: RunLock) -> None:
    """A forked child, such as a worker that reads data, must not keep the lock when its parent is killed."""
    reference = weakref.ref(lock)
    os.register_at_fork(after_in_child=lambda: reference() is not None and reference()._let_go())


class _Lease:
    """The lock of a run in a bucket: a key that its holder writes again every few seconds.

    A bucket has no locks that end with a process. So a key whose holder is dead, or that nobody has written for
    LEASE seconds by this host's clock, is taken over.
    """

    def __init__(self, url: str, warn: Warn):
        self._url, self._warn = url, warn
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._pid = 0

    def take(self) -> None:
        """Returns when the key is this process's; CheckpointError if another run keeps writing it."""
        with buckets.failures(self._url, OSError):
            seen, since = None, time.monotonic()
            while not buckets.create(self._url, self._words()):
                now = _read_key(self._url)
                if now != seen:
                    if seen is not None:  # it was written again: its holder lives
                        raise CheckpointError(
                            f"{self._url.rpartition('/')[0]} is being trained by {_describe_holder(now)}: stop it, "
                            "or give another folder"
                        )
                    seen, since = now, time.monotonic()
                if _is_dead(now) or time.monotonic() - since > LEASE:
                    buckets.delete(self._url)
                    seen = None
                else:
                    time.sleep(_LOOK)
        self._pid = os.getpid()
        _HELD.add(self._token)
        threading.Thread(target=self._renew, daemon=True).start()

    def let_go(self) -> None:
        """Deletes the key, if this process holds it."""
        if self._pid != os.getpid():  # a forked child
            return
        self._pid = 0
        self._stop.set()
        _HELD.discard(self._token)
        with contextlib.suppress(Exception):  # it goes stale
            if self._token in (_read_key(self._url) or ""):
                buckets.delete(self._url)

    def _renew(self) -> None:
        while not self._stop.wait(LEASE / 4):
            try:
                now = _read_key(self._url)
                if now is not None and self._token not in now:
                    self._warn(f"{self._url}: another run has taken this folder: {_describe_holder(now)}")
                    return
                if not self._stop.is_set():
                    buckets.put(self._url, self._words())
            except Exception:
                continue  # the bucket cannot be reached: saves say so

    def _words(self) -> bytes:
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="milliseconds")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "started": now, "token": self._token}
        return json.dumps(record).encode()


def _read_key(url: str) -> str | None:
    try:
        return buckets.read(url).decode(errors="replace")
    except FileNotFoundError:
        return None


def _is_dead(text: str | None) -> bool:
    """Whether the process that wrote a lock was one of this machine, and has ended."""
    try:
        record = json.loads(text or "")
        if record["host"] != socket.gethostname():
            return False
        if record["pid"] == os.getpid():
            return record["token"] not in _HELD  # a process before this one had the same number
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False


def _describe_holder(text: str | None) -> str:
    """The holder of a lock in words."""
    try:
        holder = json.loads(text or "")
        return f"pid {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
