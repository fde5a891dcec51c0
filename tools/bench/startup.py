"""How long vdit takes to start: its help, its imports, and all that sampling does before the first step.

    python tools/bench/startup.py RUN [--repeat 3] [--json FILE]

RUN is the folder of a trained run; a small one, since what is measured must not hide behind its size. Times are CPU
seconds (user and system, all threads), the least of some runs, so that a busy machine changes little; wall seconds
stand beside them. Sampling is called twice in one process, with a warm compilation cache: the overhead is all that
came before the end of the first call, less what the second call took.

Exit code 1 where a budget is exceeded: 0.3 s for the help, 3 s for the overhead of sampling.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

BUDGETS = {"vdit --help": 0.3, "before the first step": 3.0}  # CPU seconds

SAMPLE = """
import sys, time
from vdit.cli.process import keep_compiled
keep_compiled()
import numpy, vdit
generator = vdit.load(sys.argv[1])
make = lambda: numpy.asarray(generator(["a red circle"]))
make()
first = time.process_time()
make()
print(2 * first - time.process_time())
"""


def measure(arguments: list[str]) -> tuple[float, float, str]:
    """(CPU seconds, wall seconds, what was printed) of a process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    python = [sys.executable, "-c"]
    cases = {
        "python": [*python, ""],
        "import vdit": [*python, "import vdit"],
        "vdit --help": [sys.executable, "-m", "vdit.cli.main", "--help"],
        "import jax": [*python, "import jax"],
        "import vdit.generate": [*python, "import vdit.generate"],
        "before the first step": [*python, SAMPLE, str(options.run)],
    }
    measure(cases["before the first step"])  # fills the compilation cache
    rows = {}
    for name, arguments in cases.items():
        runs = [measure(arguments) for _ in range(options.repeat)]
        cpu = min(float(out) if name == "before the first step" else cpu for cpu, _, out in runs)
        rows[name] = {"cpu": round(cpu, 3), "wall": round(min(wall for _, wall, _ in runs), 3)}
        budget = BUDGETS.get(name)
        verdict = "" if budget is None else f"  (budget {budget:g} s{'' if cpu <= budget else ': EXCEEDED'})"
        print(f"{name:24} {rows[name]['cpu']:7.2f} s of CPU {rows[name]['wall']:7.2f} s in all{verdict}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(rows[name]["cpu"] > budget for name, budget in BUDGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
