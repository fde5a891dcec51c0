"""Several hosts: starting together, ending together, and what one does while the others wait.

`wait_for_all` and `on_primary_host` go through jax's coordination service and not by a collective on the devices, whose
time-outs are not made for an hour of encoding. All hosts must call them in the same order. One host sends nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
import jax
import numpy as np
from jax.experimental import multihost_utils
import vdit
from vdit import internals
from vdit.dist.heartbeat import Heartbeat, HostStatus
from vdit.dist.rendezvous import roll_call
from vdit.errors import EX_TEMPFAIL, ConfigError, HostsError
import itertools
from collections.abc import Callable
from vdit.errors import HostsError, VditError

# Set by the launcher of the job. The first three are read by vdit; the others say that jax itself
# can find its peers (TPU pods, Slurm, Open MPI).
_OWN = ("VDIT_COORDINATOR", "VDIT_PROCESSES", "VDIT_PROCESS_ID")
_CLUSTER = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_ASK_JAX = "VDIT_CLUSTER"  # set to 1 where no variable tells that there are peers, as on the machines of a TPU pod
_WAIT, _HEARTBEAT = "VDIT_WAIT_FOR_HOSTS", "VDIT_HEARTBEAT"
_SHUTDOWN = 60  # seconds: all hosts come to it at once, see Peers.leave


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostConfig:
    """One process of several: where the first of them listens, how many there are, which this is.

    local_devices: which of the machine's accelerators are this process's; None for all.
    """

    coordinator: str
    processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None

    def __post_init__(self):
        if not 0 <= self.process_id < self.processes:
            raise ConfigError(f"process_id={self.process_id} must be from 0 to {self.processes - 1}")


def from_environment(environ: Mapping[str, str] | None = None) -> HostConfig | None:
    """The HostConfig that VDIT_COORDINATOR, VDIT_PROCESSES and VDIT_PROCESS_ID give, or None if unset."""
    environ = os.environ if environ is None else environ
    present = [name for name in _OWN if environ.get(name)]
    if not present:
        return None
    if len(present) < len(_OWN):
        missing = [name for name in _OWN if name not in present]
        raise ConfigError(f"{present[0]} is set, so {missing} must be set too (or none of {list(_OWN)})")
    try:
        processes, process_id = int(environ[_OWN[1]]), int(environ[_OWN[2]])
    except ValueError as error:
        raise ConfigError(f"VDIT_PROCESSES and VDIT_PROCESS_ID must be whole numbers: {error}") from None
    return HostConfig(coordinator=environ[_OWN[0]], processes=processes, process_id=process_id)


def initialize(
    config: HostConfig | None = None,
    *,
    cluster: bool = False,
    about: Mapping[str, str] | None = None,
    wait: float | None = None,
    status: HostStatus | None = None,
    met: Callable[[], object] = lambda: None,
) -> Heartbeat | None:
    """Joins the other hosts, if there are any; must run before jax touches a device.

    With `config`, or with the VDIT_* variables, those say who the peers are; with `cluster` (or VDIT_CLUSTER=1), or
    where the variables of a cluster are set, jax finds them itself. Otherwise nothing happens, and the answer is None.

    about: what must be the same on all hosts, beside the versions of vdit and jax. wait: seconds until all hosts must
    have come (VDIT_WAIT_FOR_HOSTS, or 300). Raises on all hosts that came, HostsError or ConfigError, with one line
    that names the hosts that are missing or do not fit. From then on a host that falls silent for VDIT_HEARTBEAT (100)
    seconds ends the others: see vdit.dist.heartbeat. status: where this host stands, kept by the caller. met: called once
    all hosts have come, before jax starts with them: from here on no exception may come between, see `PreemptionHandler.held`.
    """
    config = config or from_environment()
    if config is None:
        if not cluster and os.environ.get(_ASK_JAX, "0") == "0" and not _several_workers(os.environ):
            return None
        config = _found_by_jax()
    wait = _seconds(_WAIT, 300.0) if wait is None else wait
    heartbeat = _seconds(_HEARTBEAT, 100.0)
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "").rpartition(":")[0].strip("[]")
    about = _versions() | dict(about or {})
    roll_call(config.coordinator, config.processes, config.process_id, about, seconds=wait, bind=bind)
    met()
    with _ends_after(max(wait, 60)) as seconds:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process_id,
            local_device_ids=config.local_devices,
            # Ours are to find out first: jax ends the process by an abort.
            initialization_timeout=int(seconds + 30),
            heartbeat_timeout_seconds=int(2 * heartbeat + 30),
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    client = internals.client()
    peers = Heartbeat(
        client, config.coordinator, config.process_id, config.processes, heartbeat=heartbeat, status=status or HostStatus()
    )
    peers.start()
    atexit.register(peers.leave)  # runs before jax's own shutdown, which was registered earlier
    return peers


def leave(peers: Heartbeat | None) -> None:
    """Ends a run in good order: waits for the other hosts, so that none takes this one for lost."""
    if peers is not None:
        peers.leave()
        jax.distributed.shutdown()


@contextlib.contextmanager
def _ends_after(seconds: float) -> Iterator[float]:
    """Ends the process where jax's start takes longer: a host has gone between the roll call and that."""

    def end() -> None:
        line = f"a host was lost while jax started (waited {seconds:g} s): start the same command again"
        print(f"vdit: {line}", file=sys.stderr, flush=True)
        os._exit(EX_TEMPFAIL)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield seconds
    finally:
        timer.cancel()


def is_primary_host() -> bool:
    """Whether this process writes what is written once: logs, metrics, reports."""
    return jax.process_index() == 0


def _found_by_jax() -> HostConfig:
    """What jax finds out about its peers; it offers no public way to ask before it starts with them."""
    wait = int(_seconds(_WAIT, 300.0))
    found = internals.find_cluster(wait)
    coordinator, processes, process_id, devices = found
    if coordinator is None or processes is None or process_id is None:
        raise HostsError(f"jax did not find the other hosts of this job: set {', '.join(_OWN)} on each")
    return HostConfig(
        coordinator=coordinator,
        processes=processes,
        process_id=process_id,
        local_devices=None if devices is None else tuple(devices),
    )


def _several_workers(environ: Mapping[str, str]) -> bool:
    workers = len([name for name in environ.get(_CLUSTER[0], "").split(",") if name])
    tasks = [environ.get(name, "1") for name in _CLUSTER[2:]]
    return workers > 1 or bool(environ.get(_CLUSTER[1])) or any(t.isdigit() and int(t) > 1 for t in tasks)


def _versions() -> dict[str, str]:
    return {"the version of vdit": vdit.__version__, "the version of jax": jax.__version__}


def _seconds(name: str, default: float) -> float:
    try:
        seconds = float(os.environ.get(name) or default)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{name}={os.environ[name]!r}: must be a number of seconds above 0")
    return seconds


PATIENCE = 24 * 3600  # seconds; a host that is lost ends the others long before
_numbers = itertools.count()  # each turn has a name of its own, the same on all hosts


def wait_for_all(name: str, *, seconds: float = PATIENCE) -> None:
    """Returns when every host has called it. HostsError, which names what was waited for, if one does not."""
    if jax.process_count() == 1:
        return
    try:
        internals.client().wait_at_barrier(f"vdit/{next(_numbers)}/{name}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        raise _lost(name, error) from None


def on_primary_host(work: Callable[[], object], name: str, *, seconds: float = PATIENCE) -> None:
    """The first host does the work, once; the others return when it is done.

    What it raises of vdit's errors is raised on all: on the others as a VditError with the same words.
    """
    if jax.process_count() == 1:
        work()
        return
    client, key = internals.client(), f"vdit/{next(_numbers)}/{name}"
    if jax.process_index() != 0:
        try:
            said = client.blocking_key_value_get(key, int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            raise _lost(name, error) from None
        if said != "done":
            raise VditError(said)
        return
    try:
        work()
    except VditError as error:
        client.key_value_set(key, str(error))
        raise
    client.key_value_set(key, "done")


def _lost(name: str, error: Exception) -> HostsError:
    reason = str(error).strip().splitlines()[0]
    return HostsError(f"waiting for the other hosts ({name}) failed: {reason}; start the same command again")
