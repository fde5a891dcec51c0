"""What a process of a run tells of itself: its log, where its time goes, traces of steps, and what went wrong.

RunMonitor      one process: its log, its place for the other hosts, figures
StepTimer       books wall time to input, compute, checkpoint, evaluation, samples
HangDetector    notices when steps cease to come
Profiler        traces of steps, asked for by an option, a signal or a file
origin_of_nan   where a loss that is not finite comes from
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import math
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

import vdit
from vdit.dist.heartbeat import Heartbeat, HostStatus
from vdit.dist.mesh import host_share
from vdit.errors import ConfigError, reason
from vdit.finite import nonfinite_names
from vdit.reprs import listed
from vdit.train.preemption import PreemptionHandler
from vdit.train.state import TrainState
from vdit.types import PyTree

KINDS = ("input", "compute", "checkpoint", "evaluate", "sample", "other")


class StepTimer:
    """Books all wall time to one of `KINDS`, so that its shares add up to one.

    input: the devices stood idle for want of a batch. compute: they worked, a batch being read meanwhile or not.
    checkpoint: the loop waited for a save. evaluate: evaluators. sample: hooks. other: the rest,
    metrics written and steps compiled.
    """

    def __init__(self):
        self._mark = time.perf_counter()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._whole = dict.fromkeys(KINDS, 0.0)

    def book(self, kind: str) -> None:
        """The time since the last call was this."""
        now = time.perf_counter()
        self._seconds[kind] += now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        """Seconds of each kind since the last call; what is not booked yet is `other`."""
        self.book("other")
        taken, self._seconds = self._seconds, dict.fromkeys(KINDS, 0.0)
        for kind, seconds in taken.items():
            self._whole[kind] += seconds
        return taken

    def whole(self) -> dict[str, float]:
        """Seconds of each kind since the beginning."""
        return {kind: self._whole[kind] + self._seconds[kind] for kind in KINDS}


_SLOW = 10  # times the usual step is a stall, where that is more than the limit


class HangDetector:
    """A thread that calls `stalled(seconds since the last step, the usual seconds)` when steps cease to come.

    limit: at least so many seconds must have passed, and ten times what a step usually takes. It is called once more
    whenever the time has doubled; `again(seconds)` when a step came after all. Nothing counts before the first step,
    which is compiled.
    """

    def __init__(self, limit: float, stalled: Callable[[float, float], None], again: Callable[[float], None]):
        self._limit, self._stalled, self._again = limit, stalled, again
        self._last: float | None = None
        self._usual: deque[float] = deque(maxlen=64)
        self._reported = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """A step has come."""
        now = time.monotonic()
        if self._last is not None:
            self._usual.append(now - self._last)
            if self._reported:
                self._again(now - self._last)
        self._last, self._reported = now, 0.0

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        while not self._closed.wait(min(self._limit / 4, 5.0)):
            last, usual = self._last, list(self._usual)
            if last is None or not usual:
                continue
            seconds, median = time.monotonic() - last, statistics.median(usual)
            if seconds > max(self._limit, _SLOW * median, 2 * self._reported):
                self._reported = seconds
                self._stalled(seconds, median)


STEPS = 3  # that a trace asked for on the way takes
ASK = "profile"  # the file; it may hold the number of steps


def parse_steps(text: str) -> tuple[int, int]:
    """"20:25" -> (20, 25): the first and the last step of a trace."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile={text!r}: give the first and the last step, 20:25 for instance")
    return int(first), int(last)


class Profiler:
    """Traces steps into `folder`, to be opened in TensorBoard or Perfetto.

    folder: None for no traces. steps: the first and last step of one that is asked for from the start. ask: a file
    that asks for one when it appears; it is removed. SIGUSR1 asks, too, where the context is entered.
    """

    def __init__(self, folder: Path | None, *, steps: tuple[int, int] | None = None, ask: Path | None = None):
        self._folder, self._range, self._ask = folder, steps, ask
        self._wanted = 0  # steps that were asked for
        self._last: int | None = None  # of the trace under way
        self._before: object = None
        self.warn: Callable[[str], None] = lambda line: None

    def __enter__(self) -> Profiler:
        main = threading.current_thread() is threading.main_thread()
        if self._folder is not None and main and hasattr(signal, "SIGUSR1"):
            self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        if self._last is not None:
            self._stop()

    def look(self) -> None:
        """Looks for the file; called now and then."""
        if self._ask is None or self._last is not None or not self._ask.exists():
            return
        count = STEPS
        with contextlib.suppress(OSError, ValueError):
            count = max(int(self._ask.read_text().strip() or STEPS), 1)
        with contextlib.suppress(OSError):
            self._ask.unlink()
        self._wanted = count

    def before(self, step: int) -> None:
        """Called right before a step is dispatched."""
        if self._folder is None or self._last is not None:
            return
        if self._wanted:
            self._start(step + self._wanted - 1)
            self._wanted = 0
        elif self._range is not None and self._range[0] <= step <= self._range[1]:
            self._start(self._range[1])

    def after(self, step: int, outputs: PyTree) -> Path | None:
        """Called when a step has been dispatched; the trace's folder where it ends the trace, which waits for it."""
        if self._last is None or step < self._last:
            return None
        jax.block_until_ready(outputs)
        return self._folder if self._stop() else None

    def _start(self, last: int) -> None:
        with self._outlived():
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._last = last

    def _stop(self) -> bool:
        """Whether the trace is written."""
        self._last = None
        with self._outlived() as failures:
            jax.profiler.stop_trace()
        return not failures

    @contextlib.contextmanager
    def _outlived(self) -> Iterator[list[Exception]]:
        """A trace that fails (on a full disk, or where another one is under way) costs a warning, not the run."""
        failures: list[Exception] = []
        try:
            yield failures
        except (OSError, RuntimeError) as error:
            failures.append(error)
            self._range = None
            self.warn(f"{self._folder}: no profiler trace: {reason(error)}; training goes on")

    def _on_signal(self, number: int, frame: object) -> None:
        self._wanted = STEPS


# What arrays of a batch hold, for users who never see a Row.
_HOLDS = {"values": "latents", "video": "pixels", "action": "actions"}


def origin_of_nan(state: TrainState, batch: PyTree, frozen: PyTree | None, metrics: Mapping[str, float]) -> str:
    """One sentence on where a loss or gradient that is not finite comes from, and what to do.

    Args:
        state: after the step, which was skipped: parameters are those that the step began with.
        batch: a batch on the devices that gave such a loss.
        frozen: weights that are not trained, or None.
        metrics: of such a step, with its "loss" and "grad_norm".
    """
    found = nonfinite_names(batch)
    if found:
        names = [_HOLDS.get(name.rpartition(".")[2], name) for name in found]
        rule = "check its files, and encode the latents again"
        return f"the data holds NaN or infinity already ({listed(names)}): {rule}"
    for what, tree in (("frozen weights", frozen), ("parameters", state.params)):
        found = nonfinite_names(tree)
        if found:
            return (
                f"{what} hold NaN or infinity already ({listed(found)}), the data does not: start from other weights, "
                "or go on from an earlier checkpoint"
            )
    found = nonfinite_names(state.opt_state)
    if found:
        return f"the optimizer's state holds NaN or infinity ({listed(found)}): go on from an earlier checkpoint"
    if math.isfinite(metrics["loss"]):
        groups = [name.partition("/")[2] for name, value in metrics.items() if _spoilt_group(name, value)]
        where = f" of {listed(groups)}" if groups else ""
        arises = f"the gradient{where} overflows, though data, parameters and loss are finite"
    else:
        arises = "the loss overflows in the network, though data and parameters are finite"
    return f"{arises}: lower the learning rate, lengthen the warm-up, clip gradients, or compute in float32"


def _spoilt_group(name: str, value: float) -> bool:
    return name.startswith("grad_norm/") and not math.isfinite(value)


_NOTE_EVERY = 60.0  # seconds between lines about steps in a host's log


class RunMonitor:
    """Watches one process of a run; a context manager around all of its stages.

    folder: of this run's host logs (host_<i>.log); None for none. status: what the other hosts see of this one. peers:
    those, if there are any. stop: the signals that end the run. profiler: traces of steps.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        status: HostStatus | None = None,
        peers: Heartbeat | None = None,
        stop: PreemptionHandler | None = None,
        profiler: Profiler | None = None,
    ):
        self.status = status or HostStatus()
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
        self.status.phase = phase

    @contextlib.contextmanager
    def steps(
        self, stage: str, step: int, mesh: Mesh, *, stall: float, saved: Callable[[], int | None]
    ) -> Iterator[None]:
        """Around a loop. stall: seconds without a step that are worth a report. saved: step of the last save."""
        self.status.step, self.status.saved = step, saved
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
            self.note(f"{stage}: left at step {self.status.step}; {seconds}")
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
        self.status.seconds = (seconds["input"] + seconds["compute"]) / max(steps, 1)
        self.status.waited = seconds["input"] / max(steps, 1)
        self.profiler.look()
        if time.monotonic() - self._noted > _NOTE_EVERY:
            self._noted = time.monotonic()
            waited = f"{self.status.waited:.3g} s of them for data"
            self.note(f"step {self.status.step}: {self.status.seconds:.3g} s a step, {waited}")
            self._summary()
        return {f"time/{kind}": value / total for kind, value in seconds.items()}

    def _summary(self) -> None:
        """On the first of several hosts: who is slowest, who fastest."""
        if self.peers is None or jax.process_index() != 0:
            return
        statuses = [(host, status) for host, status in self.peers.statuses().items() if status.seconds is not None]
        for what, name in (("a step takes", "seconds"), ("of it, waiting for data takes", "waited")):
            if statuses:
                low, high = (pick(statuses, key=lambda item: getattr(item[1], name)) for pick in (min, max))
                fast, slow = (f"{getattr(status, name):.3g} s (host {host})" for host, status in (low, high))
                self.note(f"hosts: {what} {fast} to {slow}")

    def _stalled(self, seconds: float, usual: float) -> None:
        line = f"no step finished for {seconds:.0f} s (usual: {usual:.3g} s); here: {self.status}"
        self.warn(line) if jax.process_index() == 0 else self.note(f"warning: {line}")
        with self._lock:
            if self._file is not None:
                faulthandler.dump_traceback(self._file, all_threads=True)
        if self.peers is not None and jax.process_index() == 0:
            time.sleep(self.peers.interval)  # they have just noticed, too
            for host, status in self.peers.statuses().items():
                self.warn(f"host {host} is at {status}")

    def _moves_again(self, seconds: float) -> None:
        self.note(f"went on after {seconds:.0f} s, at {self.status}")
