"""Starting the process that compiles, and reading what it found."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vdit.config import plugins, to_dict
from vdit.errors import ConfigError, PlanError
from vdit.plan.plan import EFFORT, PROGRAMS, Plan
from vdit.plan.topology import Topology, child_environment, parse_topology


def plan(
    experiment: Any,
    topology: str | Topology,
    *,
    programs: Sequence[str] = PROGRAMS,
    effort: str = "full",
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The plan of an Experiment on a topology, made in a process of its own.

    jax of this process is left alone: the environment that the TPU compiler wants must stand before jax is imported.
    progress: called with what is being done. effort: "full", or "quick": sooner, and memory, HBM
    traffic and times come out too high.
    ConfigError: the topology or the mesh is wrong. PlanError: the compiler broke off.
    """
    topology = parse_topology(topology) if isinstance(topology, str) else topology
    if effort not in EFFORT:
        raise ConfigError(f"effort={effort!r} is unknown: use one of {', '.join(EFFORT)}")
    experiment.mesh.shape(topology.devices)  # refused here, before anything is started
    request = {"experiment": to_dict(experiment), "topology": topology.name, "programs": list(programs),
               "effort": effort, "plugins": plugins()}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vdit-plan-") as folder:
        out, log = Path(folder) / "plan.json", Path(folder) / "log"
        with log.open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "vdit.plan.worker", str(out)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=child_environment(topology),
            )  # fmt: skip
            try:
                child.stdin.write(json.dumps(request))
                child.stdin.close()
                for line in child.stdout:
                    progress(line.strip())
                child.wait()
            except BaseException:
                child.kill()
                child.wait()
                raise
        if not out.exists():
            raise PlanError(f"the compiler broke off ({child.returncode}): {_reason(log.read_text(errors='replace'))}")
        answer = json.loads(out.read_text())
    if "error" in answer:
        raise ConfigError(answer["error"])
    return Plan.from_dict(answer["plan"])


def _reason(log: str) -> str:
    """The last line that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error" in line or "Killed" in line]
    return (named or lines or ["it was killed, perhaps for want of memory on this machine"])[-1][:400]
