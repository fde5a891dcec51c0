"""A plan's memory against a real step on eight simulated devices: the same planning code, for this machine's CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures() -> dict:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "tests" / "plan" / "real_memory.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["parameters", "EMA", "optimizer", "batch"])
def test_what_a_device_holds_is_what_was_planned_to_the_byte(figures, kind):
    planned, held = figures["held"][kind]
    assert held == [planned]  # and the same on every device


def test_the_compilers_arguments_are_the_state_and_the_batch(figures):
    planned, held = figures["arguments"]
    assert held == [pytest.approx(planned, abs=1024)]  # scalars and the key are padded


def test_the_total_is_the_sum_of_its_kinds(figures):
    total, of_kinds = figures["total"]
    assert total == of_kinds


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of resident memory")
def test_temporaries_are_those_of_the_run(figures):
    """Measured 1.02 to 1.05 of the plan; the rest is what any first run loads."""
    planned, rise = figures["temporaries"]
    assert planned > 100e6
    assert 0.8 * planned < rise < 1.3 * planned + 50e6
