"""What vdit asks of the C library, in processes of their own."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
from vdit import internals

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * (48 * 2**20)  # more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages = 48 * 2**20 // resource.getpagesize()
print(faults(4) / (4 * pages))
{call}
faults(1)
print(faults(4) / (4 * pages))
"""


def shares(call: str) -> list[float]:
    """Page faults for each page of freed and allocated arrays, before a call and after it."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept():
    before, after = shares("internals._ACCELERATORS = (); internals.keep_freed_memory()")
    if before < 0.5:
        pytest.skip("malloc keeps large arrays here by itself, or its pages are huge")
    assert after < 0.01


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_returned_beside_an_accelerator():
    before, after = shares("internals._ACCELERATORS = ('/dev/null',); internals.keep_freed_memory()")
    assert after == pytest.approx(before, rel=0.1)
