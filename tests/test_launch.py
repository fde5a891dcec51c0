"""The launchers: the one for one machine for real, the others as far as they can be read without a cluster."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dist.job import QUICK, ROOT, losses, make_run, saved_steps

LAUNCH = ROOT / "experiments" / "launch"


def load_local():
    spec = importlib.util.spec_from_file_location("launch_local", LAUNCH / "local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def children(pid):
    """Process ids of the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_killed_process_is_noticed_and_all_start_again_and_finish(tmp_path, compile_cache):
    folder = make_run(tmp_path / "run")
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, "VDIT_HEARTBEAT": "3",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    steps = 40
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--cpus-each", "2", "--restarts", "2"]
    command += ["--", sys.executable, "-m", "vdit.cli.main", "train", str(folder.with_suffix(".py"))]
    command += ["--workdir", str(folder), "--stage", "dit", "--no-tensorboard", f"--cfg.dit_train.steps={steps}"]
    launcher = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 180
        while not saved_steps(folder) and time.monotonic() < until and launcher.poll() is None:
            time.sleep(0.05)
        os.kill(children(launcher.pid)[1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=180)
    finally:
        for child in children(launcher.pid) if launcher.poll() is None else ():
            os.kill(child, signal.SIGKILL)
        launcher.kill()
        launcher.wait()
    assert launcher.returncode == 0, errors[-3000:]
    assert "[launch] process 1 ended: killed by SIGKILL" in errors
    assert re.search(r"\[0\] vdit: host 1 \(.*\) was lost .* it goes on from step \d+", errors)
    assert "[launch] process 0 ended: exit code 75 (start again)" in errors
    assert "[launch] starting again (1 of at most 2 times)" in errors
    assert sorted(losses(folder)) == list(range(1, steps + 1))
    assert max(saved_steps(folder)) == steps


@pytest.mark.parametrize(
    ("script", "code", "starts"),
    [
        ("import sys; sys.exit(0)", 0, 1),
        ("import sys; sys.exit(2)", 2, 1),
        ("import sys; sys.exit(75)", 75, 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, 3),
        ("import os, sys; sys.exit(2 if os.environ['VDIT_PROCESS_ID'] == '1' else 75)", 2, 1),
    ],
)
def test_what_is_started_again(tmp_path, script, code, starts):
    count = tmp_path / "starts"
    script = f"open({str(count)!r}, 'a').write('x'); {script}"
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--restarts", "2"]
    command += ["--", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert len(count.read_text()) == 2 * starts


def test_processes_share_out_the_gpus():
    local = load_local()
    options = local.parse(["--processes", "2", "--gpus-each", "4", "--", "vdit", "train"])
    assert local.environment(options, 1, 0)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert local.environment(options, 1, 1)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert local.environment(options, 1, 1)["VDIT_PROCESS_ID"] == "1"
