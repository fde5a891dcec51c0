"""Real processes share the data: the same batches from 1, 2 and 4 of them, through restarts; and the same latents."""

import itertools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.dist import data_hosts
from vdit.data import LatentStore
from vdit.dist.mesh import HostShare
from vdit.train.stages import Logging, run
from vdit.train.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


def start(hosts, *arguments):
    """The answers of `hosts` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    env |= {"VDIT_COORDINATOR": f"127.0.0.1:{port}", "VDIT_PROCESSES": str(hosts)}
    command = [sys.executable, str(ROOT / "tests/dist/data_hosts.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, env=env | {"VDIT_PROCESS_ID": str(i)}, **pipes) for i in range(hosts)]
    try:
        outputs = [child.communicate(timeout=180) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, err) in zip(children, outputs):
        assert child.returncode == 0, err[-3000:]
    lines = [next(line for line in out.splitlines() if line.startswith("ANSWER ")) for out, _ in outputs]
    return [json.loads(line.removeprefix("ANSWER ")) for line in lines]


def together(parts):
    """The global batches of the shares (in their order): batch -> rows."""
    return [list(itertools.chain(*rows)) for rows in zip(*parts)]


def write_place(folder, places):
    for number, place in enumerate(places):
        (folder / f"{number}.json").write_text(json.dumps(place))
    file = folder / "merged.json"
    file.write_text(json.dumps(data_hosts.merged(folder / f"{number}.json" for number in range(len(places)))))
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "latents"
    data_hosts.write_store(folder)
    return folder


@pytest.fixture(scope="module")
def chain(store, tmp_path_factory):
    """(all that one host reads; 3 batches of two hosts; the next 3, of four; what is left, of one)."""
    expected = [data_hosts.described(rows) for rows in data_hosts.rows_of(store, HostShare())]
    two = start(2, "read", store, "start", 3)
    place = write_place(tmp_path_factory.mktemp("two"), [host["own"]["place"] for host in two])
    four = start(4, "read", store, place, 3)
    place = write_place(tmp_path_factory.mktemp("four"), [host["own"]["place"] for host in four])
    last = data_hosts.rows_of(store, HostShare())
    last.set_state(json.loads(place.read_text()))
    return expected, two, four, [data_hosts.described(rows) for rows in last]


def test_two_then_four_then_one_host_read_what_one_reads(chain):
    expected, two, four, rest = chain
    assert [host["own"]["share"] for host in four] == [[i, 4] for i in range(4)]
    assert together(host["own"]["rows"] for host in two) == expected[:3]
    assert together(host["own"]["rows"] for host in four) == expected[3:6]
    assert rest == expected[6:]


def test_hosts_that_share_rows_read_the_same_ones(chain):
    expected, two, four, _ = chain
    assert [host["pairs"]["share"] for host in four] == [[0, 2], [0, 2], [1, 2], [1, 2]]
    assert [host["pairs"]["share"] for host in two] == [[0, 1], [0, 1]]
    assert together(four[i]["pairs"]["rows"] for i in (0, 2)) == expected[3:6]
    for pair in (four[:2], four[2:], two):
        assert pair[0]["pairs"] == pair[1]["pairs"]


def test_what_hosts_read_is_disjoint_and_complete_through_the_restarts(chain):
    _, two, four, rest = chain
    batches = [*itertools.chain(*(host["own"]["rows"] for host in (*two, *four))), *rest]
    seen = Counter(label for batch in batches for labels, _ in batch for label in labels)
    assert seen == Counter(dict.fromkeys(range(1, data_hosts.ITEMS + 1), data_hosts.PASSES))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    one = data_hosts.begin_run(tmp_path_factory.mktemp("one") / "run")
    two = data_hosts.begin_run(tmp_path_factory.mktemp("two") / "run")
    run(data_hosts.LATENTS, one, stages=("latents", "tokenizer"), logging=Logging(tensorboard=False))
    return one, two, start(2, "encode", two.root)


def test_two_hosts_encode_what_one_encodes(encoded):
    one, two, _ = encoded
    stores = [LatentStore(space.latents) for space in (one, two)]
    assert len(stores[0]) == len(stores[1]) == 40
    for i in range(40):
        a, b = (store[i] for store in stores)
        np.testing.assert_allclose(a.pop("latent"), b.pop("latent"), atol=1e-5)
        assert a == b
    for name in ("mean", "std"):
        np.testing.assert_allclose(one.statistics()[name], two.statistics()[name], rtol=1e-6, atol=1e-7)
    assert one.tokenizer.read_bytes() == two.tokenizer.read_bytes()
    assert one.experiment() == two.experiment() == Workspace(two.root).experiment()
    assert not list(two.root.glob(".*.writing"))


def test_the_first_host_does_what_is_done_once_and_all_hear_why_it_failed(encoded):
    _, _, (first, second) = encoded
    assert (first["made"], second["made"]) == (["once"], [])
    assert (first["error"], second["error"]) == ("TextError", "VditError")
    assert first["said"] == second["said"] == "no captions: give some"
