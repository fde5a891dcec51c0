"""Runs many hostile inputs in worker processes and says which of them vdit did not refuse in one line.

A fuzz script makes a case from a seed and a folder, and hands it to `main`:

    def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
        rng = np.random.default_rng(seed)
        ...                                     # write the input into folder
        return "kind of input", lambda: vdit.something(folder)

    if __name__ == "__main__":
        sys.exit(main(make, cases=2000, description=__doc__))

The call either returns (ok), or raises one of vdit.errors with one line (refused). Anything else fails: another
exception, a message of several lines, a dead process, more than the limits of time and memory. `Wrong`, raised by the
call, is a failure too: for what went through but gave a wrong result. One process runs many cases, so imports and
compilation are paid once; after a failure that may have harmed it, a new one is started.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vdit.errors import VditError

Make = Callable[[int, Path], tuple[str, Callable[[], object]]]

POLL = 0.05
_DETAIL = 1500


class Wrong(Exception):
    """What a case raises where vdit took the input and did the wrong thing with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one case may take.

    seconds: of CPU time, so that a busy machine is not taken for a slow reader. wall: seconds, for what waits.
    memory: bytes beyond what the process held before the case.
    """

    seconds: float = 10.0
    wall: float = 120.0
    memory: int = 2 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one case.

    outcome: "ok", "refused" or "failed". kind: what `make` called it. detail: the line that refused it, or why it
    failed. seconds: of CPU time; of a case that was stopped, those since it began. memory: bytes at the highest, beyond
    what the process held before.
    """

    seed: int
    outcome: str
    kind: str
    detail: str = ""
    seconds: float = 0.0
    memory: int = 0


def run_cases(make: Make, seeds: Iterable[int], *, limits: Limits = Limits()) -> Iterator[Result]:
    """Runs `make(seed, folder)` and what it returns, for each seed, in a process that is started again when needed.

    make: a function at the top of a module, so that another process finds it.
    """
    worker = None
    try:
        for seed in seeds:
            worker = worker or _Worker(make, limits)
            result = worker.run(seed)
            if not worker.alive():
                worker.close()
                worker = None
            yield result
    finally:
        if worker is not None:
            worker.close()


def main(make: Make, *, cases: int, description: str, limits: Limits = Limits(), argv: list[str] | None = None) -> int:
    """The command line of a fuzz script: runs the cases, prints the failures and a table; 1 if any case failed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=cases, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run this one in this process, and show what comes of it")
    parser.add_argument("--keep", type=Path, help="with --seed: the folder to make the input in, kept")
    options = parser.parse_args(argv)
    if options.seed is not None:
        return _show(make, options.seed, options.keep)
    results, start = [], time.monotonic()
    for result in run_cases(make, range(options.first, options.first + options.cases), limits=limits):
        results.append(result)
        if result.outcome == "failed":
            print(f"FAILED seed {result.seed}: {result.kind}\n    {result.detail}", flush=True)
        if len(results) % 100 == 0:
            print(f"  {len(results)} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(summary(results))
    return int(any(result.outcome == "failed" for result in results))


def summary(results: list[Result]) -> str:
    """A table: a line for each kind of case (the first words of it), then all together, the slowest and the largest."""
    rows: dict[str, collections.Counter] = {}
    for result in results:
        rows.setdefault(result.kind.split(":")[0], collections.Counter())[result.outcome] += 1
    rows = dict(sorted(rows.items())) | {"all": sum(rows.values(), collections.Counter())}
    width = max(len(name) for name in rows)
    lines = [f"{'':{width}}  {'cases':>7}  {'ok':>7}  {'refused':>7}  {'failed':>7}"]
    for name, counts in rows.items():
        numbers = (sum(counts.values()), counts["ok"], counts["refused"], counts["failed"])
        lines.append(f"{name:{width}}  " + "  ".join(f"{number:7d}" for number in numbers))
    if results:
        slow, large = max(results, key=lambda r: r.seconds), max(results, key=lambda r: r.memory)
        lines.append(f"slowest: {slow.seconds:.2f} s of CPU time (seed {slow.seed}, {slow.kind})")
        lines.append(f"most memory: {large.memory / 2**20:.0f} MiB (seed {large.seed}, {large.kind})")
    return "\n".join(lines)


def attempt(make: Make, seed: int, folder: Path) -> Result:
    """Runs one case in this process, without limits."""
    kind, start = "making the input", time.process_time()
    try:
        kind, call = make(seed, folder)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
        outcome, detail = "ok", ""
    except VditError as error:
        text = str(error)
        ugly = not text or len(text) > 2500 or not text.isprintable()
        outcome = "failed" if ugly else "refused"
        detail = f"{type(error).__name__}: not one printable line: {text[:_DETAIL]!r}" if ugly else text
    except Exception as error:
        outcome, detail = "failed", _where(error)
    return Result(seed=seed, outcome=outcome, kind=kind, detail=detail, seconds=time.process_time() - start)


def _where(error: BaseException) -> str:
    """The error and the lines that it came by, innermost last; long values cut."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    path = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}: {str(error)[:300]!r} at {path}"[:_DETAIL]


def _show(make: Make, seed: int, keep: Path | None) -> int:
    with contextlib.ExitStack() as stack:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz")))
        kind, call = make(seed, folder)
        print(f"seed {seed}: {kind}, in {folder}")
        try:
            print(f"ok: {call()!r}")
        except VditError as error:
            print(f"refused by {type(error).__name__}: {error}")
        except Exception:
            traceback.print_exc()
            return 1
    return 0


class _Worker:
    """A process that runs one case after the other."""

    def __init__(self, make: Make, limits: Limits):
        context = multiprocessing.get_context("spawn")
        self._limits = limits
        self._home = tempfile.mkdtemp(prefix="fuzz")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs, self._home, limits.memory), daemon=True)
        self._process.start()
        theirs.close()
        self._ours.recv()  # imports are over

    def alive(self) -> bool:
        return self._process.is_alive()

    def run(self, seed: int) -> Result:
        before, peak, kind = self._resident(), 0, "making the input"
        started, begun = None, 0.0
        self._ours.send(seed)
        while True:
            try:
                if self._ours.poll(POLL):
                    word = self._ours.recv()
                    if isinstance(word, Result):
                        return dataclasses.replace(word, memory=max(peak, word.memory))
                    kind, started, begun = word, time.monotonic(), self._busy()
            except (EOFError, OSError):
                self._process.join(5)
                return self._failed(seed, kind, f"the process died (exit code {self._process.exitcode})", started, peak)
            peak = max(peak, self._resident() - before)
            if peak > self._limits.memory:
                return self._failed(seed, kind, f"took more than {self._limits.memory} bytes of memory", started, peak)
            if started is not None and self._busy() - begun > self._limits.seconds:
                return self._failed(seed, kind, f"took more than {self._limits.seconds} s", started, peak)
            if started is not None and time.monotonic() - started > self._limits.wall:
                return self._failed(seed, kind, f"waited for more than {self._limits.wall} s", started, peak)

    def _failed(self, seed: int, kind: str, detail: str, started: float | None, peak: int) -> Result:
        self._process.kill()
        self._process.join()
        seconds = time.monotonic() - started if started else 0.0
        return Result(seed=seed, outcome="failed", kind=kind, detail=detail, seconds=seconds, memory=peak)

    def _busy(self) -> float:
        """Seconds of CPU time that the process has had."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _resident(self) -> int:
        return _status("VmRSS", self._process.pid)

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._home, ignore_errors=True)


def _serve(make: Make, pipe, home: str, memory: int) -> None:
    """Runs in the other process. Output goes nowhere; data beyond the limit is a MemoryError."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    pipe.send(None)

    def told(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
        kind, call = make(seed, folder)
        pipe.send(kind)
        return kind, call

    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        folder = Path(home) / str(seed)
        folder.mkdir()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData", os.getpid()) + 2 * memory, hard))
        before = _peak_from_here()
        result = attempt(told, seed, folder)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        pipe.send(dataclasses.replace(result, memory=max(0, _status("VmHWM", os.getpid()) - before)))
        shutil.rmtree(folder, ignore_errors=True)


def _peak_from_here() -> int:
    """Starts the measure of the highest memory again, where the system lets us; returns what is held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM", os.getpid())


def _status(name: str, pid: int) -> int:
    """A number of bytes from /proc/PID/status; 0 where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    print(__doc__, file=sys.stderr)
    sys.exit(2)
