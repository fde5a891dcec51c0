"""Two processes are one run: same losses as one, each saves its share and its place in the data."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from vdit.checkpoint import load_meta
from vdit.train.state import plan_state
from vdit.train.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    env |= {"VDIT_COORDINATOR": f"127.0.0.1:{port}", "VDIT_PROCESSES": "2"}
    command = [sys.executable, str(ROOT / "tests/dist/two_hosts.py"), str(directory)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hosts = [subprocess.Popen(command, env=env | {"VDIT_PROCESS_ID": str(i)}, **pipes) for i in range(2)]
    try:
        outputs = [host.communicate(timeout=180) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    found = []
    for host, (out, err) in zip(hosts, outputs):
        assert host.returncode == 0, err[-3000:]
        line = next(line for line in out.splitlines() if line.startswith("ANSWER "))
        found.append(json.loads(line.removeprefix("ANSWER ")))
    return directory, found


def test_two_hosts_train_as_one_across_a_restart(answers):
    _, (first, second) = answers
    state_losses = []
    plan = plan_state(tiny.init_params, tiny.train_config(steps=4))
    step = make_train_step(tiny.loss_fn, plan)
    state, data = plan.create(jax.random.key(0)), tiny.batches()
    for _ in range(4):
        state, metrics = step(state, next(data))
        state_losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(list(first["losses"].values()), state_losses, rtol=2e-6)
    assert second["losses"] == {}, "only the first host writes"
    assert (first["first"], second["first"]) == (True, False)


def test_each_host_holds_its_part_and_hears_the_other(answers):
    for answer in answers[1]:
        assert answer["held"] == [4, 16]


def test_each_host_saves_its_own_place(answers):
    directory, _ = answers
    places = sorted((directory / "4" / "data").glob("host_*"))
    assert [place.name for place in places] == ["host_0_of_2.json", "host_1_of_2.json"]
    assert load_meta(directory) == {"hosts": 2}
