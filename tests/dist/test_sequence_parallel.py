"""Rows shared out over devices: attention is that of one device, and sends and holds no more than it must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARE = 2 * 2048 * 8 * 16 * 4 / 8  # bytes of a device's part of q (or k, v, their gradients), float32


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, str(ROOT / "tests/dist/sequence_parallel_run.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_outputs_and_gradients_are_those_of_one_device(results):
    """Whatever the mesh divides: packed rows, clips over devices, padding, times, kernels, a mapped function."""
    assert len(results["errors"]) == 20
    assert {name: error for name, error in results["errors"].items() if not error < 5e-6} == {}


def test_exchanging_heads_takes_all_to_all_alone(results):
    """q, k, v, the output and four gradients go once, each 7/8 of a share; sums of the output's gradient, and clips."""
    found = results["traffic"]["ulysses"]
    assert set(found["bytes"]) == {"all-to-all", "all-gather"}
    assert found["axes"] == ["sequence"]
    assert 7 / 8 * 8 * SHARE <= found["bytes"]["all-to-all"] <= 7 / 8 * 8.2 * SHARE
    assert found["bytes"]["all-gather"] < SHARE / 8


def test_a_ring_passes_on_to_the_next_alone(results):
    """Keys and values 7 times; in the backward queries and the output's gradient 7 times, the queries' gradient 8."""
    found = results["traffic"]["ring"]
    assert set(found["bytes"]) == {"collective-permute"}
    assert found["axes"] == ["sequence"]
    assert (7 * 4 + 8) * SHARE <= found["bytes"]["collective-permute"] <= (7 * 4 + 8) * 1.05 * SHARE


def test_groups_that_exchange_heads_form_rings(results):
    """4 heads on 8 devices: groups of 4, two of which pass keys on."""
    found = results["traffic"]["both"]["bytes"]
    assert set(found) == {"all-to-all", "all-gather", "collective-permute"}
    assert found["collective-permute"] < results["traffic"]["ring"]["bytes"]["collective-permute"] / 8


def test_rows_and_heads_on_other_axes_send_nothing_there(results):
    assert results["traffic"]["mixed"]["axes"] == ["sequence"]


def test_memory_is_shared_out(results):
    one = results["traffic"]["one device"]["temporaries"]
    assert results["traffic"]["ulysses"]["temporaries"] < one / 6
    assert results["traffic"]["mixed"]["temporaries"] < one / 6
    assert results["traffic"]["ring"]["temporaries"] < one / 3  # what travels is held twice


def test_a_linear_layer_sends_what_a_plain_product_does(results):
    """Its derivative is written by hand: parameters gathered, gradients summed, and no other traffic."""
    ours, plain = results["linear"]["ours"], results["linear"]["plain"]
    assert set(ours) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert sum(ours.values()) <= sum(plain.values())


def test_rotations_stay_where_their_tokens_are(results):
    assert results["rotations"] == 0


def test_a_past_is_shared_out_as_tokens_are(results):
    """The numbers of one device; and to lay new keys beside it sends nothing."""
    for error, sent in results["past"]:
        assert error < 1e-5
        assert sent == 0
