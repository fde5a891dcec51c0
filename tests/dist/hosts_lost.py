"""One of several processes that do nothing but know of each other, until one of them comes to its end.

    hosts_lost.py HOW WHO
"""

import os
import signal
import sys
import time

from jax._src.distributed import State

from vdit.cli.process import distributed_session
from vdit.errors import DataError

STEPS = 400  # of 0.05 s: longer than the test waits


def main(how: str, who: int) -> None:
    me = int(os.environ["VDIT_PROCESS_ID"])
    if how == "starting" and me == who:
        signal_while_jax_starts()
    with distributed_session({}) as together:
        together.status.saved = lambda: 7
        if how == "last":
            return the_last(together, me == who)
        for step in range(1, STEPS):
            together.status.step, together.status.phase = step, "counting"
            time.sleep(0.05)
            if step < 10 or me != who:
                continue
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stands":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "mend":
                raise DataError("clip 7 is broken: remove it")
            if how == "fault":
                raise ZeroDivisionError("by me")
            if how == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)


def signal_while_jax_starts() -> None:
    """It has met the others, and they wait for it."""
    start = State.initialize_preemption_sync_manager

    def signalled(state):
        os.kill(os.getpid(), signal.SIGTERM)
        start(state)

    State.initialize_preemption_sync_manager = signalled


def the_last(together, me: bool) -> None:
    """A signal comes to a host in its last save, as it were, when the others are done with theirs."""
    with together.stop.deferred():
        if me:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.2)  # jax looks for signals once a second, and asks the others


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
