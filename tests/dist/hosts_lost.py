"""One of several processes that do nothing but know of each other, until one of them comes to its end.

    hosts_lost.py HOW WHO
"""

import os
import signal
import sys
import time

from vdit.cli.hosts import joined
from vdit.errors import DataError

STEPS = 400  # of 0.05 s: longer than the test waits


def main(how: str, who: int) -> None:
    with joined({}) as together:
        me = int(os.environ["VDIT_PROCESS_ID"])
        together.place.saved = lambda: 7
        for step in range(1, STEPS):
            together.place.step, together.place.phase = step, "counting"
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
