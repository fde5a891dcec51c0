"""Killed and resumed, a run is bit for bit the run that was never stopped (short form of the tool)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_killed_run_is_the_undisturbed_run():
    options = ["--kills", "2", "--steps", "40", "--save-every", "4", "--pause", "0.03"]
    command = [sys.executable, str(ROOT / "tools/kill_resume.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout
    assert "bit for bit the undisturbed run" in done.stdout


@pytest.mark.slow
def test_many_kills_at_any_moment():
    command = [sys.executable, str(ROOT / "tools/kill_resume.py"), "--kills", "20", "--steps", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills" in done.stdout
