"""On every layout the numbers are those of one device, and the shardings are those of the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from vdit.checkpoint import Checkpointer
from vdit.train.state import plan_state

ROOT = Path(__file__).resolve().parents[2]

# What one device holds of the toy's arrays, up [embed 8, mlp 16] and down [mlp 16, embed 8].
TABLE = {
    "fsdp": {"up/kernel": [1, 16], "up/bias": [16], "down/kernel": [16, 1], "down/bias": [1]},
    "mixed": {"up/kernel": [4, 8], "up/bias": [8], "down/kernel": [8, 4], "down/bias": [4]},
    "sequence": {"up/kernel": [4, 16], "up/bias": [16], "down/kernel": [16, 4], "down/bias": [4]},
}
COPIES = ("params", "ema", "mu", "nu")
ACTIVATION = {"fsdp": [1, 4, 8], "mixed": [2, 4, 8], "sequence": [4, 1, 8]}


def every_copy(layout):
    """The table for the parameters, their average and the optimizer's two moments."""
    return {f"{copy}/{leaf}": shape for copy in COPIES for leaf, shape in layout.items()}


@pytest.fixture(scope="module")
def one_device_state():
    return plan_state(tiny.init_params, tiny.train_config()).create(jax.random.key(3))


@pytest.fixture(scope="module")
def results(tmp_path_factory, one_device_state):
    directory = tmp_path_factory.mktemp("run")
    with Checkpointer(directory) as checkpointer:
        checkpointer.save(1, one_device_state.trees())
    command = [sys.executable, str(ROOT / "tests/dist/eight_devices.py"), str(directory)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", [*TABLE, "pieces"])
def test_losses_and_parameters_are_those_of_one_device(results, layout):
    np.testing.assert_allclose(results[layout]["losses"], results["one"]["losses"], rtol=2e-6)
    np.testing.assert_allclose(results[layout]["up"], results["one"]["up"], atol=2e-5)


@pytest.mark.parametrize("layout", TABLE)
@pytest.mark.parametrize("source", ["compiled", "held"])
def test_parameters_average_and_moments_are_split_as_the_table_says(results, layout, source):
    assert results[layout][source] == every_copy(TABLE[layout])


@pytest.mark.parametrize("layout", TABLE)
def test_activations_are_split_as_the_table_says(results, layout):
    assert results[layout]["activation"] == ACTIVATION[layout]


def test_what_does_not_divide_stays_whole_and_is_reported(results):
    assert not results["uneven"]["split"]
    assert "up/kernel: mlp of size 16 is not divisible by tensor=3" in results["uneven"]["report"]
    assert results["mixed"]["report"] == []


def test_a_checkpoint_of_one_device_restores_onto_eight(results, one_device_state):
    assert results["restored"]["held"] == every_copy(TABLE["fsdp"])
    kernel = np.asarray(one_device_state.params["up"]["kernel"])
    np.testing.assert_array_equal(results["restored"]["up"], kernel)
    np.testing.assert_array_equal(results["restored"]["ema"], kernel)
    np.testing.assert_array_equal(results["restored"]["key"], jax.random.key_data(one_device_state.key))
