"""The same videos on every mesh, and on every host of several."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "tests/dist/sampling_layouts.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def results():
    done = subprocess.run(COMMAND, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("sequence=4 x fsdp=2", [1, 3, 10, 14, 5]),  # one video, with guidance: a row for each of fsdp
        ("sequence=2 x tensor=2 x fsdp=2", [3, 9, 80, 112, 3]),
        ("data=2 x fsdp=4", [3, 9, 80, 112, 3]),
    ],
)
def test_videos_are_those_of_one_device(results, layout, shape):
    """Also where neither tokens nor videos divide, and noise is drawn on the way."""
    assert results[layout]["shape"] == shape
    assert results[layout]["error"] < 1e-4


def test_tokens_are_shared_out_while_sampling(results):
    """Whole are the few values of a token alone, where the mesh does not divide the tokens."""
    assert [line for line in results["whole rows"] if not line.startswith("f32[1, 108, 20]")] == []


def test_each_host_gets_all_videos():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = ENVIRONMENT | {"VDIT_COORDINATOR": f"127.0.0.1:{port}", "VDIT_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hosts = [
        subprocess.Popen([*COMMAND, "hosts"], env=environment | {"VDIT_PROCESS_ID": str(i)}, **pipes) for i in range(2)
    ]
    try:
        outputs = [host.communicate(timeout=240) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    for host, (out, err) in zip(hosts, outputs):
        assert host.returncode == 0, err[-3000:]
        line = next(line for line in out.splitlines() if line.startswith("ANSWER "))
        answer = json.loads(line.removeprefix("ANSWER "))
        assert (answer["hosts"], answer["shape"]) == (2, [2, 3, 10, 14, 5])
        assert answer["error"] < 1e-5
