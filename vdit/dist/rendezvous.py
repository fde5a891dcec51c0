"""The roll call: before jax is started on several hosts, they meet once and see that they fit together.

jax's own start ends a process by an abort that names nobody when a host is missing. So the first host listens for a
moment where jax's coordinator will, the others tell it who they are and what they are about to run, and every one is
given the same answer: go, or what is wrong, in one line. One line of JSON goes each way.
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vdit.errors import ConfigError, HostsError

_RETRY = 0.2  # seconds between two attempts to reach the first host
_MOMENT = 1.0  # seconds
_LONGEST_LINE = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the first host found. error: one line, empty if all is well. by_user: whether a user must fix something."""

    error: str = ""
    by_user: bool = False

    def check(self) -> None:
        """Raises what is wrong: ConfigError where a user must fix it, else HostsError."""
        if self.error:
            raise ConfigError(self.error) if self.by_user else HostsError(self.error)


def roll_call(
    coordinator: str, processes: int, process_id: int, about: Mapping[str, str], *, seconds: float, bind: str = ""
) -> None:
    """Returns once all hosts have come and agree; else raises the same error on all that came.

    coordinator: host:port of process 0. about: name -> value of what must be the same on all hosts. seconds: how long
    to wait for all. bind: address on which process 0 listens; all of its own by default. ConfigError: the hosts do
    not fit together. HostsError: some did not come, or the first cannot be reached.
    """
    host, port = split_address(coordinator)
    entry = {"process": process_id, "processes": processes, "name": socket.gethostname(), "about": dict(about)}
    deadline = time.monotonic() + seconds
    if process_id == 0:
        _Desk(coordinator, entry, seconds).hold(bind, port, deadline)
    else:
        _call(host, port, entry, coordinator, seconds, deadline)


def split_address(address: str) -> tuple[str, int]:
    """"host:port" or "[IPv6]:port" -> (host, port)."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"VDIT_COORDINATOR={address!r}: give host:port of the first host, first:1234 for instance")
    return host.strip("[]"), int(port)


class _Desk:
    """The first host's side: who has come, and what is wrong with them."""

    def __init__(self, coordinator: str, own: dict[str, Any], seconds: float):
        self._coordinator, self._seconds = coordinator, seconds
        self._processes = own["processes"]
        self._entries: list[dict[str, Any]] = [own]
        self._connections: list[socket.socket] = []

    def hold(self, bind: str, port: int, deadline: float) -> None:
        with _listener(bind, port, self._coordinator) as listener, selectors.DefaultSelector() as ready:
            ready.register(listener, selectors.EVENT_READ)
            while len(self._entries) < self._processes:
                if self._wrong():  # those that come in a moment hear of it too
                    deadline = min(deadline, time.monotonic() + _MOMENT)
                events = ready.select(timeout=max(deadline - time.monotonic(), 0))
                if not events:
                    break
                for key, _ in events:
                    self._serve(key.fileobj, listener, ready)
            answer = self._wrong() or self._missing() or Answer()
            self._tell(answer)
        answer.check()

    def _serve(self, ready_socket: socket.socket, listener: socket.socket, ready: selectors.BaseSelector) -> None:
        if ready_socket is listener:
            connection, _ = listener.accept()
            connection.settimeout(5.0)
            ready.register(connection, selectors.EVENT_READ)
            return
        ready.unregister(ready_socket)
        entry = _read(ready_socket)
        if not _is_entry(entry):  # a port scanner, or a client of jax: not of ours
            ready_socket.close()
            return
        self._entries.append(entry)
        self._connections.append(ready_socket)

    def _wrong(self) -> Answer | None:
        for entry in self._entries:
            if entry["processes"] != self._processes:
                return Answer(by_user=True, error=(
                    f"process {_who(entry)} was started with VDIT_PROCESSES={entry['processes']}, process "
                    f"{_who(self._entries[0])} with {self._processes}: give all hosts the same"))  # fmt: skip
        twice = [number for number, count in Counter(e["process"] for e in self._entries).items() if count > 1]
        if twice:
            hosts = " and ".join(entry["name"] for entry in self._entries if entry["process"] == twice[0])
            return Answer(by_user=True, error=(
                f"VDIT_PROCESS_ID={twice[0]} was given to two processes (on {hosts}): "
                f"number them from 0 to {self._processes - 1}, each number once"))  # fmt: skip
        return _odd_ones_out(self._entries)

    def _missing(self) -> Answer | None:
        there = {entry["process"] for entry in self._entries}
        missing = [str(number) for number in range(self._processes) if number not in there]
        if not missing:
            return None
        return Answer(error=(
            f"{len(there)} of {self._processes} hosts came within {self._seconds:g} s; missing: process "
            f"{', '.join(missing)} (coordinator {self._coordinator}): start them, or set VDIT_PROCESSES={len(there)}"
        ))  # fmt: skip

    def _tell(self, answer: Answer) -> None:
        for connection in self._connections:
            try:
                connection.sendall(json.dumps(dataclasses.asdict(answer)).encode() + b"\n")
                connection.recv(1)  # they close first: a port whose own side closed last stays blocked for a minute
            except OSError:
                pass  # it has gone: jax's start will find out
            connection.close()


def _odd_ones_out(entries: Sequence[dict[str, Any]]) -> Answer | None:
    """What must be the same on all hosts and is not; where opinions are even, the first host is right."""
    for name in entries[0]["about"]:
        values = [entry["about"].get(name, "none") for entry in entries]
        most = max(Counter(values).items(), key=lambda item: (item[1], item[0] == values[0]))[0]
        odd = [entry for entry, value in zip(entries, values) if value != most]
        if odd:
            theirs = ", ".join(f"{_who(entry)} has {entry['about'].get(name, 'none')}" for entry in odd)
            return Answer(by_user=True, error=(
                f"{name} is not the same on all hosts: process {theirs}, the others have {most}: "
                "start the same command with the same code on each"))  # fmt: skip
    return None


def _who(entry: dict[str, Any]) -> str:
    return f"{entry['process']} ({entry['name']})"


def _is_entry(entry: Any) -> bool:
    kinds = {"process": int, "processes": int, "name": str, "about": dict}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def _listener(bind: str, port: int, coordinator: str) -> socket.socket:
    try:
        if not bind and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server((bind, port), backlog=1024)
    except OSError as error:
        raise HostsError(
            f"process 0 cannot listen on port {port} of {coordinator}: {error.strerror}: end the run that holds "
            "it, or choose another port in VDIT_COORDINATOR"
        ) from None


def _call(host: str, port: int, entry: dict, coordinator: str, seconds: float, deadline: float) -> None:
    """Another host's side: says who it is as soon as the first host listens, and waits for the answer."""
    reason = "nobody listens there"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(entry).encode() + b"\n")
                connection.settimeout(seconds + 5.0)  # the first host began to wait later, perhaps: it decides
                answer = _read(connection)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            answer = None
        if isinstance(answer, dict) and set(answer) == {"error", "by_user"}:
            Answer(**answer).check()
            return
        time.sleep(min(_RETRY, max(deadline - time.monotonic(), 0)))
    raise HostsError(
        f"process {entry['process']} did not reach process 0 at {coordinator} within {seconds:g} s ({reason}): start "
        "it, check the address in VDIT_COORDINATOR, and that this network lets the port through"
    )


def _read(connection: socket.socket) -> Any:
    """One line of JSON; None for anything else."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LONGEST_LINE:
            piece = connection.recv(4096)
            if not piece:
                return None
            data += piece
        return json.loads(data)
    except (OSError, ValueError):
        return None
