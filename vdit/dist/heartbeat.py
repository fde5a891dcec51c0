"""Knowing of the other hosts while a run goes: who is alive, where each stands, why one ended.

Each host writes its status into the coordination service of jax every few seconds; that is its heartbeat. The first
host misses those that fall silent and tells the others. A host that ends with an error says so before it goes. So
every host ends with one line that names the host and the reason, rather than in a collective that never comes back,
or in an abort of the coordination service that names nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from vdit import internals
from vdit.dist.rendezvous import split_address
from vdit.errors import EX_TEMPFAIL, EX_USAGE

_BEATS, _MAIL, _READ, _NAMES = "vdit/beat/", "vdit/mail/", "vdit/read/", "vdit/name/"
_LEFT = "left"
# How runtimes word it when the other end of a collective is gone.
_PEER_GONE = re.compile(
    r"gloo|nccl|connection (reset|closed|refused)|socket closed|broken pipe|heartbeat|coordination service"
    r"|UNAVAILABLE|peer", re.IGNORECASE
)  # fmt: skip
_OFTEN, _LOOK = 2.0, 0.5  # seconds between beats at most, and between looks whether they are answered
_PARTING = 900  # seconds that a host waits for all to be done: the first one may still write what is written once
_FAREWELL = 5.0  # seconds: how long the first host, which holds the service, waits for the others to read why it ends


@dataclasses.dataclass(kw_only=True)
class HostStatus:
    """Where a host stands. Plain assignments keep it, so that a step pays nothing for being watched.

    phase: what it does ("training", "waiting for data", ...). step: the last one begun. saved: gives the step of the
    last complete checkpoint, or None. seconds: a step takes so many on this host, `waited` of them for data.
    """

    phase: str = "starting"
    step: int = 0
    saved: Callable[[], int | None] = lambda: None
    seconds: float | None = None
    waited: float | None = None

    def __str__(self) -> str:
        return f"step {self.step}: {self.phase}"

    def as_dict(self) -> dict[str, Any]:
        """The fields that other hosts read."""
        return {name: getattr(self, name) for name in ("phase", "step", "seconds", "waited")}


class Heartbeat:
    """The other hosts of a run. client: jax's of its coordination service, which process 0 holds at `coordinator`,
    host:port. heartbeat: seconds of silence until a host counts as lost. write: where the line goes that says why
    this process ends, beside stderr.
    """

    def __init__(
        self, client: Any, coordinator: str, process_id: int, processes: int, *, heartbeat: float, status: HostStatus
    ):
        self._client, self._id, self._count, self._heartbeat = client, process_id, processes, heartbeat
        self._coordinator = split_address(coordinator)
        self.status = status
        self.write: Callable[[str], None] = lambda line: None
        self.interval = max(0.2, min(_OFTEN, heartbeat / 5))
        self._answered = time.monotonic()
        self._leaving = threading.Event()
        self._ending = threading.Lock()
        self._beats: dict[int, tuple[str, float]] = {}
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._run, self._guard)]

    def start(self) -> None:
        """Begins to beat and to watch."""
        self._client.key_value_set(f"{_NAMES}{self._id}", socket.gethostname())
        internals.hold_aborts()
        for thread in self._threads:
            thread.start()

    def statuses(self) -> dict[int, HostStatus]:
        """Host number -> its status, as last heard."""
        found = {}
        for key, value in self._client.key_value_dir_get(_BEATS):
            fields = {"phase": "left"} if value == _LEFT else json.loads(value)["status"]
            found[int(key.rpartition("/")[2])] = HostStatus(**fields)
        return dict(sorted(found.items()))

    def fail(self, what: str, code: int) -> None:
        """Tells all others how this host ends ("ended with an error: ..."); the caller then ends the process at once.

        Should it have been brought down by another host that is gone, this waits until it is known which, and that
        ends the process. code: the exit code for the others, so that a launcher starts again what may go on, and not
        what must be fixed first.
        """
        self.write(f"this host {what}")
        if code != EX_USAGE and peer_is_gone(what):
            time.sleep(self._heartbeat + 3 * self.interval)
        with self._ending:
            self._tell(f"{self._who(self._id)} {what}", code)

    def leave(self) -> None:
        """Waits until all hosts have come to a good end, and then ends the watch."""
        if self._leaving.is_set():
            return
        self.status.phase = "done, waiting for the others"
        with contextlib.suppress(Exception):  # jax's shutdown waits, too
            self._client.wait_at_barrier("vdit/leave", 1000 * _PARTING)
        self._leaving.set()
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_BEATS}{self._id}", _LEFT, allow_overwrite=True)
            self._client.key_value_set(f"{_MAIL}{self._id}", _LEFT, allow_overwrite=True)  # wakes the watch
        for thread in self._threads:
            thread.join(2 * self.interval)
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def _run(self) -> None:
        count = 0
        while not self._leaving.is_set():
            try:
                count += 1
                beat = json.dumps({"count": count, "status": self.status.as_dict()})
                self._client.key_value_set(f"{_BEATS}{self._id}", beat, allow_overwrite=True)
                if self._id == 0:
                    self._miss()
                mail = self._client.blocking_key_value_get(f"{_MAIL}{self._id}", int(1000 * self.interval))
            except Exception as error:  # the type differs between versions of jax
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._first_is_gone(str(error).split(": ")[0])
                self._answered = time.monotonic()
                continue
            if mail != _LEFT:
                notice = json.loads(mail)
                self._part(but=notice.pop("lost"))
                self._end(**notice)

    def _guard(self) -> None:
        """Counts the seconds that a call has not returned: its service may be gone.

        Where the service's process has ended, jax's client is about to abort this one, and holds a lock meanwhile on
        which every other call waits. Where its machine has vanished, nothing ever comes back.
        """
        while not self._leaving.wait(_LOOK):
            silent = time.monotonic() - self._answered
            if silent > self._heartbeat + 2 * self.interval:
                self._first_is_gone(f"no answer for {self._heartbeat:g} s")
            elif silent > self.interval + 2 * _LOOK and self._id != 0 and _refuses(*self._coordinator):
                self._first_is_gone("its port is closed")

    def _miss(self) -> None:
        """On the first host: ends the run if another host has been silent for too long."""
        now = time.monotonic()
        heard = {int(key.rpartition("/")[2]): value for key, value in self._client.key_value_dir_get(_BEATS)}
        for host in range(1, self._count):
            value = heard.get(host, "")
            if self._beats.get(host, (None,))[0] != value:
                self._beats[host] = value, now
            elif value != _LEFT and now - self._beats[host][1] > self._heartbeat:
                text = f"{self._who(host)} was lost (no heartbeat for {self._heartbeat:g} s)"
                with self._ending:
                    self._tell(text, EX_TEMPFAIL, lost=host)
                self._end(text, EX_TEMPFAIL)

    def _tell(self, text: str, code: int, *, lost: int | None = None) -> None:
        """Gives all others the notice, the first host last: the service, which it holds, goes with it."""
        notice = json.dumps({"text": text, "code": code, "lost": lost})
        for host in range(self._count - 1, -1, -1):
            if host not in (self._id, lost):
                with contextlib.suppress(Exception):  # it was told something already, or the service is gone
                    self._client.key_value_set(f"{_MAIL}{host}", notice)
        self._part(but=lost)

    def _part(self, *, but: int | None) -> None:
        """Notes that this host knows; the first one, which holds the service, waits until all do."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_READ}{self._id}", "", allow_overwrite=True)
            until = time.monotonic() + _FAREWELL
            knowing = self._count - (but is not None)
            while self._id == 0 and len(self._client.key_value_dir_get(_READ)) < knowing and time.monotonic() < until:
                time.sleep(0.05)

    def _first_is_gone(self, why: str) -> None:
        if not self._leaving.is_set():
            self._end(f"host 0, which holds the coordination service, was lost ({why})", EX_TEMPFAIL)

    def _end(self, text: str, code: int) -> None:
        """Says why, and ends the process; its other threads may be in calls that never come back."""
        with self._ending:
            saved = None
            with contextlib.suppress(Exception):
                saved = self.status.saved()
            line = f"{text} at step {self.status.step} ({self.status.phase})"
            if code == EX_TEMPFAIL:
                line += ": start the same command again"
                line += "" if saved is None else f"; it goes on from step {saved}"
            with contextlib.suppress(Exception):
                self.write(line)
            print(f"vdit: {line}", file=sys.stderr, flush=True)
            os._exit(code)

    def _who(self, host: int) -> str:
        try:
            return f"host {host} ({self._client.key_value_try_get(f'{_NAMES}{host}')})"
        except Exception:
            return f"host {host}"


def peer_is_gone(error: BaseException | str) -> bool:
    """Whether an error looks as if another host were its cause."""
    return _PEER_GONE.search(str(error)) is not None


def _refuses(host: str, port: int) -> bool:
    """Whether nobody listens there, for sure."""
    try:
        socket.create_connection((host, port), timeout=2 * _LOOK).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False
