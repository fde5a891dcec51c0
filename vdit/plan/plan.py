"""A plan: an experiment's programs, compiled for a topology and measured.

`plan` starts a process that compiles (`compile_request`), because the TPU compiler reads its environment when jax is
imported. The request goes to the process's input as JSON. The process prints what it is doing, and writes {"plan": ...}
or {"error": ...} to a file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vdit.config import plugins, to_dict
from vdit.errors import ConfigError, PlanError, VditError
from vdit.plan.topology import GIB, Topology, child_environment, parse_topology

PROGRAMS = ("train", "sample", "decode")
DAY = 86_400
# exec_time_optimization_effort of XLA: 3 to 4 times faster to compile, up to a third more temporaries, and less fused,
# so up to three times the HBM traffic.
EFFORT = {"full": {}, "quick": {"exec_time_optimization_effort": -1.0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """One program on the topology. Bytes are of one device; FLOPs, tokens and seconds of video are of all devices.

    Args:
        memory: bytes by kind. None where the program does not fit.
        total, capacity: bytes that the program needs, and that a device has.
        flops: FLOPs of the hardware, with those that remat computes again.
        model_flops: the useful FLOPs.
        hbm: bytes that move through HBM.
        traffic: kind, axes, bytes, count and seconds of each collective.
        times: seconds by name: arithmetic, hbm, network, overlapped, serial (vdit/plan/roofline.py). None where the
            topology has no chip.
        repeats: how often the program runs for one batch or one video.
    """

    name: str
    fits: bool
    memory: dict[str, int] | None
    total: float
    capacity: float | None
    flops: float
    model_flops: float
    tokens: int
    video_seconds: float
    repeats: int = 1
    hbm: float | None = None
    traffic: tuple[dict[str, Any], ...] = ()
    times: dict[str, float] | None = None
    compile_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> tuple[float, float] | None:
        """(nothing overlapped, all overlapped) of all its repeats."""
        return None if self.times is None else (self.times["serial"], self.times["overlapped"])

    def utilisation(self, topology: Topology) -> dict[str, tuple[float, float]]:
        """Share of the chips' peak: "MFU" by useful FLOPs, "HFU" by all; (nothing overlapped, all overlapped)."""
        if self.seconds is None:
            return {}
        peak = topology.chips * topology.chip.peak
        share = lambda flops: tuple(flops / (peak * seconds) for seconds in self.seconds)  # noqa: E731
        return {"MFU": share(self.model_flops), "HFU": share(self.flops)}

    def a_day(self) -> dict[str, tuple[float, float]]:
        """ "tokens" and "video_seconds" in a day."""
        if self.seconds is None:
            return {}
        each = {"tokens": self.tokens, "video_seconds": self.video_seconds}
        return {name: tuple(amount * DAY / seconds for seconds in self.seconds) for name, amount in each.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All programs of an experiment on a topology.

    Args:
        mesh: size of each mesh axis.
        report: dimensions that stay whole although the table of shardings would split them.
        effort: of the compiler, a key of EFFORT.
    """

    experiment: str
    topology: str
    chips: int
    devices: int
    mesh: dict[str, int]
    programs: tuple[ProgramPlan, ...]
    report: tuple[str, ...] = ()
    effort: str = "full"

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The inverse of dataclasses.asdict, after JSON."""
        programs = tuple(
            ProgramPlan(**program | {name: tuple(program[name]) for name in ("traffic", "notes")})
            for program in data["programs"]
        )
        return cls(**data | {"programs": programs, "report": tuple(data["report"])})


def make_plan(
    experiment: Any,
    topology: Topology,
    *,
    programs: Sequence[str] = PROGRAMS,
    effort: str = "full",
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Traces and compiles the programs for the topology. The process has `child_environment(topology)`."""
    from vdit.dist.mesh import make_mesh
    from vdit.plan import programs as build
    from vdit.plan.topology import devices_of

    mesh = make_mesh(experiment.mesh, devices_of(topology))
    makers = {"train": build.train_program, "sample": build.sample_program, "decode": build.decode_program}
    done, report = [], ()
    for name in programs:
        if name not in makers:
            raise ConfigError(f"program {name!r} is unknown: use some of {', '.join(PROGRAMS)}")
        progress(f"tracing {name}")
        program = makers[name](experiment, mesh)
        progress(f"compiling {name}")
        done.append(_measure(program, topology, mesh, effort))
        report = report or program.report
    return Plan(
        experiment=experiment.name,
        topology=topology.name,
        chips=topology.chips,
        devices=topology.devices,
        mesh={axis: int(size) for axis, size in mesh.shape.items()},
        programs=tuple(done),
        report=tuple(report),
        effort=effort,
    )


def _measure(program: Any, topology: Topology, mesh: Any, effort: str) -> ProgramPlan:
    import jax

    from vdit.dist.collectives import collectives
    from vdit.plan.memory import hbm_bytes, kernel_bytes, memory, out_of_memory
    from vdit.plan.roofline import times, traffic

    chip = topology.chip
    capacity = None if chip is None else chip.memory / chip.cores
    same = {"name": program.name, "flops": program.flops, "model_flops": program.model_flops, "tokens": program.tokens,
            "video_seconds": program.seconds, "repeats": program.repeats, "capacity": capacity}  # fmt: skip
    began = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            compiled = program.traced.lower().compile(compiler_options=dict(EFFORT[effort]) if chip else None)
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(error, program, capacity)
        if needed is None:
            raise
        return ProgramPlan(
            fits=False, memory=None, total=needed.total, notes=_largest(str(error)),
            compile_seconds=time.perf_counter() - began, **same,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    held = memory(program, compiled, text, capacity)
    lines = traffic(topology, mesh, collectives(text, mesh))
    moved = hbm_bytes(text) + kernel_bytes(program.traced.jaxpr.jaxpr)
    took = None
    if chip is not None:
        least = times(topology, flops=program.flops / program.repeats, hbm=moved, lines=lines)
        names = ("arithmetic", "hbm", "network", "overlapped", "serial")
        took = {name: getattr(least, name) * program.repeats for name in names}
    return ProgramPlan(
        fits=held.fits, memory=held.kinds, total=held.total, hbm=moved * program.repeats, times=took,
        traffic=tuple(_times(line, program.repeats) for line in lines), compile_seconds=seconds, **same,
    )  # fmt: skip


def _times(line: Any, repeats: int) -> dict[str, Any]:
    """A line of traffic, of all runs of its program."""
    known = dataclasses.asdict(line)
    return known | {key: known[key] * repeats for key in ("bytes", "count", "seconds") if known[key] is not None}


def _largest(message: str) -> tuple[str, ...]:
    """The compiler's own words on a program that does not fit, and its largest arrays."""
    lines = [line.strip() for line in message.splitlines()]
    wanted = [line for line in lines if line.startswith(("Size:", "Shape:", "Operator:"))][:9]
    return (lines[0][:300], *(line[:160] for line in wanted))


def gib(size: float) -> str:
    """Bytes for people."""
    return "?" if math.isnan(size) else f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def plan(
    experiment: Any,
    topology: str | Topology,
    *,
    programs: Sequence[str] = PROGRAMS,
    effort: str = "full",
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compiles an experiment's programs for a topology, in a process of its own, and measures them.

        found = plan(experiment, "v5p:4x4x4")
        print(found.fits, found.programs[0].times)

    Args:
        experiment: a vdit Experiment.
        topology: a name such as "v5p:8x8x8" or "cpu:8", or a Topology.
        programs: some of PROGRAMS.
        effort: of the compiler: "full", or "quick", which compiles sooner and gives memory, HBM traffic and times that
            are too high.
        progress: called with a line for each thing that is being done.

    Returns:
        The plan: memory, FLOPs, traffic and times of each program.

    Raises:
        ConfigError: the topology, the effort or the mesh is wrong.
        PlanError: the compiler broke off.
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
                [sys.executable, "-m", "vdit.plan", str(out)],
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


def compile_request(out: str) -> None:
    """What the child process does: compiles what stdin asks for, as JSON, and writes the answer to the file `out`."""
    request = json.load(sys.stdin)
    from vdit.config import from_dict, load_plugin
    from vdit.experiment.experiment import Experiment

    def progress(text: str) -> None:
        print(text, flush=True)

    try:
        for plugin in request["plugins"]:
            load_plugin(plugin)
        plan = make_plan(
            from_dict(Experiment, request["experiment"]),
            parse_topology(request["topology"]),
            programs=request["programs"],
            effort=request["effort"],
            progress=progress,
        )
        answer = {"plan": dataclasses.asdict(plan)}
    except VditError as error:
        answer = {"error": str(error)}
    Path(out).write_text(json.dumps(answer))
