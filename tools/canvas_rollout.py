"""Long rollouts and simulations, measured: memory, drift, actions obeyed, speed (see canvas_report.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from canvas_measures import SEED, SHARE, TRUTH, Measure, as_bytes, scenes, through

import vdit
import vdit.worlds
from vdit.eval.detectors import colour_drift, count_objects, displacements, obeyed_fraction, track
from vdit.generate.generator import Generator

SHORT = 10  # seconds of the rollout that memory is compared with
STEPS = 40  # of a simulation


def rollout(generator: Generator, run: str, *, seconds: int, out: Path) -> Measure:
    """7. A long video in constant memory, and how colour and count of objects drift along it."""
    scene = next(one for one in scenes(generator, "bounce", 16) if len(one.meta["objects"]) == 1)
    fps = generator.experiment.sample.fps
    files = {length: out / f"rollout-{length}s.mp4" for length in (SHORT, seconds)}
    context = generator.experiment.sample.frames * 3 // 4 // 4 * 4
    costs = {length: _run(run, scene.caption, length, file, context) for length, file in files.items()}
    video = vdit.read_video(files[seconds]).frames
    sixth = len(video) // 6
    seen = track(video)
    drift = colour_drift(seen.rgb, first=int(fps))
    steps = np.linalg.norm(displacements(seen.centres), axis=-1)
    counts = np.array([count_objects(frame) for frame in video])
    grey = np.median(video.reshape(len(video), -1), axis=1)
    rows = []
    for start in range(0, len(video) - sixth + 1, sixth):
        part = slice(start, start + sixth)
        rows.append({
            "seconds": f"{start / fps:.0f} to {(start + sixth) / fps:.0f}",
            "one object" + SHARE: float((counts[part] == 1).mean()),
            "objects": float(counts[part].mean()),
            "pixels a frame": float(np.nanmedian(steps[part])),
            "colour's distance from the first second's, of 255": float(np.nanmean(drift[part])),
            "background": float(grey[part].mean()),
        })  # fmt: skip
    (short, short_time), (long, long_time) = costs[SHORT], costs[seconds]
    what = (
        f"{seconds} s at {fps:g} fps ({len(video)} frames) of {scene.caption!r}, in {long_time:.0f} s, peak memory "
        f"{long / 2**20:.0f} MiB; {SHORT} s in {short_time:.0f} s, {short / 2**20:.0f} MiB ({long / short - 1:+.1%})."
    )
    stills = video[:: max(1, len(video) // 12)]
    cards = [(video[: 8 * int(fps)], "the first 8 s"), (video[-8 * int(fps) :], "the last 8 s")]
    return Measure(name="rollout", what=what, rows=rows, cards=[*cards, (stills, "a frame of each twelfth")])


def _run(run: str, prompt: str, seconds: int, file: Path, context: int) -> tuple[int, float]:
    """(peak memory in bytes, seconds) of the command in a process of its own."""
    command = [sys.executable, "-m", "vdit.cli.main", "rollout", run, prompt, "--seconds", str(seconds), "--seed", "1"]
    # A long memory, known with a little noise: errors do not add up. Stronger guidance by it would end in a standstill.
    command += ["--context", str(context), "--known-level", "0.1", "--context-guidance", "1"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(file)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - began


def simulate(generator: Generator, count: int) -> Measure:
    """8. Whether actions are obeyed, against the world under the same actions, and steps a second."""
    sample, data = generator.experiment.sample, generator.experiment.data
    world = vdit.worlds.make(data.source.world, seed=SEED, count=count, size=sample.size, fps=sample.fps)
    random = np.random.default_rng(SEED)
    obeyed: dict[str, list[float]] = {"model": [], TRUTH: [], "stands still": []}
    place: dict[str, list[float]] = {name: [] for name in obeyed}
    seconds, cards = [], []
    for i in range(count):
        actions = np.repeat(random.integers(-1, 2, (STEPS // 4, 2)), 4, axis=0).astype(np.float32)
        truth = world.play(i, np.concatenate([np.zeros((1, 2), np.float32), actions]))
        simulator = vdit.Simulator(generator, truth.caption, start=truth.video[0], seed=i)
        frames = [truth.video[0]]
        for action in actions:
            began = time.perf_counter()
            frames.extend(as_bytes(simulator.step(action)))
            seconds.append(time.perf_counter() - began)
        video = np.stack(frames)
        scale, positions = truth.meta["scale"], truth.meta["objects"][0]["position"]
        wanted = truth.meta["displacement"] * scale
        for name, clip in (("model", video), (TRUTH, through(generator, truth.video)), ("stands still", None)):
            centres = np.repeat(positions[:1] * scale, STEPS + 1, axis=0) if clip is None else track(clip).centres
            obeyed[name].append(obeyed_fraction(centres, wanted, within=0.5 * world.step * scale))
            place[name].append(np.linalg.norm(centres[-1] - positions[-1] * scale) / scale)
        cards += [(video, truth.caption), (truth.video, "truth")]
    compiled = np.median(seconds[len(seconds) // 2 :])
    what = f"{count} scenes of {STEPS} actions each; {1 / compiled:.1f} steps a second. Obeyed: within half a step."
    table = [
        {"by": name, "obeyed" + SHARE: float(np.mean(obeyed[name])),
         f"error of place after {STEPS} steps": float(np.nanmean(place[name]))}
        for name in obeyed
    ]  # fmt: skip
    return Measure(name="simulate", what=what, rows=table, cards=cards[:16], columns=4)
