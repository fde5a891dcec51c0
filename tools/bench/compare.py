"""Two checkouts of vdit beside each other: the cases of peers.py, in one interleaved run.

    git worktree add ../before COMMIT
    python tools/bench/compare.py ../before                     # every short case
    python tools/bench/compare.py ../before --cases wan-1000 sampling --repeats 15

Each checkout works in a process of its own, with its own tools/bench/cases.py and the same random weights. After both
have compiled, they run in turn (old, new, new, old, ...), so that a machine that gets slower slows both. The ratio is
new over old: the median over the pairs, with the quartiles beside it; CPU seconds have a ratio of their own, which
says more on a busy machine. Exit code 1 where a ratio is above --limit (1.03) and its lower quartile too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "dit-forward", "dit-training", "wan-1000", "narrow-vae-encode", "narrow-vae-decode", "text-encoder", "sampling",
)  # fmt: skip


class Worker:
    """A process that runs one case with the code of one checkout whenever it is asked."""

    def __init__(self, tree: Path, case: str):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "tools" / "bench"))),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        arguments = [sys.executable, str(Path(__file__).resolve()), str(tree), "--work", case]
        self._process = subprocess.Popen(
            arguments, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tree
        )
        self.tree = tree

    def answer(self) -> dict:
        """The next line that the process prints as JSON."""
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"compare: the process of {self.tree} ended with code {self._process.wait()}")

    def run(self) -> dict:
        """{"wall", "cpu"}: seconds of one more run."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def work(case: str) -> None:
    """In a worker: compiles the case, then runs it once for each line that comes."""
    sys.path.pop(0)  # this script's own folder, which may be of the other checkout
    from cases import CASES

    began = time.perf_counter()
    run = CASES[case](only="ours").ours()
    run()
    run()
    print(json.dumps({"first": time.perf_counter() - began}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


def measure(case: str, old: Path, new: Path, repeats: int) -> dict:
    """Seconds of both, and quartiles of the ratio new / old."""
    sides = {"old": Worker(old, case), "new": Worker(new, case)}
    row: dict = {f"first_{side}": worker.answer()["first"] for side, worker in sides.items()}
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in list(sides)[:: 1 if repeat % 2 else -1]:
            runs[side].append(sides[side].run())
    for worker in sides.values():
        worker.end()
    for clock in ("wall", "cpu"):
        pairs = [(new[clock], old[clock]) for new, old in zip(runs["new"], runs["old"])]
        row[clock] = statistics.quantiles([a / b for a, b in pairs], n=4)
        row[f"seconds_{clock}"] = [statistics.median(side) for side in zip(*pairs)]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("--new", type=Path, default=ROOT, help="default: this checkout")
    parser.add_argument("--cases", nargs="+", metavar="CASE", default=SHORT, help=f"default: {' '.join(SHORT)}")
    parser.add_argument("--repeats", type=int, default=11, help="runs of each; default: 11")
    parser.add_argument("--limit", type=float, default=1.03, help="the largest ratio; default: 1.03")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    rows, slow = {}, []
    print(
        "case                 old        new        wall new/old (quartiles)      CPU new/old (quartiles)", flush=True
    )
    for case in options.cases:
        row = rows[case] = measure(case, options.old.resolve(), options.new.resolve(), options.repeats)
        new, old = row["seconds_wall"]
        ratios = ["{1:.3f} ({0:.3f} to {2:.3f})".format(*row[clock]) for clock in ("wall", "cpu")]
        print(f"{case:20} {old * 1e3:6.0f} ms  {new * 1e3:6.0f} ms  {ratios[0]:28}  {ratios[1]}", flush=True)
        if min(row["wall"][1], row["cpu"][1]) > options.limit and min(row["wall"][0], row["cpu"][0]) > options.limit:
            slow.append(case)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if slow:
        print(f"more than {options.limit:g} times as slow: {', '.join(slow)}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
