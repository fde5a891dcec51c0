"""Two processes that save one run: places of all streams, one host's failure or finding is everyone's."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.runs import Source
from vdit.checkpoint import Checkpointer
from vdit.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
STREAMS = {"streams": {str(number): {"read": 10 + number} for number in range(4)}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the run's folder, what each of the two hosts found)."""
    directory = tmp_path_factory.mktemp("run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    env |= {"VDIT_COORDINATOR": f"127.0.0.1:{port}", "VDIT_PROCESSES": "2"}
    command = [sys.executable, str(ROOT / "tests/checkpoint/two_hosts.py"), str(directory)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hosts = [subprocess.Popen(command, env=env | {"VDIT_PROCESS_ID": str(i)}, **pipes) for i in range(2)]
    try:
        outputs = [host.communicate(timeout=120) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    found = []
    for host, (out, err) in zip(hosts, outputs):
        assert host.returncode == 0, err[-3000:]
        line = next(line for line in out.splitlines() if line.startswith("ANSWER "))
        found.append(json.loads(line.removeprefix("ANSWER ")))
    return directory, found


def test_one_host_without_room_fails_the_save_of_all_at_once_and_is_named(run):
    for answer in run[1]:
        assert re.search(r"/2: not saved: host 1 \(.+\): a file may not grow that large here", answer["failure"])
        assert answer["steps"] == ["1", "3"], "no remains, and the next save succeeds"
        assert answer["seconds"] < 60, "Orbax's own barriers wait for 20 minutes"


def test_both_take_the_same_step_after_damage_and_the_first_says_so(run):
    directory, (first, second) = run
    for answer in (first, second):
        assert (answer["read"], answer["latest"], answer["exact"]) == (1, 1, True)
    assert "step 3 is damaged" in first["warnings"][0]
    assert "set aside as 3.damaged; going on from step 1" in first["warnings"][0]
    assert (len(first["warnings"]), second["warnings"]) == (1, [])
    assert (directory / "3.damaged").is_dir()


def test_each_host_hears_the_places_of_all_streams(run):
    assert [answer["place"] for answer in run[1]] == [STREAMS, STREAMS]


def test_the_folder_is_locked_once_for_both_and_refused_to_both(run):
    for answer in run[1]:
        assert "is being trained by pid" in answer["lock"]


def test_one_host_goes_on_with_the_same_bits_and_all_streams(run):
    source, shapes = Source(), {"kernel": (8, 50_000), "step": ()}
    types = {"kernel": jnp.float32, "step": jnp.int32}
    with Checkpointer(run[0]) as checkpointer:
        wanted = {name: jax.ShapeDtypeStruct(shape, types[name]) for name, shape in shapes.items()}
        got = checkpointer.restore({"params": wanted}, data=source)["params"]
    assert source.place == STREAMS
    expected = np.random.default_rng(1).standard_normal((8, 50_000)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(got["kernel"]), expected)


def test_a_plain_place_of_two_hosts_is_refused_to_one(run):
    directory = run[0]
    for host in range(2):
        (directory / "1" / "data" / f"host_{host}_of_2.json").write_text('{"dict": {"next_index": 3}}')
    os.remove(directory / "1" / "sha256.json")
    abstract = {"kernel": jax.ShapeDtypeStruct((8, 50_000), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    with (
        Checkpointer(directory, warn=str) as checkpointer,
        pytest.raises(CheckpointError, match="of 2 hosts, this run has 1: resume on 2, or start the data"),
    ):
        checkpointer.restore({"params": abstract}, data=Source())
