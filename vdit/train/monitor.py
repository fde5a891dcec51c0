"""What a process of a run tells of itself: its log, where its time goes, and where it stands when nothing moves."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

import vdit
from vdit.dist.heartbeat import Heartbeat, HostStatus
from vdit.dist.process_shard import host_share
from vdit.errors import reason
from vdit.train.clock import StepTimer
from vdit.train.hang import HangDetector
from vdit.train.profile import Profiler
from vdit.train.stopping import PreemptionHandler
from vdit.types import PyTree

_NOTE_EVERY = 60.0  # seconds between lines about steps in a host's log


class RunMonitor:
    """Watches one process of a run; a context manager around all of its stages.

    folder: of this run's host logs (host_<i>.log); None for none. place: what the other hosts see of this one. peers:
    those, if there are any. stop: the signals that end the run. profiler: traces of steps.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        place: HostStatus | None = None,
        peers: Heartbeat | None = None,
        stop: PreemptionHandler | None = None,
        profiler: Profiler | None = None,
    ):
        self.place = place or HostStatus()
        self.stop = stop or PreemptionHandler()
        self.profiler = profiler or Profiler(None)
        self.peers, self._folder = peers, folder
        self.clock = StepTimer()
        self._own_stop = stop is None
        self._file = None
        self._log_lost = False
        self._lock = threading.Lock()
        self._noted = -float("inf")
        self._stall: HangDetector | None = None
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> RunMonitor:
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                path = self._folder / f"host_{jax.process_index()}.log"
                self._file = self._inside.enter_context(path.open("ab", buffering=0))
            except OSError as error:
                self._lose_log(error)
        self.note(f"started: vdit {vdit.__version__}, jax {jax.__version__}, {socket.gethostname()}, pid {os.getpid()}")
        if self.peers is not None:
            self.peers.write = self.note
        if self._own_stop:
            self._inside.enter_context(self.stop)
        self.profiler.warn = self.warn
        self._inside.enter_context(self.profiler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.note("ended: done" if kind is None else f"ended: {kind.__name__}: {error}".rstrip(": "))
        self._inside.close()
        self._file = None

    def note(self, line: str) -> None:
        """A line in this host's log, with the time."""
        with self._lock:
            if self._file is not None:
                now = datetime.datetime.now().isoformat(sep=" ", timespec="milliseconds")
                try:
                    self._file.write(f"{now}  {line}\n".encode(errors="backslashreplace"))
                except OSError as error:
                    self._lose_log(error)

    def warn(self, line: str) -> None:
        """A warning: in this host's log, and on stderr."""
        self.note(f"warning: {line}")
        print(f"vdit: warning: {line}", file=sys.stderr, flush=True)

    def _lose_log(self, error: OSError) -> None:
        """Says once that the log of this host has holes; later lines are tried all the same."""
        if not self._log_lost:
            self._log_lost = True
            print(
                f"vdit: warning: lines are missing in the log of this host ({self._folder}): {reason(error)}",
                file=sys.stderr,
                flush=True,
            )

    def at(self, phase: str) -> None:
        """What the process does from now on."""
        self.place.phase = phase

    @contextlib.contextmanager
    def steps(
        self, stage: str, step: int, mesh: Mesh, *, stall: float, saved: Callable[[], int | None]
    ) -> Iterator[None]:
        """Around a loop. stall: seconds without a step that are worth a report. saved: step of the last save."""
        self.place.step, self.place.saved = step, saved
        self.clock = StepTimer()
        self.at("compiling the first step")
        axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        share = host_share(mesh)
        self.note(
            f"{stage}: from step {step} as host {jax.process_index()} of {jax.process_count()}; mesh {axes} of "
            f"{mesh.devices.flat[0].device_kind}; here devices {[device.id for device in mesh.local_devices]}, "
            f"data share {share.index} of {share.count}"
        )
        self._stall = HangDetector(stall, self._stalled, self._moves_again)
        try:
            yield
        finally:
            self._stall.close()
            self._stall = None
            seconds = ", ".join(f"{kind} {value:.1f} s" for kind, value in self.clock.whole().items())
            self.note(f"{stage}: left at step {self.place.step}; {seconds}")
            self._summary()
            self.at("between stages")

    def moved(self) -> None:
        """A step has been finished."""
        if self._stall is not None:
            self._stall.moved()

    def traced(self, step: int, outputs: PyTree) -> None:
        """After a step was dispatched: ends a trace that ends with it, and looks for a wish for another."""
        folder = self.profiler.after(step, outputs)
        if folder is not None:
            self.note(f"a profiler trace up to step {step} is in {folder}")

    def figures(self, steps: int) -> dict[str, float]:
        """Shares of the time since the last call, which was `steps` steps ago: "time/input" and so on."""
        seconds = self.clock.take()
        total = max(sum(seconds.values()), 1e-9)
        self.place.seconds = (seconds["input"] + seconds["compute"]) / max(steps, 1)
        self.place.waited = seconds["input"] / max(steps, 1)
        self.profiler.look()
        if time.monotonic() - self._noted > _NOTE_EVERY:
            self._noted = time.monotonic()
            waited = f"{self.place.waited:.3g} s of them for data"
            self.note(f"step {self.place.step}: {self.place.seconds:.3g} s a step, {waited}")
            self._summary()
        return {f"time/{kind}": value / total for kind, value in seconds.items()}

    def _summary(self) -> None:
        """On the first of several hosts: who is slowest, who fastest."""
        if self.peers is None or jax.process_index() != 0:
            return
        places = [(host, place) for host, place in self.peers.places().items() if place.seconds is not None]
        for what, name in (("a step takes", "seconds"), ("of it, waiting for data takes", "waited")):
            if places:
                low, high = (pick(places, key=lambda item: getattr(item[1], name)) for pick in (min, max))
                fast, slow = (f"{getattr(place, name):.3g} s (host {host})" for host, place in (low, high))
                self.note(f"hosts: {what} {fast} to {slow}")

    def _stalled(self, seconds: float, usual: float) -> None:
        line = f"no step finished for {seconds:.0f} s (usual: {usual:.3g} s); here: {self.place}"
        self.warn(line) if jax.process_index() == 0 else self.note(f"warning: {line}")
        with self._lock:
            if self._file is not None:
                faulthandler.dump_traceback(self._file, all_threads=True)
        if self.peers is not None and jax.process_index() == 0:
            time.sleep(self.peers.interval)  # they have just noticed, too
            for host, place in self.peers.places().items():
                self.warn(f"host {host} is at {place}")

    def _moves_again(self, seconds: float) -> None:
        self.note(f"went on after {seconds:.0f} s, at {self.place}")
