"""Turns that hosts take: what one does while the others wait, without their devices.

Through jax's coordination service and not by a collective on the devices, whose time-outs are not made for an hour of
encoding. All hosts must come here in the same order. With one host nothing is sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
from jax._src import distributed  # the service has no public name; Orbax takes it from there, too

from vdit.errors import HostsError, VditError

PATIENCE = 24 * 3600  # seconds; a host that is lost ends the others long before
_numbers = itertools.count()  # each turn has a name of its own, the same on all hosts


def wait_for_all(name: str, *, seconds: float = PATIENCE) -> None:
    """Returns when every host has called it. HostsError, which names what was waited for, if one does not."""
    if jax.process_count() == 1:
        return
    try:
        distributed.global_state.client.wait_at_barrier(f"vdit/{next(_numbers)}/{name}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        raise _lost(name, error) from None


def on_primary_host(work: Callable[[], object], name: str, *, seconds: float = PATIENCE) -> None:
    """The first host does the work, once; the others return when it is done.

    What it raises of vdit's errors is raised on all: on the others as a VditError with the same words.
    """
    if jax.process_count() == 1:
        work()
        return
    client, key = distributed.global_state.client, f"vdit/{next(_numbers)}/{name}"
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
