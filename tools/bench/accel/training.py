"""Stage 2: the training step of `vdit train`: tokens a second, memory, what remat costs, where the time goes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax

from accel import entry
from accel.expected import reached
from accel.record import Probe
from accel.timing import healthy, memory, seconds

__all__ = ["healthy", "probes", "reached"]

# size, tokens of a row, clips in it, remat; in the order of their worth.
CASES = (
    ("1.3B", 32_768, 1, "full"),
    ("XL", 8192, 4, "none"),
    ("XL", 32_768, 4, "attention"),
    ("1.3B", 8192, 1, "none"),
    ("XL", 8192, 4, "full"),
    ("XL", 8192, 4, "attention"),
    ("XL", 8192, 4, "dots"),
    ("1.3B", 32_768, 1, "attention"),
)
TRACED = ("XL", 8192, 4, "none")
LARGEST = 10
KINDS = (
    ("attention", ("attention_forward", "attention_dq", "attention_dkv", "flash", "fmha")),
    ("matrix product", ("gemm", "dot", "cublas", "cutlass", "nvjet", "matmul")),
    ("convolution", ("conv", "cudnn", "implicit")),
    ("copy or transpose", ("copy", "transpose", "memcpy", "concatenate", "slice")),
    ("reduction", ("reduce", "reduction", "norm")),
    ("random numbers", ("threefry", "rng", "random")),
)


def probes(dry: bool, out: Path, until: float) -> list[Probe]:
    del out, until
    cases = CASES if not dry else tuple((size, 64, clips, remat) for size, _, clips, remat in CASES[:2])
    found = [_case(dry, *case) for case in cases]
    size, row, clips, remat = (TRACED[0], 64, *TRACED[2:]) if dry else TRACED
    traced = Probe(
        name="trace",
        what=f"the {LARGEST} longest kinds of work of a step, {size}, {row:,} tokens",
        run=functools.partial(trace, dry, size, row, clips, remat),
        needs=8,
    )
    return [*found[:3], traced, *found[3:]]


def _case(dry: bool, size: str, row: int, clips: int, remat: str) -> Probe:
    config = entry.dit(size, dry=dry, remat=remat)
    flops = 3.0 * config.flops(row, row / clips, 64)
    return Probe(
        name=f"{size}-{row // 1024}k-{remat}",
        run=functools.partial(step, dry, size, row, clips, remat),
        flops=flops,
        what=f"{size}, a row of {row:,} tokens in {clips} clips, remat {remat}: forward, backward, AdamW, EMA",
        share={"none": 0.45, "dots": 0.42, "attention": 0.38, "full": 0.35}[remat],
        needs=4,
    )


def _compiled(dry: bool, size: str, row: int, clips: int, remat: str):
    program, (state, batch) = entry.training(entry.dit(size, dry=dry, remat=remat), row=row, clips=clips)
    with jax.set_mesh(entry.one_device()):
        compiled = program.traced.lower().compile()
    box = [state]

    def run():
        box[0], metrics = compiled(box[0], batch)
        return metrics

    return program, compiled, run


def step(dry: bool, size: str, row: int, clips: int, remat: str) -> dict[str, Any]:
    program, compiled, run = _compiled(dry, size, row, clips, remat)
    held = compiled.memory_analysis()
    found = seconds(run, repeats=5, budget=6.0)
    metrics = {name: float(value) for name, value in run().items() if name in ("loss", "grad_norm", "skipped")}
    return (
        found
        | metrics
        | memory()
        | {
            "tokens_per_second": row / found["seconds"],
            "hardware_flops": program.flops,
            "planned_gib": round((held.argument_size_in_bytes + held.temp_size_in_bytes) / 2**30, 2),
            "donated_gib": round(held.alias_size_in_bytes / 2**30, 2),
            "note": f"{row / found['seconds']:,.0f} tokens/s",
        }
    )


def trace(dry: bool, size: str, row: int, clips: int, remat: str) -> dict[str, Any]:
    """Shares of the device's time in three steps, by what the compiled program calls its work."""
    _, _, run = _compiled(dry, size, row, clips, remat)
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        spent = device_time(jax.profiler.ProfileData.from_file(str(file)))
    total = sum(spent.values())
    kinds: dict[str, float] = {}
    for name, nanoseconds in spent.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + nanoseconds
    longest = sorted(spent.items(), key=lambda item: -item[1])[:LARGEST]
    table = {name[:80]: f"{100 * part / total:.1f}% {kind_of(name)}" for name, part in longest}
    shares = {name: f"{100 * part / total:.1f}%" for name, part in sorted(kinds.items(), key=lambda item: -item[1])}
    return {
        "longest": table,
        "kinds": shares,
        "device_ms_a_step": total / 3e6,
        "note": ", ".join(f"{name} {share}" for name, share in list(shares.items())[:3]),
    }


def device_time(profile: Any) -> dict[str, float]:
    """Name -> nanoseconds on the device; of a CPU's trace, where there is no device, those of XLA's own threads."""
    planes = [plane for plane in profile.planes if "/device:" in plane.name and "CUSTOM" not in plane.name.upper()]
    lines = [line for plane in planes for line in plane.lines if "stream" in line.name.lower()]
    lines = lines or [line for plane in planes for line in plane.lines if "XLA Ops" in line.name]
    if not planes:
        lines = [
            line
            for plane in profile.planes
            if plane.name == "/host:CPU"
            for line in plane.lines
            if "xla" in line.name.lower() or "eigen" in line.name.lower()
        ]
    spent: dict[str, float] = {}
    for line in lines:
        for event in line.events:
            if not event.name.startswith(("ThreadpoolListener", "ThunkExecutor", "end: ")):
                spent[event.name] = spent.get(event.name, 0.0) + event.duration_ns
    if not spent:
        names = [f"{plane.name}: {', '.join(line.name for line in plane.lines)}" for plane in profile.planes]
        raise RuntimeError(f"the trace holds no events of a device; its lines: {names}")
    return spent


def kind_of(name: str) -> str:
    """What a kernel does, in words; "fused elementwise work" for what has no name of its own."""
    low = name.lower()
    return next((kind for kind, parts in KINDS if any(part in low for part in parts)), "fused elementwise work")
