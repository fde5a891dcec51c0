"""A search for people: progress with the time left, the ranking, and why others were left out."""

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
from vdit.plan.plan import gib
from vdit.plan.search import Search, Trial

QUICK = "Compiled with less effort: memory, HBM traffic and times are upper bounds, the same way for every layout."
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
    console.print(QUICK, style="dim")
    for line in left_out(found):
        console.print(line, style="dim", markup=False)
    if found.best is not None:
        mesh, best = found.best.candidate.mesh, found.best.candidate
        sizes = " ".join(f"--cfg.mesh.{axis}={size}" for axis, size in dataclasses.asdict(mesh).items())
        console.print(f"\nbest: {sizes} --cfg.dit.remat={best.remat} --cfg.dit_train.accumulation={best.accumulation}",
                      markup=False)  # fmt: skip


def save_search(found: Search, folder: Path) -> Path:
    """search.json and search.html in the folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "search.json"):
        (folder / "search.json").write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    page = Page(f"{found.experiment} on {found.topology}: layouts", "training step, ranked by time")
    page.text(QUICK).table(COLUMNS, rows(found)).text("\n".join(f"- {line}" for line in left_out(found)))
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
        told = ", ".join(f"{count} with remat {remat}" for remat, count in kinds.most_common())
        lines.append(f"ruled out by estimate, too much memory: {told}; the nearest, "
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
