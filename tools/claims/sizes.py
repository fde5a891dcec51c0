"""Native sizes against one size: framing, and quality at every size, duration and aspect ratio at equal compute."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

import vdit
from experiments.recaption import config
from tools.claims import common
from vdit import worlds
from vdit.data.config import DataConfig
from vdit.data.data_source import Sample, Source, WorldsSource, draws
from vdit.eval.detectors import detect, framing
from vdit.experiment.experiment import Experiment, LatentsConfig
from vdit.quickstart.config import HELD_OUT_SEED
from vdit.registry import register
from vdit.train.workspace import Workspace
from vdit.worlds.moving import subset

SIZE, FRAMES, FPS = 48, 9, 8.0  # of the arms with one size
ASPECTS = (0.5, 1.0, 2.0)
OPTIONS = ("subset=train", "sizes=(0.22,0.30)")
SHAPES = {  # name -> frames, height, width of videos that are sampled
    "48x48, 9 frames": (9, 48, 48),
    "32x64, 9 frames": (9, 32, 64),
    "64x32, 9 frames": (9, 64, 32),
    "64x64, 9 frames": (9, 64, 64),
    "48x48, 17 frames": (17, 48, 48),
    "48x48, image": (1, 48, 48),
}
ARMS = ("native", "crop", "squash")


@register("data_source", "worlds_of_one_size")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OneSize(WorldsSource):
    """Scenes of several aspect ratios as pipelines of one size give them: all square, all of one duration.

    cut: "crop" takes the middle square, "squash" scales the whole frame to a square.
    """

    cut: Literal["crop", "squash"] = "crop"

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        world = worlds.make(self.world, seed=seed, count=self.count, frames=FRAMES, fps=FPS, **self.arguments())
        return _Squares(world, self.cut, data.aspects, seed)


class _Squares(Source):
    def __init__(self, world: worlds.World, cut: str, aspects: tuple[float, ...], seed: int):
        super().__init__()
        self.world, self.cut, self.aspects, self.seed = world, cut, aspects, seed

    def __len__(self) -> int:
        return len(self.world)

    def read(self, item: int, epoch: int) -> Sample:
        aspect = float(draws(self.seed, item, 0).choice(self.aspects))
        size = (round(SIZE * max(1 / aspect, 1)), round(SIZE * max(aspect, 1)))
        scene = self.world.render(item, size=size, frames=FRAMES, fps=FPS)
        video = middle(scene.video) if self.cut == "crop" else squashed(scene.video)
        return {"video": video, "captions": [scene.caption, scene.detailed], "fps": FPS, "label": 0,
                "id": f"{self.world.name}[{item}]"}  # fmt: skip


def middle(video: np.ndarray) -> np.ndarray:
    """The middle SIZE x SIZE pixels of every frame."""
    top, left = ((length - SIZE) // 2 for length in video.shape[1:3])
    return np.ascontiguousarray(video[:, top : top + SIZE, left : left + SIZE])


def squashed(video: np.ndarray) -> np.ndarray:
    """Every frame scaled to SIZE x SIZE pixels."""
    return np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in video])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="of each model; default: the experiment's")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1), help="default: 0 1")
    parser.add_argument("--count", type=int, default=64, help="videos of each model and size; default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: all")


def experiment(base: Experiment, arm: str, seed: int) -> Experiment:
    """One way to feed clips of several aspect ratios. Rows have the same number of tokens in all."""
    data = dataclasses.replace(base.data, aspects=ASPECTS, max_text_per_row=512, max_clips_per_row=24,
                               max_frames_per_row=32)  # fmt: skip
    if arm == "native":
        source = WorldsSource(world="moving", count=base.data.source.count, options=OPTIONS)
        data = dataclasses.replace(
            data, source=source, pixel_budgets=(32**2, 48**2, 48**2, 64**2), frames=(1, 5, 9, 17)
        )
    else:
        source = OneSize(world="moving", count=base.data.source.count, options=OPTIONS, cut=arm)
        data = dataclasses.replace(data, source=source)
    return dataclasses.replace(base, name=f"sizes-{arm}", seed=seed, data=data,
                               latents=LatentsConfig(samples=base.latents.samples))  # fmt: skip


def main(options: argparse.Namespace) -> None:
    folder = options.out / "sizes"
    base = common.steps_of(config(), options.steps)
    vae = common.prepare(options.out / "common", base)
    results = {}
    for seed in options.seeds:
        for arm in options.arms:
            made = experiment(base, arm, seed)
            shared = common.prepare(folder / f"latents-{arm}", dataclasses.replace(made, seed=base.seed), vae)
            found = common.trained(folder / f"{arm}-{seed}", made, shared, lambda space: measure(space, options.count))
            results[f"{arm}-{seed}"] = found | {"arm": arm, "seed": seed}
            first = found["shapes"]["48x48, 9 frames"]
            common.say(f"{arm} seed {seed}, 48x48: all right {np.mean(np.all(first['right'], 1)):.0%}, "
                       f"whole in {np.mean(first['whole']):.0%} of frames")  # fmt: skip
    report(folder, results, trained_frames(options.count))


def measure(space: Workspace, count: int) -> dict:
    """Of each shape of `SHAPES`: which videos are right, and how they are framed."""
    generator, found = vdit.load(space.root), {}
    for name, (frames, height, width) in SHAPES.items():
        world = worlds.make("moving", seed=HELD_OUT_SEED, count=count, size=(height, width), frames=frames, fps=FPS,
                            combos=subset("held_out"), sizes=(0.22, 0.30))  # fmt: skip
        scenes = [world[i] for i in range(count)]
        videos = np.concatenate([
            np.asarray(generator([scene.caption for scene in scenes[at : at + 32]], seed=at, frames=frames,
                                 size=(height, width)))
            for at in range(0, count, 32)
        ])  # fmt: skip
        right = []
        for video, scene in zip(videos, scenes):
            seen, (colour, shape, way) = detect(video), scene.meta["combo"]
            right.append([seen.colour == colour, seen.shape == shape, frames == 1 or seen.direction == way])
        framed = np.array([framing(video) for video in videos])
        found[name] = {"right": right, "whole": framed[:, 0].tolist(), "cut": framed[:, 1].tolist()}
    return {"shapes": found}


def trained_frames(count: int) -> dict[str, float]:
    """The share of frames with a whole object in what each arm is trained on."""
    base, shares = config(), {}
    for arm in ARMS:
        made = experiment(base, arm, base.seed)
        source = made.data.source.open(made.data, seed=base.seed)
        shares[arm] = float(np.mean([framing(source[i]["video"])[0] for i in range(count)]))
    return shares


def report(folder: Path, results: dict[str, dict], shown: dict[str, float]) -> None:
    rows = [["videos", "arm", "colour", "shape", "direction", "all right", "whole in the frame", "border covered"]]
    bars: dict[str, dict[str, tuple]] = {"all right": {}, "whole in the frame": {}}
    arms = list(dict.fromkeys(one["arm"] for one in results.values()))
    for name in SHAPES:
        for arm in arms:
            group = [one["shapes"][name] for one in results.values() if one["arm"] == arm]
            right = np.array([one["right"] for one in group], bool)
            shares = [common.interval(right[..., part]) for part in range(3)] + [common.interval(right.all(-1))]
            whole = common.interval([one["whole"] for one in group])
            cut = common.interval([one["cut"] for one in group])
            bars["all right"][name, arm], bars["whole in the frame"][name, arm] = shares[3], whole
            cells = [f"{mean:.0%} ({low:.0%} to {high:.0%})" for mean, low, high in (*shares, whole)]
            rows.append([name, arm, *cells, f"{cut[0]:.2f} ({cut[1]:.2f} to {cut[2]:.2f})"])
    notes = ["Whole in the frame, in what the arms are trained on: "
             + ", ".join(f"{arm} {share:.0%}" for arm, share in shown.items()) + "."]  # fmt: skip
    common.save(folder, {"runs": results, "trained": shown}, rows, notes)
    plot(folder / "plot.png", bars, arms)


def plot(file: Path, bars: dict[str, dict[tuple, tuple]], arms: list[str]) -> None:
    made, panels = common.figure(2, sharey=True)
    for panel, (title, of) in zip(panels, bars.items()):
        for place, arm in enumerate(arms):
            mean, low, high = np.array([of[name, arm] for name in SHAPES]).T
            at = np.arange(len(SHAPES)) + 0.8 * (place + 0.5) / len(arms) - 0.4
            errors = np.maximum((mean - low, high - mean), 0)
            panel.bar(at, mean, 0.8 / len(arms), yerr=errors, capsize=2, label=arm)
        panel.set_xticks(range(len(SHAPES)), [name.replace(", ", "\n") for name in SHAPES], fontsize=6)
        panel.set(title=title, ylim=(0, 1.05))
    panels[0].legend(fontsize=8)
    made.tight_layout()
    made.savefig(file, dpi=120)
