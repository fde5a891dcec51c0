"""Every video command measured against exact ground truth: a table for each task, and one page with the videos.

    python tools/canvas_report.py runs/demo --simulator runs/steer --out canvas_report
    python tools/canvas_report.py runs/quickstart --only joins

RUN is a run of experiments/worlds_demo.py (for `joins` any run on the world "moving"), --simulator one of
experiments/worlds_steer.py. Scenes are drawn from a seed that training never saw. Baselines: copying the last frame,
and a linear blend where there are two ends. Writes OUT/report.html, OUT/report.png (the first scene of each task) and
OUT/results.json, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from canvas_measures import MEASURES, Measure
from canvas_rollout import rollout, simulate
from contact_sheet import sheet

import vdit
from vdit.eval.page import Page
from vdit.train.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of experiments/worlds_demo.py")
    parser.add_argument("--simulator", help="a run of experiments/worlds_steer.py")
    parser.add_argument("--out", default="canvas_report", help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=24, help="of each task; default: %(default)s")
    parser.add_argument("--seconds", type=int, default=60, help="of the rollout; default: %(default)s")
    parser.add_argument("--only", nargs="*", default=[], help=f"of {', '.join([*MEASURES, 'rollout', 'simulate'])}")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    generator = vdit.load(options.run)
    wanted = options.only or [*MEASURES, "rollout", "simulate"]
    jobs = {name: lambda measure=measure: measure(generator, options.scenes) for name, measure in MEASURES.items()}
    jobs["rollout"] = lambda: rollout(generator, options.run, seconds=options.seconds, out=out)
    if options.simulator:
        jobs["simulate"] = lambda: simulate(vdit.load(options.simulator), options.scenes)
    measures = []
    for name in (name for name in jobs if name in wanted):
        began = time.perf_counter()
        measures.append(jobs[name]())
        print_table(measures[-1])
        print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)
    save(measures, options.run, generator.experiment.sample.fps, out)
    print(out / "report.html")


def print_table(measure: Measure) -> None:
    headers, rows = measure.table()
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    print(f"{measure.name}: {measure.what}")
    for row in [headers, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)))


def save(measures: list[Measure], run: str, fps: float, out: Path) -> None:
    """OUT/results.json, with what was measured before in it, and OUT/report.html."""
    page = Page("vdit: one canvas", "One small model, every way of making a video, against exact truth.")
    costs = [(stage, round(cost["seconds"])) for stage, cost in Workspace(run).costs().items()]
    page.table(("stage", "seconds"), costs, title="Training")
    page.text("Errors of position are shares of the frame's short side. Scenes are the first of a seed, not the best.")
    results = {}
    for measure in measures:
        page.table(*measure.table(), title=f"{measure.name}: {measure.what}")
        page.videos(measure.cards, fps, columns=measure.columns)
        results[measure.name] = measure.rows
    file = out / "results.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | results, indent=1) + "\n")
    page.save(out / "report.html")
    firsts = [(measure.name, card) for measure in measures for card in measure.cards[: measure.columns]]
    shown = [(video, f"{name}: {text}") for name, (video, text) in firsts]
    sheet(*zip(*shown), shown=6).save(out / "report.png", optimize=True)


if __name__ == "__main__":
    main()
