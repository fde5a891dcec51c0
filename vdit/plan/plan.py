"""A plan: an experiment's programs on a topology, compiled and measured. Runs in a process of its own (worker.py)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from vdit.errors import ConfigError
from vdit.plan.chips import GIB
from vdit.plan.topology import Topology

PROGRAMS = ("train", "sample", "decode")
DAY = 86_400
# exec_time_optimization_effort of XLA: 3 to 4 times faster to compile, up to a third more temporaries, and less fused,
# so up to three times the HBM traffic.
EFFORT = {"full": {}, "quick": {"exec_time_optimization_effort": -1.0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """One program on the topology. Bytes are of one device; flops, tokens and seconds of video of all of them.

    memory: kind -> bytes, None where it does not fit; total, capacity: bytes. flops: the hardware's, with what remat
    computes again; model_flops: the useful ones. hbm: bytes moved. traffic: kind, axes, bytes, count, seconds of each
    collective. times: arithmetic, hbm, network, overlapped, serial (vdit/plan/roofline.py), None without a chip.
    mfu, hfu: (if serial, if overlapped). repeats: how often it runs for one batch or video.
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
        """"tokens" and "video_seconds" in a day."""
        if self.seconds is None:
            return {}
        each = {"tokens": self.tokens, "video_seconds": self.video_seconds}
        return {name: tuple(amount * DAY / seconds for seconds in self.seconds) for name, amount in each.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment on a topology. mesh: axis -> size. report: what stays whole against the table of shardings.

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
    from vdit.plan.kernels import kernel_bytes
    from vdit.plan.memory import memory, out_of_memory
    from vdit.plan.program_text import hbm_bytes
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
