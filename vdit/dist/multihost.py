"""Starting on several hosts, and what hosts must agree on."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from vdit.errors import ConfigError

# Set by the launcher of the job. The first three are read by vdit; the others say that jax itself
# can find its peers (TPU pods, Slurm, Open MPI).
_OWN = ("VDIT_COORDINATOR", "VDIT_PROCESSES", "VDIT_PROCESS_ID")
_CLUSTER = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostConfig:
    """One process of several: where the first of them listens, how many there are, which this is."""

    coordinator: str
    processes: int
    process_id: int

    def __post_init__(self):
        if not 0 <= self.process_id < self.processes:
            raise ConfigError(f"process_id={self.process_id} must be from 0 to {self.processes - 1}")


def from_environment(environ: dict[str, str] | None = None) -> HostConfig | None:
    """The HostConfig that VDIT_COORDINATOR, VDIT_PROCESSES and VDIT_PROCESS_ID give, or None if unset."""
    environ = dict(os.environ) if environ is None else environ
    given = [name for name in _OWN if environ.get(name)]
    if not given:
        return None
    if len(given) < len(_OWN):
        missing = [name for name in _OWN if name not in given]
        raise ConfigError(f"{given[0]} is set, so {missing} must be set too (or none of {list(_OWN)})")
    try:
        processes, process_id = int(environ[_OWN[1]]), int(environ[_OWN[2]])
    except ValueError as error:
        raise ConfigError(f"VDIT_PROCESSES and VDIT_PROCESS_ID must be whole numbers: {error}") from None
    return HostConfig(coordinator=environ[_OWN[0]], processes=processes, process_id=process_id)


def initialize(config: HostConfig | None = None, *, cluster: bool = False) -> bool:
    """Joins the other hosts, if there are any; must run before jax touches a device.

    With `config`, or with the VDIT_* variables, those say who the peers are; with `cluster`, or on
    a pod of several workers, jax finds them itself. Otherwise nothing happens. Returns whether the
    process is one of several hosts (or was asked to be).
    """
    config = config or from_environment()
    if config is not None:
        jax.distributed.initialize(config.coordinator, config.processes, config.process_id)
        return True
    if cluster or _several_workers(os.environ):
        jax.distributed.initialize()
        return True
    return False


def _several_workers(environ) -> bool:
    workers = len([name for name in environ.get(_CLUSTER[0], "").split(",") if name])
    tasks = [environ.get(name, "1") for name in _CLUSTER[2:]]
    return workers > 1 or bool(environ.get(_CLUSTER[1])) or any(t.isdigit() and int(t) > 1 for t in tasks)


def is_first() -> bool:
    """Whether this process writes what is written once: logs, metrics, reports."""
    return jax.process_index() == 0


def any_host(flag: bool) -> bool:
    """Whether the flag is set on any host; every host must call it. One host: no communication."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
