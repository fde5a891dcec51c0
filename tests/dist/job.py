"""`vdit train` as several real processes on this machine: what the tests of hosts start, disturb and look at."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vdit.config import load_config
from vdit.data.latents import write_latents
from vdit.train.logging import read_json_lines
from vdit.train.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
# A DiT without text on the latents of `make_run`; the mesh of 4 devices is the same however many processes hold them.
EXPERIMENT = """
from tests.conftest import TINY
from vdit.config import apply_overrides
from vdit.quickstart.config import experiment

def config():
    return apply_overrides(experiment(), (
        *TINY, "backbone.text=none", "dit_train.save_every=2", "dit_train.keep=9", "dit_train.batch_size=4",
        "dit_train.optimizer.schedule=constant", "mesh.data=-1", "mesh.fsdp=2",
    ))
"""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile
LONG = 3_000  # steps: more than any test waits for, and not for ever


def make_run(folder: Path) -> Path:
    """A run's folder with latents, and the experiment beside it."""
    space, rng = Workspace(folder), np.random.default_rng(0)
    space.root.mkdir(parents=True)
    items = ({"latent": rng.standard_normal((1 + i % 2, 4, 4, 8)), "id": str(i)} for i in range(24))
    index = write_latents(space.latents, items, vae="test", dtype="float32")
    space.save_statistics(index["mean"], index["std"])
    folder.with_suffix(".py").write_text(EXPERIMENT)
    space.save_experiment(load_config(folder.with_suffix(".py")))
    return folder


class Job:
    """The processes of one start of a run; a context manager that leaves none behind.

    devices: of each process. processes: 0 for one that is not told of others. heartbeat: seconds, as
    VDIT_HEARTBEAT.
    """

    def __init__(
        self, folder: Path, cache: Path, processes: int, devices: int, *arguments: str, heartbeat: float = 30.0
    ):
        self.folder = folder
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        coordinator = {
            "VDIT_COORDINATOR": f"127.0.0.1:{free_port()}",
            "VDIT_PROCESSES": str(processes),
            "VDIT_HEARTBEAT": str(heartbeat),
            "VDIT_WAIT_FOR_HOSTS": "120",
        }
        env |= coordinator if processes else {}
        command = [sys.executable, "-m", "vdit.cli.main", "train", str(folder.with_suffix(".py"))]
        command += ["--workdir", str(folder), "--stage", "dit", "--no-tensorboard", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        numbers = [{"VDIT_PROCESS_ID": str(i)} for i in range(processes)] or [{}]
        self.hosts = {i: subprocess.Popen(command, env=env | number, **pipes) for i, number in enumerate(numbers)}

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        for host in self.hosts.values():
            host.kill()
            host.communicate()

    def signal(self, host: int, number: signal.Signals) -> None:
        self.hosts[host].send_signal(number)

    def reach(self, step: int, seconds: float = 180) -> None:
        """Waits until the metrics of a step are on disk."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and all(host.poll() is None for host in self.hosts.values()):
            if any(line["step"] >= step for line in read_json_lines(self.folder / "logs" / "dit.jsonl")):
                return
            time.sleep(0.05)
        ended = {number: host.poll() for number, host in self.hosts.items()}
        raise AssertionError(f"step {step} did not come; exit codes so far: {ended}")

    def end(self, seconds: float = 180) -> dict[int, tuple[int, str]]:
        """Host -> (exit code, what it wrote to stderr), when all have ended."""
        until = time.monotonic() + seconds
        ended = {}
        for number, host in self.hosts.items():
            _, errors = host.communicate(timeout=max(until - time.monotonic(), 1))
            ended[number] = host.returncode, errors
        return ended

    def done(self) -> None:
        """Waits for the end, which must be a good one."""
        for code, errors in self.end().values():
            assert code == 0, errors[-3000:]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_json_lines(folder / "logs" / "dit.jsonl")}


def saved_steps(folder: Path) -> list[int]:
    """Steps whose checkpoint is complete."""
    folders = (sums.parent.name for sums in (folder / "dit").glob("*/sha256.json"))
    return sorted(int(name) for name in folders if name.isdigit())


def last_line(errors: str) -> str:
    """What a host said of its end."""
    return [line for line in errors.splitlines() if line.startswith("vdit: ")][-1]
