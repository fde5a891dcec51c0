"""Topologies by name: what is taken, what is refused and how, before jax is imported."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from vdit.cli.main import main
from vdit.errors import ConfigError
from vdit.plan import topology as topologies
from vdit.plan.topology import CHIPS, child_environment, parse_topology

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "chips", "devices"),
    [("v5p:8x8x8", 512, 512), ("v5e:4x4", 16, 16), ("v4:2x2x2", 8, 8), ("7x:2x2x1", 4, 8), ("tpu7x:4x4x4", 64, 128),
     ("2*v5p:4x4x4", 128, 128), ("V6E:16x16", 256, 256), ("cpu:8", 8, 8)],
)  # fmt: skip
def test_chips_and_devices_are_told_apart(name, chips, devices):
    topology = parse_topology(name)
    assert (topology.chips, topology.devices) == (chips, devices)
    assert parse_topology(topology.name) == topology  # the name as kept is one that can be read again


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p", "write KIND:SHAPE"),
        ("v5p-16", "write KIND:SHAPE"),
        ("v5q:4x4x4", "nearest: v5p"),
        ("v5p:4x4", "3 dimensions"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v5p:3x4x4", "nearest: v5p:4x4x4"),
        ("0*v5p:4x4x4", "slices"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(name, words):
    with pytest.raises(ConfigError, match=words):
        parse_topology(name)


def test_a_chip_of_two_devices_gives_each_half():
    chip = CHIPS["tpu7x"]
    assert (chip.cores, chip.memory) == (2, pytest.approx(2 * 94.75 * 2**30))
    assert all(one.cores == 1 for one in CHIPS.values() if one is not chip)


def test_a_machine_without_the_compiler_is_told_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        topologies.importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    with pytest.raises(ConfigError, match=r"pip install .*\[tpu\]'"):
        child_environment(parse_topology("v5e:2x2"))
    assert child_environment(parse_topology("cpu:8"))["JAX_PLATFORMS"] == "cpu"


def test_the_child_sees_no_launcher_of_a_real_pod(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "pod-host-1,pod-host-2")
    monkeypatch.setenv("TPU_PROCESS_BOUNDS", "2,1,1")
    environment = child_environment(parse_topology("v5e:2x2"))
    assert environment["TPU_WORKER_HOSTNAMES"] == "localhost"
    assert "TPU_PROCESS_BOUNDS" not in environment


def refused(capsys, *arguments) -> str:
    assert main(["plan", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_command_refuses_in_one_line(capsys):
    pod = str(ROOT / "experiments" / "pod_tiny.py")
    assert "nearest: v5p" in refused(capsys, pod, "--topology", "v5q:4x4x4")
    assert "does not fit 16 devices" in refused(capsys, pod, "--topology", "v5e:4x4")
    assert "names no topology" in refused(capsys, str(ROOT / "experiments" / "clips.py"))
    assert "nearest: train" in refused(capsys, pod, "--program", "trian")


def test_what_the_compiler_does_not_know_is_said_in_one_line():
    """libtpu has its own list of shapes; what passes ours and not its comes back as an error, not a traceback."""
    pytest.importorskip("libtpu")
    code = (
        "from vdit.plan.topology import *; import os\n"
        "topology = parse_topology('v5e:18x18')\n"
        "os.environ.update(child_environment(topology))\n"
        "from vdit.errors import ConfigError\n"
        "try:\n    print(len(devices_of(topology)))\nexcept ConfigError as error:\n    print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
