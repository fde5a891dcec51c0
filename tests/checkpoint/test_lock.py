"""Two runs pointed at one folder: the second is refused, unless the first has ended, however it did."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdit.checkpoint import RunLock
from vdit.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from vdit.checkpoint import RunLock
with RunLock(sys.argv[1], patience=float(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts processes that take the lock and hold it until they are told to end."""
    started = []

    def start(patience=0.0):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), str(patience)], env=env, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_run_is_refused_and_told_who_holds_the_folder(tmp_path, hold):
    first = hold()
    assert first.stdout.readline() == "held\n"
    second = hold()
    _, said = second.communicate(timeout=60)
    last = said.strip().splitlines()[-1]
    assert f"{tmp_path} is being trained by pid {first.pid} on {os.uname().nodename} since 20" in last
    assert last.endswith("stop it, or give another folder")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_no_lock(tmp_path, hold, how):
    first = hold()
    assert first.stdout.readline() == "held\n"
    first.send_signal(how)
    with RunLock(tmp_path):  # at once: patience covers the time that a process takes to die
        assert f"{os.getpid()}" in (tmp_path / "run.lock").read_text()


def test_a_predecessor_that_is_just_ending_is_waited_for(tmp_path, hold):
    first = hold()
    assert first.stdout.readline() == "held\n"
    second = hold(patience=60.0)
    time.sleep(1.0)
    first.stdin.write("\n")
    first.stdin.flush()
    assert second.stdout.readline() == "held\n"


def test_it_is_free_again_after_use(tmp_path):
    for _ in range(2):
        second = RunLock(tmp_path / "new", patience=0.0)
        with RunLock(tmp_path / "new"), pytest.raises(CheckpointError, match="is being trained by pid"):
            second.__enter__()


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_forked_child_does_not_keep_it(tmp_path):
    """Workers that read data outlive a killed parent for a while."""
    with RunLock(tmp_path, patience=0.0):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with RunLock(tmp_path, patience=5.0):  # the child needs a moment to let go
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_filesystem_without_locks_is_said_and_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    heard = []
    with RunLock(tmp_path, warn=heard.append):
        pass
    assert len(heard) == 1
    assert "has no locks" in heard[0]
