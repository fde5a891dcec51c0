"""`vdit plan`: what an experiment needs on a TPU pod, and how fast it can be, without one."""

from __future__ import annotations

import argparse
from pathlib import Path

from vdit.cli.parser import UsageError, at_least, nearest
from vdit.cli.status import Status
from vdit.outputs import check_output, numbered

SUMMARY = "compile an experiment for a TPU pod, on this machine: memory, FLOPs, network, time, and whether it fits"
DESCRIPTION = """\
Compiles the programs of an experiment for a TPU topology, on a machine without a TPU: the training step, sampling and
the VAE's decode, the same code that runs on a pod. Reports the memory of a device by kind, FLOPs, the traffic between
devices by mesh axis, and the time and utilisation that a roofline allows.

Chips: v4, v5e, v5p, v6e, 7x. Needs libtpu (vdit's extra "tpu"); "cpu:8" plans for simulated CPU devices."""
EPILOG = """\
examples:
  vdit plan experiments/dit_xl_pod.py
  vdit plan experiments/dit_xl_pod.py --topology v5p:4x4x4 --cfg.mesh.sequence=4
  vdit plan experiments/dit_xl_pod.py --search --search-limit 8

Exit code: 0 if all that was asked for fits, 3 if something does not, 2 if something must be fixed."""
TAKES_OVERRIDES = True

DOES_NOT_FIT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT", help="a .py file, a shipped name, a module, or a run's folder")
    add("--topology", metavar="KIND:SHAPE", help="v5p:8x8x8; 2*v5p:4x4x4 is two slices; default: the experiment's")
    add("--program", action="append", metavar="NAME", help="only this one of train, sample, decode; may be repeated")
    add("--out", metavar="FOLDER", help="where plan.json and plan.html go; default: a new plans/NAME-TOPOLOGY")
    add("--quick", action="store_true", help="faster compile; memory is an upper bound, times are pessimistic")
    add("--search", action="store_true", help="try mesh shapes, remat and accumulation for training, and rank them")
    add("--search-limit", type=at_least(1), metavar="N", help="at most N compilations; default: 12")
    add("--jobs", type=at_least(1), metavar="N", help="compilations at once; each needs some GB of memory; default: 1")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rich.console import Console

    from vdit.cli.train import find_experiment, with_overrides
    from vdit.plan.plan import PROGRAMS
    from vdit.plan.topology import parse_topology

    for name in options.program or ():
        if name not in PROGRAMS:
            raise UsageError(f"program {name!r} is unknown{nearest(name, PROGRAMS)} (programs: {', '.join(PROGRAMS)})")
    unused = ("program", "quick") if options.search else ("search_limit", "jobs")
    for name in unused:
        if getattr(options, name):
            rule = "leave it out with --search" if options.search else "add --search"
            raise UsageError(f"--{name.replace('_', '-')} has no effect: {rule}")
    experiment = with_overrides(find_experiment(options.experiment), overrides)
    named = options.topology or experiment.topology
    if named is None:
        raise UsageError(f"{options.experiment} names no topology: give --topology, as in --topology v5p:4x4x4")
    topology = parse_topology(named)
    console = Console()
    usual = Path("plans") / f"{experiment.name}-{topology.name.replace(':', '-').replace('*', 'x')}"
    out = Path(options.out or next(path for path in numbered(usual) if not path.exists()))
    for name in ("search.json", "search.html") if options.search else ("plan.json", "plan.html"):
        check_output(out / name, given=[options.experiment], name=f"--out {out}")
    if options.search:
        return _search(experiment, topology, options, out, console)
    from vdit.plan.plan import plan
    from vdit.plan.show import print_plan, save_plan

    programs, effort = options.program or PROGRAMS, "quick" if options.quick else "full"
    experiment.mesh.shape(topology.devices)  # refused before anything is said
    with Status("plan", devices=False) as status:
        status.tell("plans", f"{', '.join(programs)} of {experiment.name} on {topology.name}: {topology.chips} chips")
        status.tell("with", f"{effort} effort of the compiler (--quick is about 3 times as fast)")
        with status.phases() as phase:
            made = plan(experiment, topology, programs=programs, effort=effort, progress=phase)
        print_plan(made, console)
        page = save_plan(made, out)
        status.wrote(page)
        print(f"\nSaved: {page}")
    return 0 if made.fits else DOES_NOT_FIT


def _search(experiment, topology, options: argparse.Namespace, out: Path, console) -> int:
    from vdit.plan.search import search
    from vdit.plan.show import print_search, save_search, watching

    limit = options.search_limit or 12
    with Status("plan", devices=False) as status:
        status.tell("plans", f"{limit} layouts at most of {experiment.name} on {topology.name}")
        status.begin()
        with watching(console, limit) as progress:
            found = search(experiment, topology, limit=limit, jobs=options.jobs or 1, progress=progress)
        print_search(found, console)
        page = save_search(found, out)
        status.wrote(page)
        print(f"\nSaved: {page}")
    return 0 if found.best is not None else DOES_NOT_FIT
