"""Killed and resumed, a run is bit for bit the run that was never stopped (short form of the tool)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def killed(*options, timeout):
    command = [sys.executable, str(ROOT / "tools/kill_resume.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_killed_run_is_the_undisturbed_run():
    said = killed("--kills", "4", "--steps", "60", "--save-every", "5", timeout=400)
    assert "4 kills of " in said
    assert "no step lost, no hang, bit for bit the undisturbed run" in said


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "kills"), [(1, 40), (2, 10)])
def test_many_kills_at_any_moment(hosts, kills):
    said = killed("--kills", str(kills), "--hosts", str(hosts), timeout=3000)
    assert f"{kills} kills of " in said
