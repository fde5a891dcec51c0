"""Physics that emerges: motion, permanence and 3D consistency against size of model and of data, in and out of reach.

The splits of motion are those of PhyWorld (Kang et al., 2024, "How far is video generation from world model"): a ball
of a size and speed as in training, of a size and a speed that were trained but not together, and of a speed that was
never trained.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

import vdit
from experiments.recaption import config
from tools.claims import common
from vdit import worlds
from vdit.data.config import DataConfig
from vdit.data.data_source import DataSource, Sample, Source, WorldsSource
from vdit.eval.detectors import displacements, track
from vdit.eval.evaluate import Case
from vdit.eval.world_metrics import CameraAndSpace, Permanence
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig
from vdit.quickstart.config import HELD_OUT_SEED
from vdit.registry import register
from vdit.train.workspace import Workspace

SIZE, FRAMES, GIVEN, FPS = 48, 17, 5, 8.0
MODELS = {"64 x 2": (64, 2, 4), "128 x 4": (128, 4, 4)}
SCENES = (64, 512, 4096)

ONE_BALL = "balls=(1,1)"
SMALL, LARGE = "radii=(0.08,0.10)", "radii=(0.13,0.15)"
SLOW, QUICK, FASTER = "speeds=(0.2,0.35)", "speeds=(0.5,0.65)", "speeds=(0.9,1.1)"
TRAINED = {
    "bounce, small and slow": ("bounce", (ONE_BALL, SMALL, SLOW)),
    "bounce, large and quick": ("bounce", (ONE_BALL, LARGE, QUICK)),
    "occluder": ("occluder", ("sizes=(0.1,0.12)", "hiding=(0.03,0.06)", "place=(0.4,0.6)")),
    "orbit": ("orbit", ("solids=(1,2)",)),
}
SPLITS = {
    "as trained": (TRAINED["bounce, small and slow"], TRAINED["bounce, large and quick"]),
    "new combination": (("bounce", (ONE_BALL, SMALL, QUICK)), ("bounce", (ONE_BALL, LARGE, SLOW))),
    "new speed": (("bounce", (ONE_BALL, SMALL, FASTER)), ("bounce", (ONE_BALL, LARGE, FASTER))),
}
MEASURES = {  # name -> (unit, which is better)
    **{f"velocity, {name}": ("short sides a second", "lower") for name in SPLITS},
    "permanence": ("share", "higher"),
    "camera": ("degrees", "lower"),
    "space": ("short sides", "lower"),
}


@register("data_source", "worlds_in_turn")
@dataclasses.dataclass(frozen=True, kw_only=True)
class InTurn(DataSource):
    """Worlds in turn, each with options of its own, `count` scenes in all."""

    count: int = 4096

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        each = self.count // len(TRAINED)
        parts = [WorldsSource(world=world, count=each, options=options).open(data, seed=seed + number, holdout=holdout)
                 for number, (world, options) in enumerate(TRAINED.values())]  # fmt: skip
        return _InTurn(parts)


class _InTurn(Source):
    def __init__(self, parts: Sequence[Source]):
        super().__init__()
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, item: int, epoch: int) -> Sample:
        number, part = divmod(item, len(self.parts))
        return self.parts[part].read(number, epoch)

    def crops(self, *, size: tuple[int, int], frames: int) -> Source:
        """Windows of one size, for the VAE."""
        return _InTurn([part.crops(size=size, frames=frames) for part in self.parts])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=2500, help="of each model; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="default: 0")
    parser.add_argument("--count", type=int, default=32, help="scenes of each kind; default: %(default)s")
    parser.add_argument("--scenes", type=int, nargs="+", default=SCENES, help="to train on; default: 64 512 4096")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS), help="default: all")


def experiment(base: Experiment, model: str, scenes: int, seed: int) -> Experiment:
    """A size of model on so many scenes; each clip begins with GIVEN frames that the model is given."""
    width, depth, heads = MODELS[model]
    data = dataclasses.replace(base.data, source=InTurn(count=scenes), frames=(FRAMES,), row_tokens=8 * 45,
                               max_frames_per_row=40, max_text_per_row=384)  # fmt: skip
    return dataclasses.replace(
        base,
        name=f"physics-{width}x{depth}-{scenes}",
        seed=seed,
        data=data,
        backbone=dataclasses.replace(base.backbone, width=width, depth=depth, heads=heads),
        canvases=CanvasConfig(none=0.0, head=1.0),
        # At low noise a frame can be read off the noisy one, and nothing is learned of the frames before (pong.py).
        diffusion=dataclasses.replace(base.diffusion, shift=4.0),
        latents=LatentsConfig(samples=scenes),
        sample=dataclasses.replace(base.sample, frames=FRAMES, size=(SIZE, SIZE), guidance=1.0, interval=(0.0, 1.0)),
    )


def main(options: argparse.Namespace) -> None:
    folder = options.out / "physics"
    base = common.steps_of(config(), options.steps)
    first = experiment(base, options.models[0], max(options.scenes), base.seed)
    vae = common.prepare(folder / "common", first)
    results = {}
    for seed in options.seeds:
        for scenes in options.scenes:
            shared = common.prepare(
                folder / f"latents-{scenes}", experiment(base, options.models[0], scenes, base.seed), vae
            )
            for model in options.models:
                made = experiment(base, model, scenes, seed)
                found = common.trained(
                    folder / f"{made.name}-{seed}", made, shared, lambda space: measure(space, options.count)
                )
                results[f"{made.name}-{seed}"] = found | {"model": model, "scenes": scenes, "seed": seed}
                common.say(f"{model}, {scenes} scenes, seed {seed}: " + ", ".join(
                    f"{name} {np.nanmean(found[name]):.3g}" for name in MEASURES))  # fmt: skip
    report(folder, results, last_frame(options.count))


def measure(space: Workspace, count: int) -> dict[str, list[float]]:
    """Each measure of scenes that training never saw, continued from their first frames."""
    generator = vdit.load(space.root)

    def continued(scenes: Sequence[worlds.WorldSample]) -> np.ndarray:
        made = [
            vdit.extend(generator, scene.caption, scene.video[:GIVEN], after=FRAMES - GIVEN, context=GIVEN, seed=seed)
            for seed, scene in enumerate(scenes)
        ]
        return np.clip(np.round((np.concatenate(made) + 1) * 127.5), 0, 255).astype(np.uint8)

    return measured(continued, count)


def last_frame(count: int) -> dict[str, list[float]]:
    """The same measures of videos that stand still after their given frames."""
    return measured(lambda scenes: np.stack([
        np.concatenate([scene.video[:GIVEN], np.repeat(scene.video[GIVEN - 1 : GIVEN], FRAMES - GIVEN, axis=0)])
        for scene in scenes
    ]), count)  # fmt: skip


def measured(continued, count: int) -> dict[str, list[float]]:
    found = {}
    for name, kinds in SPLITS.items():
        scenes = [scene for kind in kinds for scene in held_out(kind, count // len(kinds))]
        videos = continued(scenes)
        found[f"velocity, {name}"] = [velocity_error(video, scene) for video, scene in zip(videos, scenes)]
    for metric, kind in ((Permanence(), "occluder"), (CameraAndSpace(), "orbit")):
        scenes = held_out(TRAINED[kind], count)
        values = [metric.measure(case_of(video, scene)) for video, scene in zip(continued(scenes), scenes)]
        for name in values[0]:
            found[name] = [mean_of(value[name]) for value in values]
    return found


def held_out(kind: tuple[str, tuple[str, ...]], count: int) -> list[worlds.WorldSample]:
    world = worlds.make(kind[0], seed=HELD_OUT_SEED, count=count, size=(SIZE, SIZE), frames=FRAMES, fps=FPS,
                        **WorldsSource(options=kind[1]).arguments())  # fmt: skip
    return [world[i] for i in range(count)]


def case_of(video: np.ndarray, scene: worlds.WorldSample) -> Case:
    return Case(name="scene", video=video, fps=FPS, truth=scene.video, given=GIVEN, scene=scene.meta)


def velocity_error(video: np.ndarray, scene: worlds.WorldSample) -> float:
    """Mean length of the difference to the true velocity, in short sides a second.

    Velocities are differences of the centres of two frames behind the given ones. Where no ball is found its velocity
    counts as none.
    """
    made, true = (displacements(track(one).centres)[GIVEN - 1 :] for one in (video, scene.video))
    return float(np.linalg.norm(np.nan_to_num(made) - np.nan_to_num(true), axis=-1).mean() * FPS / SIZE)


def mean_of(value: float | np.ndarray) -> float:
    """The mean of what is known; NaN where nothing is."""
    known = np.asarray(value, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else float("nan")


def report(folder: Path, results: dict[str, dict], still: dict[str, list[float]]) -> None:
    rows = [["model", "scenes", *MEASURES]]
    points: dict[str, dict[str, list[tuple]]] = {name: {} for name in MEASURES}
    for model, scenes in dict.fromkeys((one["model"], one["scenes"]) for one in results.values()):
        group = [one for one in results.values() if (one["model"], one["scenes"]) == (model, scenes)]
        found = {name: common.interval([one[name] for one in group]) for name in MEASURES}
        for name, values in found.items():
            points[name].setdefault(model, []).append((scenes, *values))
        rows.append(
            [model, str(scenes), *(f"{mean:.3g} ({low:.3g} to {high:.3g})" for mean, low, high in found.values())]
        )
    rest = {name: float(np.nanmean(still[name])) for name in MEASURES}
    rows.append(["last frame, again", "", *(f"{value:.3g}" for value in rest.values())])
    units = "; ".join(f"{name}: {unit}, {better} is better" for name, (unit, better) in MEASURES.items())
    common.save(folder, {"runs": results, "last_frame": still}, rows, [units + "."])
    made, panels = common.figure(len(MEASURES))
    for panel, (name, lines) in zip(panels, points.items()):
        for model, values in lines.items():
            scenes, mean, low, high = np.array(values).T
            panel.errorbar(scenes, mean, (mean - low, high - mean), fmt="o-", capsize=3, label=model)
        panel.axhline(rest[name], color="k", linestyle="--", linewidth=1, label="last frame, again")
        panel.set(xscale="log", xlabel="scenes to train on", title=name, ylabel=MEASURES[name][0])
    panels[0].legend(fontsize=8)
    made.tight_layout()
    made.savefig(folder / "plot.png", dpi=100)
