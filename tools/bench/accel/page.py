"""Stage 6: the page: what was measured beside what was expected, the roofline, the samples, the failures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from accel.record import Probe, Record, verdict


def probes(dry: bool, out: Path, until: float) -> list[Probe]:
    del dry, until
    return [
        Probe(name="roofline", what="the picture", run=functools.partial(roofline, out), always=True),
        Probe(name="page", what="accelerator.html", run=functools.partial(page, out), always=True),
    ]


def _measured(out: Path) -> list[tuple[str, dict[str, Any]]]:
    found = Record(out / "accelerator.json").read()
    return [
        (f"{stage}: {name}", probe)
        for stage, values in found["stages"].items()
        for name, probe in values["probes"].items()
        if stage != "page"
    ]


def roofline(out: Path) -> dict[str, Any]:
    """FLOP/s over FLOPs a byte, under the rates that were measured and those that are stated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from accel.expected import chip_of

    book = Record(out / "accelerator.json")
    chip = chip_of(book.figures("kernels", "device").get("kind", ""))
    points = [
        (name, probe)
        for name, probe in _measured(out)
        if probe.get("flops") and probe.get("bytes") and probe.get("seconds")
    ]
    figure, axes = pyplot.subplots(figsize=(10, 6))
    matrix = book.figures("kernels", "matmul-bf16").get("flops_per_second")
    copied = book.figures("kernels", "copy").get("bytes_per_second")
    roofs = {"measured rates": (matrix, copied, "#3b6ea5")}
    if chip is not None:
        roofs[f"{chip.name}, stated"] = (chip.peak, chip.bandwidth, "#9aa5b1")
    grid = [10 ** (power / 10) for power in range(-10, 51)]
    for label, (peak, bandwidth, colour) in roofs.items():
        if peak and bandwidth:
            axes.plot(grid, [min(peak, bandwidth * x) for x in grid], color=colour, label=label)
    for name, probe in points:
        x, y = probe["flops"] / probe["bytes"], probe["flops"] / probe["seconds"]
        axes.plot(x, y, "o", color="#c2452d", markersize=4)
        axes.annotate(name.partition(": ")[2], (x, y), fontsize=6, xytext=(3, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.tight_layout()
    figure.savefig(out / "roofline.png", dpi=110)
    return {"points": len(points)}


def page(out: Path) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    from accel import entry

    entry.stand_in()
    from vdit.eval.page import Page

    book = Record(out / "accelerator.json")
    found, device = book.read(), book.figures("kernels", "device")
    run = found["run"]
    shown = Page(
        "vdit on an accelerator",
        f"{device.get('kind', 'unknown device')}, {run.get('began', '')}"
        + (", DRY RUN: tiny sizes on a CPU, no figure of speed means anything" if run.get("dry") else ""),
    )
    shown.table(("package", "version"), device.get("versions", {}).items(), title="What is there")
    for stage, values in found["stages"].items():
        if stage == "page":
            continue
        rows = [
            (
                name,
                probe.get("what", ""),
                _ms(probe.get("seconds")),
                _ms(probe.get("expected")),
                _ms(probe.get("roofline")),
                _share(probe.get("of_measured_rate")),
                verdict(probe),
            )
            for name, probe in values["probes"].items()
        ]
        title = f"{stage}: {values.get('status')}, {values.get('seconds')} s"
        shown.table(
            ("measurement", "work", "ms", "expected", "roofline", "of measured rate", "verdict"), rows, title=title
        )
    if (out / "roofline.png").exists():
        shown.videos([(np.asarray(Image.open(out / "roofline.png").convert("RGB"))[None], "roofline")], 1, columns=1)
    if (out / "samples.png").exists():
        prompts = "; ".join(book.figures("model", "samples").get("prompts", []))
        picture = np.asarray(Image.open(out / "samples.png").convert("RGB"))[None]
        shown.videos([(picture, f"samples, a video a line: {prompts}")], 1, columns=1)
    failures = [(name, probe) for name, probe in _measured(out) if probe.get("traceback")]
    for name, probe in failures:
        shown.commands([probe["traceback"]], title=f"{name}: {probe.get('why', 'failed')}")
    shown.save(out / "accelerator.html")
    return {"failures": len(failures)}


def _ms(value: float | None) -> str:
    return f"{value * 1e3:,.3f}" if value else ""


def _share(value: float | None) -> str:
    return f"{value:.0%}" if value else ""
