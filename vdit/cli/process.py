"""What is around the work of a command: the hosts that share it, its cache of programs, and how it ends.

A command ends with one line that says the reason, and an exit code. A closed output never ends it. Nothing heavy is
imported before it is needed: `vdit --help` must be quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import vdit
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

if TYPE_CHECKING:
    from vdit.dist.heartbeat import Heartbeat, HostStatus
    from vdit.train.preemption import PreemptionHandler

# How jax words it, with the bytes that were wanted.
_NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out.of.memory", re.IGNORECASE)
_WANTED = re.compile(r"(?:allocat\w+ (?:for )?|Used )(\d[\d,]*\.?\d*) ?(bytes|[KMGT](?:i?B)?)?", re.IGNORECASE)


def exit_status(error: BaseException) -> tuple[str, int] | None:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """This process among others. peers: None where it is alone."""

    peers: Heartbeat | None
    status: HostStatus
    stop: PreemptionHandler


@contextlib.contextmanager
def distributed_session(about: Mapping[str, str], *, wait: float | None = None) -> Iterator[Session]:
    """Around the work of a command: waits for the other hosts, then ends as all end.

    about: what must be the same on all. wait: see vdit.dist.multihost.initialize. An error on this host is told to the
    others, and ends the process here and now: jax's own end would wait minutes for hosts that wait for this one.
    """
    import jax

    from vdit.dist.heartbeat import HostStatus
    from vdit.dist.mesh import available_devices
    from vdit.dist.multihost import initialize, leave
    from vdit.train.preemption import PreemptionHandler

    status, stop, peers = HostStatus(), PreemptionHandler(), None
    with stop, contextlib.ExitStack() as calm:
        try:
            # A signal while jax starts is kept until the others can be told of it.
            met = functools.partial(calm.enter_context, stop.held())
            peers = initialize(about=about | {"the code of vdit": _code()}, wait=wait, status=status, met=met)
            if peers is not None:
                stop.take_over()
                stop.last_words = lambda name: peers.fail(f"was stopped by {name}", EX_TEMPFAIL)
            calm.close()
            stop.check()
            available_devices()  # refused here, before any work
            yield Session(peers=peers, status=status, stop=stop)
        except BaseException as error:
            with stop.held():
                # All stop together where that was agreed, unless one is lost while it saves.
                if jax.distributed.is_initialized() and (isinstance(error, Exception) or not stop.agreed):
                    _end(error, peers)
                leave(peers)
            raise
        with stop.held():
            stop.settle()
            leave(peers)


def _end(error: BaseException, peers: Heartbeat | None) -> None:
    from vdit.dist.heartbeat import peer_is_gone

    known = exit_status(error)
    line, code = known or (f"{type(error).__name__}: {error}", EX_TEMPFAIL if peer_is_gone(error) else 1)
    if peers is None:
        pass  # they cannot be told yet, and find out
    elif code in (EX_TEMPFAIL, INTERRUPTED):
        peers.fail(f"ended: {line}", EX_TEMPFAIL)
    else:
        peers.fail(f"ended with an error: {line} ({'fix that first' if known else 'see its log'})", code)
    if known is None or "--traceback" in sys.argv:
        traceback.print_exception(error)
    if known is not None:
        print(f"vdit: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _code() -> str:
    """Changes with any file of vdit's code."""
    digest = hashlib.sha256()
    for file in sorted(Path(vdit.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def keep_compiled() -> None:
    """Turns jax's persistent compilation cache on, in the user's folder if one is set; before anything is compiled.

    jax keeps programs that took a second or more. Commands start many that take less: kept too, they cost a later
    command a few milliseconds each. Where that folder cannot be written (no home, a full disk), a line says so, and the
    command continues without a cache.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    folder = jax.config.jax_compilation_cache_dir
    try:
        folder = cache_folder(jax.__version__) if folder is None else folder
        if "://" not in str(folder):  # a bucket is jax's to write to
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(bytes(4096))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        jax.config.update("jax_enable_compilation_cache", False)
        print(
            f"vdit: warning: compiled programs are not cached for the next command ({reason(error)}): set "
            "JAX_COMPILATION_CACHE_DIR to a folder that can be written",
            file=sys.stderr,
            flush=True,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A disk that fills up later costs the next command time, and is no reason for a warning at each program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def cache_folder(version: str) -> Path:
    """A folder for this jax and this kind of CPU: code compiled for one CPU may not run on another."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vdit" / f"jax-{version}-{_cpu()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        kind = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:8]
