"""A language model gives the same loss, gradients and tokens on every layout of 8 devices as on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ("mixed", "tensor")


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, str(ROOT / "tests/dist/lm_layouts.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_and_tokens_are_those_of_one_device(results, layout):
    one, here = results["one"], results[layout]
    assert here["loss"] == pytest.approx(one["loss"], rel=2e-6)
    np.testing.assert_allclose(here["logits"], one["logits"], atol=1e-4)
    largest = np.abs(one["gradient"]).max()
    assert largest > 1e-3
    np.testing.assert_allclose(here["gradient"], one["gradient"], atol=1e-4 * largest)
    assert here["tokens"] == one["tokens"]
    assert len({str(row[-6:]) for row in one["tokens"]}) > 4


def test_weights_and_cache_are_split_as_the_table_says(results):
    mixed, tensor = results["mixed"], results["tensor"]
    assert mixed["held"]["embed/embedding"] == [32, 16]
    assert mixed["held"]["blocks/gate/kernel"] == [2, 16, 32]
    assert mixed["held"]["blocks/attention/out/kernel"] == [2, 32, 16]
    assert tensor["held"]["head/kernel"] == [16, 16]
    assert mixed["cache"][1] == 2  # of 8 rows
    assert mixed["cache"][3] == 1  # of 2 heads of keys
    assert tensor["cache"][3] == 2  # 4 devices do not divide 2 heads
