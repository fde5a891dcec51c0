"""First contact with a GPU: what works there, how fast, beside torch and beside the roofline; one command.

    python tools/bench/accelerator.py --minutes 9 --out results      # on a machine with a GPU
    python tools/bench/accelerator.py --minutes 9 --out results      # again: goes on with what is missing
    python tools/bench/accelerator.py --dry --out results            # tiny sizes on a CPU, every stage
    python tools/bench/accelerator.py --expected H200                # no run: what each figure should be
    python tools/bench/accelerator.py --carry                        # wheels and latents that the machine lacks
    python tools/bench/accelerator.py --check-size                   # what travels to such a machine: below 64 MB

Six stages, in the order of their worth: kernels, training, peers, tests, model, page. Each is a process of its own
with a time limit of its own; what it measures is written to OUT/accelerator.json after every measurement. A failure
is kept there with its whole traceback and stops nothing else: where a process dies, it is started again for the
measurements that are left. A second run skips what was measured, and tries first what was never tried.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from accel import carry, record
from accel.record import Record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GRACE = 3.0  # seconds between SIGTERM and SIGKILL
LEAST = 2.0  # seconds that a stage needs to be worth a start
RESTARTS = 8  # of one stage's process
SLOWER = 3  # how much more time a stage has on a CPU


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """name: also of its module in accel/. seconds: at most, of a run of 9 minutes; None takes what is left.

    keep: seconds that are kept for the stages after it. command: in the place of the stage's own process.
    """

    name: str
    what: str
    seconds: float | None
    keep: float = 0.0
    command: tuple[str, ...] = ()


STAGES = (
    Stage(name="kernels", what="what is there, rates, kernels", seconds=75),
    Stage(name="training", what="training: tokens a second, memory, where the time goes", seconds=130),
    Stage(name="peers", what="beside torch, same weights and inputs", seconds=130),
    Stage(name="tests", what="the tests marked gpu", seconds=60),
    Stage(name="model", what="the shipped model, trained on prepared latents", seconds=None, keep=25),
    Stage(name="page", what="table, roofline, samples", seconds=60),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.check_size:
        return carry.check_size(ROOT, options.carried)
    if options.carry:
        return carry.prepare(ROOT, options.carried, dry=options.dry)
    if options.stage or options.expected:
        return _work(options)
    stages = _stages(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a stage's process goes too
    book = Record(options.out / "accelerator.json")
    book.begin(dry=options.dry, minutes=options.minutes)
    end = time.time() + 60 * options.minutes
    environment = _environment(options)
    for number, stage in enumerate(stages, start=1):
        print(f"[{number}/{len(stages)}] {stage.name}: {stage.what}", flush=True)
        after = sum(min(other.seconds or 0, 25) for other in stages[number:] if other.name == "page")
        most = (stage.seconds or float("inf")) * (SLOWER if options.dry else 1)
        seconds = min(end - time.time() - max(stage.keep, after), most)
        if options.limit is not None:
            seconds = min(seconds, options.limit)
        if seconds < LEAST:
            book.stage(stage.name, status="no time", seconds=0.0)
            continue
        _run_stage(stage, seconds, options, book, environment)
    print(record.table(book.read()))
    print(f"\nwritten: {', '.join(str(path) for path in sorted(options.out.iterdir()) if path.is_file())}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together; default: 9")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of results; default: results")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU: does every stage work?")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help=f"some of {', '.join(s.name for s in STAGES)}")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="a lower limit for each stage")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N measurements of each stage")
    parser.add_argument("--stages", type=Path, metavar="FILE", help="JSON: other stages, of name, seconds, command")
    parser.add_argument("--expected", metavar="CHIP", help="print the expected figures of H100 or H200 and stop")
    parser.add_argument("--carry", action="store_true", help="prepare what the machine lacks, in --carried")
    parser.add_argument("--check-size", action="store_true", help="exit code 1 if more than 64 MB would travel")
    parser.add_argument("--carried", type=Path, default=ROOT / ".carry", help="folder of wheels and latents")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _stages(options: argparse.Namespace) -> tuple[Stage, ...]:
    stages = STAGES
    if options.stages is not None:
        rows = json.loads(options.stages.read_text())
        stages = tuple(Stage(**{"what": "", **row, "command": tuple(row["command"])}) for row in rows)
    names = [stage.name for stage in stages]
    for name in options.only or ():
        if name not in names:
            sys.exit(f"accelerator: stage {name!r} is unknown: use some of {', '.join(names)}")
    return tuple(stage for stage in stages if not options.only or stage.name in options.only)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Of the stages' processes: the tree and the carried wheels are found, programs compiled once are kept."""
    scratch = Path(tempfile.gettempdir()) / "vdit-accelerator"
    more = {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # torch works beside JAX
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(scratch / "compiled")),
        "VDIT_ACCELERATOR_CARRIED": str(options.carried.resolve()),
    }
    if options.dry:
        more["JAX_PLATFORMS"] = "cpu"
    site, failure = carry.install(options.carried, scratch / "site")
    if failure:
        print(f"  carried wheels are not installed: {failure}", flush=True)
    paths = [str(ROOT), str(HERE), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    return os.environ | more | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _run_stage(
    stage: Stage, seconds: float, options: argparse.Namespace, book: Record, environment: dict[str, str]
) -> None:
    """Runs a stage's process until it is done, or the time is up; again where it died, for what is left."""
    began, status = time.time(), "died too often"
    until = began + seconds
    book.stage(stage.name, status="running", seconds=0.0)
    command = stage.command or (
        sys.executable,
        str(Path(__file__).resolve()),
        "--stage",
        stage.name,
        "--out",
        str(options.out),
        "--until",
        f"{until - 1:.3f}",
        *(["--dry"] if options.dry else []),
        *(["--first", str(options.first)] if options.first else []),
    )
    for _ in range(RESTARTS):
        code, tail = _run(command, until - time.time(), environment, options.out / "accelerator.log")
        running = book.running(stage.name)
        if code is None:
            book.cut(stage.name, f"the limit of the stage, {seconds:.0f} s, was reached", tail)
            status = "limit reached"
            break
        if code == 0:
            book.cut(stage.name, "its process ended before it did", tail)
            status = "done"
            break
        if code != record.AGAIN:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            book.cut(stage.name, f"the process ended: {how}", tail)
            if not running:  # it died outside of a measurement: another start would too
                book.stage(stage.name, failure=tail)
                status = f"failed: {how}"
                break
        if until - time.time() < LEAST:
            status = "limit reached"
            break
    book.stage(stage.name, status=status, seconds=round(time.time() - began, 1))
    counts = book.counts(stage.name)
    print(f"  {status}, {time.time() - began:.0f} s: " + ", ".join(f"{n} {word}" for word, n in counts.items()))


def _run(command: Sequence[str], seconds: float, environment: dict[str, str], log: Path) -> tuple[int | None, str]:
    """(exit code, None where the time was up; the end of what it wrote), in a group that is ended as a whole."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        start = file.tell()
        with _group(command, environment, file) as process, contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(seconds, 0.1))
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        tail = file.read().decode(errors="replace")
    return process.ended_by_itself, tail


@contextlib.contextmanager
def _group(command: Sequence[str], environment: dict[str, str], file) -> Iterator[subprocess.Popen]:
    """A process with all that it starts, ended with the body: by SIGTERM, then by SIGKILL."""
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    )
    process.ended_by_itself = None
    try:
        yield process
        process.ended_by_itself = process.poll()
    finally:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=patience)
                if number == signal.SIGTERM and process.ended_by_itself is not None:
                    break


def _work(options: argparse.Namespace) -> int:
    """In a stage's process: its measurements, one after the other."""
    import importlib

    sys.path.insert(0, str(ROOT))
    if options.expected:
        from accel.expected import expected_table

        print(expected_table(options.expected, [stage.name for stage in STAGES]))
        return 0
    module = importlib.import_module(f"accel.{options.stage}")
    book = Record(options.out / "accelerator.json")
    return record.work(
        book,
        options.stage,
        module.probes(options.dry, options.out, options.until)[: options.first],
        until=options.until,
        healthy=getattr(module, "healthy", lambda: True),
        reached=getattr(module, "reached", None),
    )


if __name__ == "__main__":
    sys.exit(main())
