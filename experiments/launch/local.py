#!/usr/bin/env python3
"""Several processes of one run on this machine, started again when the machine or a process fails.

    python experiments/launch/local.py --processes 2 --gpus-each 4 -- vdit train EXPERIMENT.py --workdir RUN
    python experiments/launch/local.py --processes 2 --cpus-each 4 -- vdit train EXPERIMENT.py --workdir RUN

Each process is a host to the others, with accelerators of its own. Exit code 75 of a process, or its death by a
signal, starts all of them again from the last checkpoint, at most --restarts times; 2 (something to be fixed) and 1
(a fault) do not. SIGTERM, Ctrl-C and SIGUSR1 are passed on; the first two end the restarts, too.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

EX_TEMPFAIL = 75  # exit code of vdit: start the same command again
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job to its end; returns the exit code: 0, or that of the first process that ended another way."""
    options = parse(argv)
    keeper = Keeper(options)
    for number in PASSED_ON:
        signal.signal(number, keeper.pass_on)
    for attempt in range(options.restarts + 1):
        code = keeper.run()
        if code == 0 or keeper.stopped or not (code == EX_TEMPFAIL or code < 0):
            break
        if attempt < options.restarts:
            say(f"starting again ({attempt + 1} of at most {options.restarts} times)")
        else:
            say(f"not started again: {options.restarts} restarts were allowed (--restarts)")
    return code if code >= 0 else 128 - code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    words = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(
        description=words[0], epilog="\n\n".join(words[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many processes")
    parser.add_argument("--gpus-each", type=int, metavar="N", help="GPUs of each process, from the first on")
    parser.add_argument("--cpus-each", type=int, metavar="N", help="simulated devices of each process, on the CPU")
    parser.add_argument("--restarts", type=int, default=10, metavar="N", help="start again at most so often (10)")
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS",
        help="how long the others may take to end when one has (60); then they are killed",
    )  # fmt: skip
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --: vdit train ...")
    options = parser.parse_args(argv)
    if options.processes < 1:
        parser.error(f"--processes={options.processes}: must be 1 or more")
    return options


def environment(options: argparse.Namespace, port: int, number: int) -> dict[str, str]:
    """What process `number` is told, beside this process's own environment."""
    told = {
        "VDIT_COORDINATOR": f"127.0.0.1:{port}",
        "VDIT_PROCESSES": str(options.processes),
        "VDIT_PROCESS_ID": str(number),
        "VDIT_HEARTBEAT": os.environ.get("VDIT_HEARTBEAT", "20"),
    }
    if options.gpus_each:
        first = number * options.gpus_each
        told["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i in range(first, first + options.gpus_each))
    if options.cpus_each:
        flags = os.environ.get("XLA_FLAGS", "")
        told["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={options.cpus_each}".strip()
        told["JAX_PLATFORMS"] = "cpu"
    return told


class Keeper:
    """Starts the processes, watches them, and passes signals on."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._processes: list[subprocess.Popen] = []
        self.stopped = False

    def run(self) -> int:
        """One start; returns when all processes have ended, with the exit code that decides what comes next."""
        port = free_port()
        self._processes = [self._start(environment(self._options, port, i), i) for i in range(self._options.processes)]
        order = self._wait()
        for number in order:
            say(f"process {number} ended: {in_words(self._processes[number].returncode)}")
        codes = [self._processes[number].returncode for number in order]
        final = [code for code in codes if code != EX_TEMPFAIL and code > 0]  # these are not started again
        return next(iter(final), next((code for code in codes if code != 0), 0))

    def pass_on(self, number: int, frame: object) -> None:
        """Handles a signal."""
        self.stopped |= number != signal.SIGUSR1
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _start(self, told: Mapping[str, str], number: int) -> subprocess.Popen:
        # a session of its own: the terminal's Ctrl-C comes by way of this process, once
        process = subprocess.Popen(
            self._options.command, env=os.environ | dict(told), stderr=subprocess.PIPE, start_new_session=True
        )
        threading.Thread(target=_relay, args=(process, number), daemon=True).start()
        return process

    def _wait(self) -> list[int]:
        """The processes in the order in which they ended; those that do not end soon after the first are killed."""
        order: list[int] = []
        until = float("inf")
        while len(order) < len(self._processes):
            for number, process in enumerate(self._processes):
                if number not in order and process.poll() is not None:
                    order.append(number)
                    if process.returncode != 0:
                        until = min(until, time.monotonic() + self._options.patience)
            if time.monotonic() > until:
                say(f"the others did not end within {self._options.patience:g} s: killed")
                for process in self._processes:
                    process.kill()
                until = float("inf")
            time.sleep(0.1)
        return order


def _relay(process: subprocess.Popen, number: int) -> None:
    """Copies a process's stderr to this one's, with its number before each line."""
    for line in process.stderr:
        sys.stderr.write(f"[{number}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_words(code: int) -> str:
    """"exit code 75 (start again)", "killed by SIGKILL"."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    words = {0: "done", EX_TEMPFAIL: "start again", 2: "something to be fixed", 1: "a fault", 130: "Ctrl-C"}
    return f"exit code {code}" + (f" ({words[code]})" if code in words else "")


def say(text: str) -> None:
    """A line of the launcher's own."""
    print(f"[launch] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
