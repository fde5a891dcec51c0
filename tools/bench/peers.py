"""vdit beside diffusers and transformers: the same weights, the same inputs, one table.

    python tools/bench/peers.py                      every case, against torch eager and torch.compile
    python tools/bench/peers.py --cases dit-forward vae-decode --repeats 11
    python tools/bench/peers.py --no-compile         torch eager alone: seconds instead of minutes a case

Both sides of a case run in turn in one process, on the same cores (--threads), after their outputs were
compared; the table holds medians. Compilation is timed apart, as the time to the first result, with every
cache off. Peak memory is of a process of its own for each side. The table is also saved as JSON and as a
picture (--out). On a GPU the cases are larger and in bfloat16; needs pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("ours", "eager", "compile")


def main() -> None:
    options = _options()
    _limit_threads(options.threads)
    if options.memory:
        print(json.dumps(_memory_here(*options.memory)))
        return
    from case import machine
    from cases import CASES

    names = options.cases or list(CASES)
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        sys.exit(f"peers: case {unknown[0]!r} is unknown: use some of {', '.join(CASES)}")
    report = {"machine": machine() | _host(options), "repeats": options.repeats, "cases": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    if options.add:
        report["cases"] = json.loads((options.out / "peers.json").read_text())["cases"]
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} ...", file=sys.stderr, flush=True)
        report["cases"][name] = _measure(name, options)
        # After every case: a long run that is cut short keeps what it has.
        (options.out / "peers.json").write_text(json.dumps(report, indent=1) + "\n")
    print(_table(report))
    _plot(report, options.out / "peers.png")
    print(f"\nsaved: {options.out / 'peers.json'}, {options.out / 'peers.png'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="some of the cases; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores for both sides; default: all")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each side; default: 7")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument(
        "--peak", nargs="*", choices=SIDES, default=SIDES, metavar="SIDE",
        help="measure the peak memory of these, each in a process of its own; default: ours eager compile",
    )  # fmt: skip
    parser.add_argument("--add", action="store_true", help="keep the other cases of the table in --out")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for JSON and picture; default: bench")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _limit_threads(threads: int) -> None:
    """Before jax and torch are imported: both then find that many cores, and no cache of compiled programs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="inductor"))
    os.environ["HF_HUB_OFFLINE"] = "1"


def _measure(name: str, options: argparse.Namespace) -> dict:
    """Compare, then time all sides in turn. Seconds; bytes."""
    from cases import CASES

    case = CASES[name]()
    runs, first = {}, {}
    for side in SIDES if options.compile else SIDES[:2]:
        run = getattr(case, side)()
        began = time.perf_counter()
        output = run()
        first[side] = time.perf_counter() - began
        if side == "ours":
            ours = output
        else:
            case.compare(ours, output, side)
        runs[side] = run
    times = {side: [] for side in runs}
    cpu = {side: [] for side in runs}
    for repeat in range(options.repeats + 1):
        for side, run in runs.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            run()
            if repeat:  # the first round warms caches up
                times[side].append(time.perf_counter() - began)
                cpu[side].append(time.process_time() - began_cpu)
    row = {"what": case.what, "error": case.error, "flops": case.flops}
    for side in runs:
        row[side] = {
            "seconds": statistics.median(times[side]),
            "fastest": min(times[side]),
            "slowest": max(times[side]),
            "cpu_seconds": statistics.median(cpu[side]),
            "first_result": first[side],
        }
        if side in options.peak:
            row[side]["peak_bytes"] = _memory_in_child(name, side, options)
    return row


def _memory_in_child(name: str, side: str, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--threads", str(options.threads), "--memory", name, side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"peers: measuring the memory of {name} ({side}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _memory_here(name: str, side: str) -> int:
    """Peak bytes of one side alone: of the accelerator if there is one, else of this process, imports included."""
    from case import accelerator_peak
    from cases import CASES

    run = getattr(CASES[name](only=side), side)()
    run(), run()
    peak = accelerator_peak(side)
    return _peak_of_process() if peak is None else peak


def _peak_of_process() -> int:
    """Bytes held by this process at most. (On Linux getrusage counts what its parent held when it was started.)"""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _host(options: argparse.Namespace) -> dict:
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = models[0] if models else processor
    return {"processor": processor, "threads": options.threads, "python": platform.python_version()}


def _table(report: dict) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['device']} ({machine['processor']}, {machine['threads']} threads), {machine['dtype']}, "
        f"jax {machine['jax']}, torch {machine['torch']}, diffusers {machine['diffusers']}; "
        f"medians of {report['repeats']} runs; 'times' is torch.compile's time over vdit's; matrix products reach "
        + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s ({side})" for side, rate in machine["matrix_flops"].items()),
        "",
        "| case | vdit | torch eager | torch.compile | times | of the matrix rate | first result: vdit / compile | "
        "peak memory: vdit / eager / compile | max error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in report["cases"].items():
        compiled = row.get("compile", {})
        times = (compiled or row["eager"])["seconds"] / row["ours"]["seconds"]
        peaks = [
            f"{row[side]['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in row.get(side, {}) else "-" for side in SIDES
        ]
        lines.append(
            f"| {name}: {row['what']} | {_milliseconds(row['ours'])} | {_milliseconds(row['eager'])} | "
            f"{_milliseconds(compiled)} | {times:.2f} | {_utilisation(row, machine)} | "
            f"{row['ours']['first_result']:.1f} / {compiled.get('first_result', float('nan')):.1f} s | "
            f"{' / '.join(peaks)} MiB | {row['error']:.0e} |"
        )
    return "\n".join(lines)


def _utilisation(row: dict, machine: dict) -> str:
    """The useful FLOPs of our run as a share of what the device does in a matrix product, torch's or ours."""
    best = max(machine["matrix_flops"].values())
    return f"{row['flops'] / row['ours']['seconds'] / best:.0%}" if row["flops"] else "-"


def _milliseconds(side: dict) -> str:
    return f"{side['seconds'] * 1e3:.0f} ms" if side else "-"


def _plot(report: dict, path: Path) -> None:
    """Bars of time against vdit's; below 1 the other side is faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(report["cases"])
    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(names) + 1.6))
    for offset, side, colour in ((0.2, "eager", "#9aa5b1"), (-0.2, "compile", "#3b6ea5")):
        rows = [(i, report["cases"][name]) for i, name in enumerate(reversed(names))]
        ratios = [(i + offset, row[side]["seconds"] / row["ours"]["seconds"]) for i, row in rows if side in row]
        if ratios:
            label = {"eager": "torch eager", "compile": "torch.compile"}[side]
            bars = axes.barh(*zip(*ratios), height=0.36, color=colour, label=label)
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel("time divided by vdit's (to the right of 1: vdit is faster)")
    axes.legend(loc="upper right")
    axes.set_title(f"{report['machine']['device']}, {report['machine']['threads']} threads", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
