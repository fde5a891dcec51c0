"""What vdit needs of jax, Orbax and the C library and no public call gives: all of it in this file, each with a reason.

Every function says what to replace it by, once a public call exists. Where a version has moved a name, `client` and
`find_cluster` raise one clear error, and the others do nothing, which costs time or a clear message but no data.
"""

from __future__ import annotations

import ctypes
import glob
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from vdit.errors import HostsError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # of malloc.h
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")  # of NVIDIA, AMD, Google


def client() -> Any:
    """jax's client of the coordination service: keys, values and barriers between hosts, without their devices.

    jax 0.10 and 0.11 show the service only through collectives on the devices. A save ends in a background thread,
    and there a collective would meet those of the training step in another order on every host.

    Raises:
        HostsError: this version of jax keeps it elsewhere, or `jax.distributed` was not started.
    """
    try:
        from jax._src import distributed

        found = distributed.global_state.client
    except (ImportError, AttributeError):
        raise HostsError(_moved("the client of the coordination service")) from None
    if found is None:
        raise HostsError("jax.distributed was not started: start the command again")
    return found


def find_cluster(seconds: int) -> tuple[str | None, int | None, int | None, list[int] | None]:
    """(coordinator, processes, process id, local devices) as jax finds them: TPU pods, Slurm, Open MPI.

    `jax.distributed.initialize` finds them too, but does not tell, and starts at once.

    Args:
        seconds: how long to look.

    Raises:
        HostsError: this version of jax keeps it elsewhere.
    """
    try:
        from jax._src.clusters import ClusterEnv

        return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
    except (ImportError, AttributeError, TypeError):
        raise HostsError(_moved("the detection of a cluster")) from None


def orbax_barriers(parts: Iterable[str]) -> list[str]:
    """Names of the barriers where hosts wait for each other in the save that was just begun, as Orbax 0.12 has them.

    A host whose disk is full ends them, so that the others need not wait for its time-out, which is 20 minutes. Orbax
    has no call that gives a save up on all hosts.

    Args:
        parts: the names of the parts that are saved.

    Returns:
        The names; none where this version of Orbax numbers its saves elsewhere.
    """
    try:
        from orbax.checkpoint._src.futures import synchronization

        operation = synchronization.OperationIdGenerator.get_current_operation_id()
    except (ImportError, AttributeError):
        return []
    each = [f"[op={operation}.{part}] save_and_finalize_{operation}.{part}" for part in parts]
    ends = [f"{name}_{moment}_complete" for name in each for moment in ("commit", "finalize")]
    return [*ends, f"[op={operation}] save_checkpointables_async:finalize"]


def take_handler(number: int) -> Callable[[int], None] | None:
    """Takes a signal's handler away, and returns it: one that C code has set past Python.

    jax's preemption service sets one for SIGTERM, which puts a flag up and returns. `signal.getsignal` gives None for
    such a handler, so Python could set another one, but not call this one from it.
    """
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    address = library.signal(number, None)
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address else None


def hold_aborts() -> None:
    """Where the coordination service aborts the process, gives other threads seconds to end it with a reason.

    jax takes no callback here. C's own `sleep` becomes the handler of SIGABRT: it may be called in one, and is given
    the signal's number, 6, so that the thread that aborts stands still for 6 seconds, and aborts if nothing else has
    ended the process. A Python handler would wait for the main thread, which may be in a call that never comes back.
    """
    if sys.platform not in ("linux", "darwin"):
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def return_freed_memory() -> None:
    """Has glibc give freed arrays of 1 MiB and more back to the system at once.

    Else each thread keeps up to 64 MB for later ones, and an import of a large model holds gigabytes that nobody uses.
    glibc reads MALLOC_MMAP_THRESHOLD_ only when a process starts.
    """
    _mallopt({_M_MMAP_THRESHOLD: 2**20})


def keep_freed_memory() -> None:
    """Has glibc keep freed arrays for later ones, whatever their size, where no accelerator is plugged in.

    A step on CPUs allocates hundreds of megabytes and frees them. What is larger than 32 MB goes back to the system,
    and the next step waits until it is given, and cleared, again. The process keeps its peak of memory from then on.
    Called before jax finds its devices: threads that run by then have pools of their own, which hold 64 MB at most.
    """
    if not any(glob.glob(pattern) for pattern in _ACCELERATORS):
        _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1})


def _mallopt(values: Mapping[int, int]) -> None:
    """Where malloc is glibc's."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for name, value in values.items():
            mallopt(name, value)


def _moved(what: str) -> str:
    return f"jax {jax.__version__} keeps {what} elsewhere than vdit knows: install jax 0.10 or 0.11, or a newer vdit"
