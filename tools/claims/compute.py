"""Quality against training compute: four sizes of model, three sizes of patch, the same clips in the same order."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import vdit
from experiments.recaption import config
from tools.claims import common
from vdit.data.data_source import WorldsSource
from vdit.eval.detectors import detect
from vdit.experiment.experiment import Experiment
from vdit.plan.programs import train_flops
from vdit.quickstart.config import held_out
from vdit.quickstart.score import hits, sample_videos
from vdit.train.evaluate import DenoisingEvaluator
from vdit.train.workspace import Workspace

MODELS = {"48 x 2": (48, 2, 3), "80 x 3": (80, 3, 5), "128 x 4": (128, 4, 4), "192 x 5": (192, 5, 6)}
PATCHES = (3, 2, 1)
CLIPS = 8  # in a row, of every arm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=1000, help="of each model; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1), help="default: 0 1")
    parser.add_argument("--count", type=int, default=64, help="videos of each model; default: %(default)s")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=tuple(MODELS), help="width x depth; default: all"
    )


def experiment(base: Experiment, model: str, patch: int, seed: int) -> Experiment:
    """A size of model with a size of patch; a row has the same clips with each."""
    width, depth, heads = MODELS[model]
    places = base.sample.size[0] // base.vae.spatial_stride // patch
    frames = 1 + (base.sample.frames - 1) // base.vae.temporal_stride
    data = dataclasses.replace(base.data, row_tokens=CLIPS * frames * places**2, size_multiple=8 * patch)
    backbone = dataclasses.replace(base.backbone, width=width, depth=depth, heads=heads, patch=(1, patch, patch))
    return dataclasses.replace(
        base,
        name=f"compute-{width}x{depth}-{patch}",
        seed=seed,
        data=data,
        backbone=backbone,
        held_out=WorldsSource(world="moving", options=("subset=held_out", "sizes=(0.22,0.30)")),
        evaluators=(DenoisingEvaluator(every=base.dit_train.steps, clips=64),),
    )


def main(options: argparse.Namespace) -> None:
    folder = options.out / "compute"
    base = common.steps_of(config(), options.steps)
    shared = common.prepare(options.out / "common", base)
    results = {}
    for seed in options.seeds:
        for model in options.models:
            for patch in PATCHES:
                made = experiment(base, model, patch, seed)
                name = f"{model} patch {patch} seed {seed}"
                found = common.trained(
                    folder / f"{made.name}-{seed}", made, shared, lambda space: measure(space, options.count)
                )
                results[name] = found | {"model": model, "patch": patch, "seed": seed}
                common.say(f"{name}: {found['flops']:.2e} FLOPs, held-out loss {found['loss']:.4f}, "
                           f"all right {np.mean(np.all(found['right'], 1)):.0%}")  # fmt: skip
    report(folder, results)


def measure(space: Workspace, count: int) -> dict:
    made = space.experiment()
    wanted = held_out(made, count)
    videos = sample_videos(vdit.load(space.root), [one.prompt for one in wanted], batch=32, progress=lambda done: None)
    return {
        "flops": train_flops(made) * made.dit_train.steps,
        "loss": common.last_logged(space, "eval/denoising/loss"),
        "right": hits([detect(video) for video in videos], wanted).tolist(),
    }


def report(folder: Path, results: dict[str, dict]) -> None:
    rows = [["model", "patch", "FLOPs", "held-out loss", "colour", "shape", "direction", "all right"]]
    points = []
    for model, patch in dict.fromkeys((one["model"], one["patch"]) for one in results.values()):
        group = [one for one in results.values() if (one["model"], one["patch"]) == (model, patch)]
        right = np.array([one["right"] for one in group], bool)  # [seeds videos 3]
        losses = [one["loss"] for one in group]
        shares = [common.interval(right[..., part]) for part in range(3)] + [common.interval(right.all(-1))]
        points.append((patch, group[0]["flops"], np.mean(losses), shares[3]))
        loss = f"{np.mean(losses):.4f} (" + ", ".join(f"{value:.4f}" for value in losses) + ")"
        cells = [f"{mean:.0%} ({low:.0%} to {high:.0%})" for mean, low, high in shares]
        rows.append([model, f"{patch}x{patch}", f"{group[0]['flops']:.2e}", loss, *cells])
    flops, loss = np.array([(flops, loss) for _, flops, loss, _ in points]).T
    slope, offset, explained = line(flops, loss)
    notes = [
        f"One line through all: loss = {np.exp(offset):.3g} x FLOPs^{slope:.3f} explains {explained:.0%} of the "
        "variance of log loss.",
        *(
            f"Patches {patch}x{patch} alone: exponent {line(*of_patch(points, patch))[0]:.3f}, "
            f"{line(*of_patch(points, patch))[2]:.0%} explained."
            for patch in PATCHES if sum(one[0] == patch for one in points) > 1
        ),
    ]  # fmt: skip
    common.save(folder, {"runs": results, "line": {"exponent": slope, "explained": explained}}, rows, notes)
    plot(folder / "plot.png", points, slope, offset)


def of_patch(points: list[tuple], patch: int) -> np.ndarray:
    """FLOPs and losses [2 n] of one size of patch."""
    return np.array([(flops, loss) for size, flops, loss, _ in points if size == patch]).T


def line(flops: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
    """(exponent, log offset, share of the variance explained) of the power law through the points."""
    x, y = np.log(flops), np.log(loss)
    slope, offset = np.polyfit(x, y, 1)
    rest = y - slope * x - offset
    return float(slope), float(offset), float(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum())


def plot(file: Path, points: list[tuple], slope: float, offset: float) -> None:
    made, (left, right) = common.figure(2)
    for patch in PATCHES:
        own = sorted((one for one in points if one[0] == patch), key=lambda one: one[1])
        if not own:
            continue
        flops = [one[1] for one in own]
        left.plot(flops, [one[2] for one in own], "o-", label=f"patches {patch}x{patch}")
        mean, low, high = np.array([one[3] for one in own]).T
        right.errorbar(flops, mean, (mean - low, high - mean), fmt="o-", capsize=3, label=f"patches {patch}x{patch}")
    ends = np.array([min(one[1] for one in points), max(one[1] for one in points)])
    left.plot(ends, np.exp(offset) * ends**slope, "k--", linewidth=1, label="one power law")
    left.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="held-out loss")
    right.set(xscale="log", xlabel="training FLOPs", ylabel="colour, shape and direction right", ylim=(0, 1))
    left.legend(fontsize=8)
    made.tight_layout()
    made.savefig(file, dpi=120)
