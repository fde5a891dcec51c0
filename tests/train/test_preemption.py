"""Signals: noted where there is something to save, at once where there is not, whatever holds the main thread."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from vdit.checkpoint import Checkpointer
from vdit.errors import Preempted
from vdit.train.preemption import PreemptionHandler
from vdit.train.resume import outlook
from vdit.train.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
ENDS = [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]


def signalled(number):
    """Sends this process a signal, and is interrupted by it."""
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_where_nothing_is_to_be_saved_a_signal_ends_at_once(number, error):
    before = signal.getsignal(number)
    with pytest.raises(error), PreemptionHandler():
        signalled(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_in_the_loop_it_is_noted_and_ends_the_run_after_the_step(number, error):
    with PreemptionHandler() as stop:
        assert not stop.reached()
        with stop.deferred():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stop.asked == signal.Signals(number).name
            assert stop.reached()
        with pytest.raises(error):
            stop.check()


def test_a_second_ctrl_c_does_not_wait_for_the_save():
    with PreemptionHandler() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signalled(signal.SIGINT)


def test_where_hosts_meet_and_part_signals_interrupt_nothing():
    with PreemptionHandler() as stop:
        with stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        with pytest.raises(Preempted):
            stop.check()
        os.kill(os.getpid(), signal.SIGTERM)  # the end is on its way
        time.sleep(0.01)


HELD = """
import ctypes, sys
from vdit.train.preemption import PreemptionHandler
with PreemptionHandler() as stop:
    stop.last_words = lambda name: print("last words", flush=True)
    stop.outlook = lambda: "this is what comes next"
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
        began = time.monotonic()
        out, errors = process.communicate(timeout=60)
        took = time.monotonic() - began
    finally:
        process.kill()
    assert process.returncode == 75
    assert out == "last words\n"
    assert errors == "vdit: stopped by SIGTERM; this is what comes next\n"
    assert took < 4


WORKING = """
import dataclasses, sys, jax, jax.numpy as jnp
from vdit.cli import main
from vdit.errors import Preempted

def run(*_):  # minutes of work, in the background
    jax.jit(lambda x: jax.lax.fori_loop(0, 10**6, lambda _, y: jnp.tanh(y @ y), x))(jnp.ones((1000, 1000)))
    raise Preempted("stopped by SIGTERM; this is what comes next")

main.COMMANDS["quickstart"] = dataclasses.replace(main.COMMANDS["quickstart"], run=run)
sys.argv = ["vdit", "quickstart"]
getattr(main, "entry", lambda: sys.exit(main.main()))()
"""


def test_a_command_that_is_stopped_does_not_wait_for_its_devices():
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", WORKING], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "vdit: stopped by SIGTERM; this is what comes next\n"


def test_what_the_same_command_will_do_is_what_the_folder_holds(tmp_path):
    space = Workspace(tmp_path)
    assert outlook("dit", space) == "the same command begins stage dit, of which nothing was saved yet"
    with Checkpointer(space.dit) as checkpointer:
        checkpointer.save(3, {"params": {"w": jnp.ones(2)}})
    (space.dit / "7").mkdir()  # not sealed
    assert outlook("dit", space) == "the same command goes on from step 3 of stage dit"
    assert outlook("latents", space) == "the same command begins stage latents, of which nothing was saved yet"
    (tmp_path / ".latents.0123.writing").mkdir()
    (tmp_path / ".latents.0123.writing" / "part-00000.json").write_text("{}")
    assert outlook("latents", space) == "the same command goes on with the latents"
