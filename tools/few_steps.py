"""A distilled model against its teacher: the share of correct videos at each number of steps, and the time.

    python tools/few_steps.py runs/quickstart runs/fast

Both are runs of the quickstart's model. The same held-out prompts as the quickstart, judged by the same exact detector.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import vdit
from vdit.eval.detectors import detect
from vdit.quickstart.config import held_out
from vdit.quickstart.score import PARTS, hits, shares

CASES = (
    ("teacher", "heun", 20), ("teacher", "euler", 8), ("teacher", "euler", 4), ("teacher", "euler", 2),
    ("student", "consistency", 8), ("student", "consistency", 4), ("student", "consistency", 2),
    ("student", "consistency", 1),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--prompts", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="videos of each prompt (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="default: %(default)s")
    options = parser.parse_args()
    models = {"teacher": vdit.load(options.teacher), "student": vdit.load(options.student)}
    asked = held_out(models["teacher"].experiment, options.prompts) * options.seeds
    print(f"{'model':8} {'sampler':12} steps  seconds  " + "  ".join(f"{part:>9}" for part in (*PARTS, "all")))
    for name, sampler, steps in CASES:
        model = models[name]
        videos, seconds = [], 0.0
        for start in range(0, len(asked), options.batch):
            prompts = [one.prompt for one in asked[start : start + options.batch]]
            began = time.perf_counter()
            videos.extend(np.asarray(model(prompts, sampler=sampler, steps=steps, seed=start)))
            # The first batch also compiles.
            seconds = time.perf_counter() - began
        right = shares(hits([detect(video) for video in videos], asked))
        figures = "  ".join(f"{right[part]:9.1%}" for part in (*PARTS, "all"))
        print(f"{name:8} {sampler:12} {steps:5}  {seconds:7.2f}  {figures}", flush=True)


if __name__ == "__main__":
    main()
