"""A command that runs on one host or on several: joining them, and ending together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

import vdit
from vdit.cli.exit_status import ending
from vdit.dist.heartbeat import Heartbeat, HostStatus, peer_is_gone
from vdit.dist.mesh import available_devices
from vdit.dist.multihost import initialize, leave
from vdit.errors import EX_TEMPFAIL, INTERRUPTED
from vdit.train.preemption import PreemptionHandler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """This process among others. peers: None where it is alone."""

    peers: Heartbeat | None
    place: HostStatus
    stop: PreemptionHandler


@contextlib.contextmanager
def joined(about: Mapping[str, str], *, wait: float | None = None) -> Iterator[Together]:
    """Around the work of a command: waits for the other hosts, then ends as all end.

    about: what must be the same on all. wait: see vdit.dist.multihost.initialize. An error on this host is told to the
    others, and ends the process here and now: jax's own end would wait minutes for hosts that wait for this one.
    """
    place, stop, peers = HostStatus(), PreemptionHandler(), None
    with stop, contextlib.ExitStack() as calm:
        try:
            # A signal while jax starts is kept until the others can be told of it.
            met = functools.partial(calm.enter_context, stop.held())
            peers = initialize(about=about | {"the code of vdit": _code()}, wait=wait, place=place, met=met)
            if peers is not None:
                stop.take_over()
                stop.last_words = lambda name: peers.fail(f"was stopped by {name}", EX_TEMPFAIL)
            calm.close()
            stop.check()
            available_devices()  # refused here, before any work
            yield Together(peers=peers, place=place, stop=stop)
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
    known = ending(error)
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
