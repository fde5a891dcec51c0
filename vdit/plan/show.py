"""A plan for people: tables in the terminal, and the same as a page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vdit.errors import writing
from vdit.eval.page import Page
from vdit.plan.plan import Plan, ProgramPlan, gib
from vdit.plan.topology import Topology, parse_topology

TITLES = {
    "train": "training step",
    "sample": "sampling, all steps, latents only",
    "decode": "decoding by the VAE",
}
ASSUMPTIONS = (
    "Times are a roofline at the chip's published rates: the better figure with arithmetic, HBM and network all at "
    "once, the worse one with nothing sent while anything is computed. Every row of tokens is one clip that fills "
    "it: the dearest attention there is."
)
QUICK = (
    "Compiled with less effort (--quick): memory, HBM traffic and times are upper bounds. Without --quick they are "
    "lower, HBM traffic by up to two thirds."
)


def print_plan(plan: Plan, console: Console) -> None:
    """Tables of a plan."""
    topology = parse_topology(plan.topology)
    console.print(f"\n[bold]{plan.experiment}[/] on [bold]{plan.topology}[/]: {_place(plan)}")
    if plan.effort == "quick":
        console.print(QUICK, style="yellow")
    for program in plan.programs:
        rows = memory_rows(program)
        console.print(f"\n[bold]{TITLES[program.name]}[/]: {verdict(program)}; compiled in "
                      f"{program.compile_seconds:.0f} s")  # fmt: skip
        for note in program.notes:
            console.print(f"  {note}", style="dim", markup=False)
        if rows:
            console.print(_table(("memory a device", "", "of capacity"), rows, right=(1, 2)))
        console.print(_table(("", ""), figure_rows(program, topology), right=(1,)))
        if program.traffic:
            columns = ("sent by a device", "along", "bytes", "times", "seconds")
            console.print(_table(columns, traffic_rows(program), right=(2, 3, 4)))
    for line in plan.report:
        console.print(f"left whole: {line}", style="dim", markup=False)
    console.print(f"\n{ASSUMPTIONS}", style="dim")


def save_plan(plan: Plan, folder: Path) -> Path:
    """plan.json and plan.html in the folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "plan.json"):
        (folder / "plan.json").write_text(json.dumps(dataclasses.asdict(plan), indent=1) + "\n")
    topology = parse_topology(plan.topology)
    page = Page(f"{plan.experiment} on {plan.topology}", _place(plan))
    if plan.effort == "quick":
        page.text(QUICK)
    for program in plan.programs:
        page.text(f"# {TITLES[program.name].capitalize()}\n\n{verdict(program)}. "
                  f"Compiled in {program.compile_seconds:.0f} s. " + " ".join(program.notes))  # fmt: skip
        if program.memory:
            page.table(("memory a device", "", "of capacity"), memory_rows(program))
        page.table(("figure", "value"), figure_rows(program, topology))
        if program.traffic:
            page.table(("sent by a device", "along", "bytes", "times", "seconds"), traffic_rows(program))
    page.text("\n".join(f"- left whole: {line}" for line in plan.report) + f"\n\n{ASSUMPTIONS}")
    return page.save(folder / "plan.html")


def verdict(program: ProgramPlan) -> str:
    """Whether it fits, in words."""
    if program.capacity is None:
        return f"needs {gib(program.total)} a device"
    share = program.total / program.capacity
    word = "fits" if program.fits else "DOES NOT FIT"
    least = "" if program.memory else "at least "
    return f"{word}: {least}{gib(program.total)} of {gib(program.capacity)} a device ({share:.0%})"


def memory_rows(program: ProgramPlan) -> list[tuple[str, ...]]:
    """kind, bytes, share of the capacity."""
    share = lambda size: f"{size / program.capacity:.1%}" if program.capacity else ""  # noqa: E731
    return [(kind, gib(size), share(size)) for kind, size in (program.memory or {}).items()]


def figure_rows(program: ProgramPlan, topology: Topology) -> list[tuple[str, str]]:
    """FLOPs, times, utilisation, throughput."""
    rows = [("FLOPs", _si(program.flops))]
    if program.flops != program.model_flops:
        rows = [("model FLOPs", _si(program.model_flops)), ("hardware FLOPs", _si(program.flops))]
    if program.hbm is not None:
        rows.append(("HBM traffic a device", gib(program.hbm)))
    if program.times is not None:
        took = program.times
        for name in ("arithmetic", "hbm", "network"):
            rows.append((f"time: {name}", _seconds(took[name])))
        rows.append(("roofline time", _range(program.seconds, _seconds)))
        use = program.utilisation(topology)
        if program.flops == program.model_flops:
            use = {"use of the chips": use["MFU"]}
        rows += [(name, _range(both, "{:.0%}".format)) for name, both in use.items()]
        day = program.a_day()
        if program.tokens:
            rows.append(("tokens a day", _range(day["tokens"], _si)))
        rows.append(("seconds of video a day", _range(day["video_seconds"], _si)))
    return rows


def traffic_rows(program: ProgramPlan) -> list[tuple[str, ...]]:
    """kind, mesh axes, bytes, count, seconds."""
    return [
        (line["kind"], " x ".join(line["axes"]), gib(line["bytes"]), f"{line['count']:,}",
         "" if line["seconds"] is None else _seconds(line["seconds"]))
        for line in program.traffic
    ]  # fmt: skip


def _place(plan: Plan) -> str:
    sizes = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    devices = "" if plan.devices == plan.chips else f" ({plan.devices} devices)"
    return f"{plan.chips} chips{devices}, {sizes}"


def _table(columns, rows, *, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="dim", padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _range(both: tuple[float, float], text) -> str:
    return f"{text(min(both))} to {text(max(both))}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"


def _si(value: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"
