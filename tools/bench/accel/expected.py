"""What figures to expect: the roofline of the chip as its maker states it, and as it was measured here.

Sources of the stated rates, as read in 2026: NVIDIA's data sheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU",
SXM parts, dense rates (the sheets print those with 2:4 sparsity, twice as high).
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from accel.entry import Chip, roofline
from accel.record import Probe, Record

GIB = 2**30
# As a chip of one device without a network. float32 products run as TF32 by default.
CHIPS = {
    name: Chip(
        name=name, peak=989e12, memory=memory * GIB, bandwidth=bandwidth, link=450e9, dimensions=1, closes=1, dcn=50e9
    )
    for name, memory, bandwidth in (("H100", 79, 3.35e12), ("H200", 139, 4.8e12))
}
RATES = {"bf16": 1.0, "fp8": 2.0, "tf32": 0.5, "f32": 67 / 989}  # of the bf16 peak


def chip_of(kind: str) -> Chip | None:
    """The chip that a device's kind names ("NVIDIA H200"); None for one that is not in the table, as a CPU."""
    return next((chip for name, chip in CHIPS.items() if name in kind.upper()), None)


def floor(chip: Chip, probe: Probe | dict[str, Any]) -> float:
    """Seconds at the chip's stated rates."""
    get = probe.get if isinstance(probe, dict) else lambda name: getattr(probe, name)
    return roofline(chip, flops=get("flops") / RATES[get("kind")], bytes=get("bytes"))


def reached(book: Record, probe: Probe, figures: dict[str, Any]) -> dict[str, Any]:
    """Figures with what they are held against: roofline, expected, and shares of the stated and measured rates."""
    if not figures.get("seconds") or not (probe.flops or probe.bytes):
        return figures
    chip, figures = chip_of(book.figures("kernels", "device").get("kind", "")), dict(figures)
    if probe.flops:
        figures["flops_per_second"] = probe.flops / figures["seconds"]
        matrix = book.figures("kernels", f"matmul-{probe.kind}").get("flops_per_second")
        if matrix:
            figures["of_measured_rate"] = round(figures["flops_per_second"] / matrix, 3)
    else:
        figures["bytes_per_second"] = probe.bytes / figures["seconds"]
    if chip is not None:
        figures["roofline"] = floor(chip, probe)
        figures["expected"] = figures["roofline"] / probe.share
        figures["of_stated_rate"] = round(figures["roofline"] / figures["seconds"], 3)
    return figures


def expected_table(kind: str, stages: list[str]) -> str:
    """All measurements with what they should give on a chip: a table in markdown."""
    chip = chip_of(kind)
    if chip is None:
        raise SystemExit(f"accelerator: --expected={kind}: use one of {', '.join(CHIPS)}")
    lines = [f"| {chip.name} | work | roofline | expected | at |", "| --- | --- | --- | --- | --- |"]
    for stage in stages:
        for probe in importlib.import_module(f"accel.{stage}").probes(False, Path(), time.time()):
            if probe.flops or probe.bytes:
                least = floor(chip, probe)
                lines.append(
                    f"| {stage}: {probe.name} | {probe.what} | {least * 1e3:,.2f} ms | "
                    f"{least / probe.share * 1e3:,.2f} ms | {probe.share:.0%} |"
                )
            else:
                bound = "" if probe.bound is None else f"error at most {probe.bound:g}"
                lines.append(f"| {stage}: {probe.name} | {probe.what} | | {bound} | |")
    return "\n".join(lines)
