"""Signals: noted where there is something to save, at once where there is not, whatever holds the main thread."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdit.errors import Preempted
from vdit.train.stopping import Stop

ROOT = Path(__file__).resolve().parents[2]
ENDS = [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]


def signalled(number):
    """Sends this process a signal, and is interrupted by it."""
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_where_nothing_is_to_be_saved_a_signal_ends_at_once(number, error):
    before = signal.getsignal(number)
    with pytest.raises(error), Stop():
        signalled(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_in_the_loop_it_is_noted_and_ends_the_run_after_the_step(number, error):
    with Stop() as stop:
        assert not stop.reached()
        with stop.deferred():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stop.asked == signal.Signals(number).name
            assert stop.reached()
        with pytest.raises(error):
            stop.check()


def test_a_second_ctrl_c_does_not_wait_for_the_save():
    with Stop() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signalled(signal.SIGINT)


def test_where_hosts_meet_and_part_signals_interrupt_nothing():
    with Stop() as stop:
        with stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        with pytest.raises(Preempted):
            stop.check()
        os.kill(os.getpid(), signal.SIGTERM)  # the end is on its way
        time.sleep(0.01)


HELD = """
import ctypes, sys
from vdit.train.stopping import Stop
with Stop() as stop:
    stop.last_words = lambda line: print("last words", flush=True)
    mutex = ctypes.create_string_buffer(64)
    print("held", flush=True)
    for _ in range(2):  # the second time waits for ever, and no signal wakes it
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="locks a mutex of glibc's twice")
def test_a_call_that_python_cannot_interrupt_does_not_hold_the_end_up():
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HELD], env=env, **pipes)
    try:
        assert process.stdout.readline() == "held\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75
    assert out == "last words\n"
    assert "vdit: SIGTERM while nothing was to be saved: start the same command again" in errors
