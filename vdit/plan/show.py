"""Plans and searches for people: tables in the terminal, and the same as a page."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vdit.errors import writing
from vdit.eval.page import Page
from vdit.plan.plan import Plan, ProgramPlan, gib
from vdit.plan.search import Search, Trial
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
    console.print(f"\n[bold]{plan.experiment}[/] on [bold]{plan.topology}[/]: {_describe_mesh(plan)}")
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
    page = Page(f"{plan.experiment} on {plan.topology}", _describe_mesh(plan))
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


def _describe_mesh(plan: Plan) -> str:
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


QUICK_SEARCH = "Compiled with less effort: memory, HBM traffic and times are upper bounds, in the same way for all."
COLUMNS = ("layout", "memory a device", "seconds a step", "HFU", "MFU", "longest", "")


@contextlib.contextmanager
def watching(console: Console, limit: int) -> Iterator[Callable[[Trial | str], None]]:
    """A progress bar over compilations; gives what `search` is to call."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("estimating", total=limit)

        def progress(event: Trial | str) -> None:
            if isinstance(event, str):
                bar.update(task, description=event)
                return
            bar.advance(task)
            bar.console.print(f"  {event.candidate.name}: {_short(event)}", markup=False, highlight=False)

        yield progress


def print_search(found: Search, console: Console) -> None:
    """The ranking as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if 0 < i < 5 else "left")
    for row in rows(found):
        table.add_row(*row)
    console.print(f"\n[bold]{found.experiment}[/] on [bold]{found.topology}[/], training")
    console.print(table)
    console.print(QUICK_SEARCH, style="dim")
    for line in left_out(found):
        console.print(line, style="dim", markup=False)
    if found.best is not None:
        mesh, best = found.best.candidate.mesh, found.best.candidate
        sizes = " ".join(f"--cfg.mesh.{axis}={size}" for axis, size in dataclasses.asdict(mesh).items())
        sizes += f" --cfg.backbone.remat={best.remat} --cfg.dit_train.accumulation={best.accumulation}"
        console.print(f"\nbest: {sizes}", markup=False)


def save_search(found: Search, folder: Path) -> Path:
    """search.json and search.html in the folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "search.json"):
        (folder / "search.json").write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    page = Page(f"{found.experiment} on {found.topology}: layouts", "training step, ranked by time")
    page.text(QUICK_SEARCH).table(COLUMNS, rows(found)).text("\n".join(f"- {line}" for line in left_out(found)))
    return page.save(folder / "search.html")


def rows(found: Search) -> list[tuple[str, ...]]:
    """A line for each layout that was compiled."""
    return [_row(trial) for trial in found.trials]


def left_out(found: Search) -> list[str]:
    """Why other layouts are not in the table."""
    lines = [f"not compiled, next in the estimate's order: {one.name}" for one in found.left[:3]]
    if len(found.left) > 3:
        lines.append(f"and {len(found.left) - 3} more: raise --search-limit")
    if found.ruled_out:
        kinds = collections.Counter(one.remat for one in found.ruled_out)
        counts = ", ".join(f"{count} with remat {remat}" for remat, count in kinds.most_common())
        lines.append(f"ruled out by estimate, too much memory: {counts}; the nearest, "
                     f"{min(found.ruled_out, key=lambda one: one.bytes).name}: "
                     f"{min(found.ruled_out, key=lambda one: one.bytes).reason}")  # fmt: skip
    return lines


def _row(trial: Trial) -> tuple[str, ...]:
    name, program = trial.candidate.name, trial.program
    if program is None or program.times is None:
        needed = f"at least {gib(program.total)}" if program else ""
        return name, needed, "", "", "", "", f"does not fit: {trial.reason}" if program else str(trial.reason)
    use = program.times
    share = lambda flops: f"{flops / program.flops * use['arithmetic'] / use['serial']:.0%}"  # noqa: E731
    bound = max(("arithmetic", "hbm", "network"), key=use.get)
    verdict = "" if trial.fits else f"does not fit {gib(program.capacity)}"
    return (name, gib(program.total), f"{use['serial']:.3g}", share(program.flops), share(program.model_flops), bound,
            verdict)  # fmt: skip


def _short(trial: Trial) -> str:
    if not trial.fits:
        return "does not fit" if trial.program else str(trial.reason)
    return f"{trial.seconds:.3g} s a step, {gib(trial.program.total)} a device"
