"""Metrics that need no weights: against the true video, and of a video by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vdit.errors import ShapeError
from vdit.eval.detectors import colour_drift
from vdit.eval.evaluate import Better, Case, Evaluation, Features, Figure, Metric, Need, SetMetric, Values
from vdit.eval.metrics import edge_sharpness, flicker, frame_ms_ssim, frame_psnr, frame_ssim, pixel_values, sharpness
from vdit.eval.motion import is_dynamic, motion_smoothness, moving_speed, warp_error
from vdit.eval.physics_iq import compare_takes, physics_iq_score
from vdit.eval.statistics import Interval
from vdit.registry import register

MOST_DB = 100.0  # PSNR of equal frames, so that means stay finite


@register("metric", "psnr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Psnr(Metric):
    """Peak signal-to-noise ratio of each frame against the true one, in dB; at most 100."""

    needs: ClassVar[tuple[Need, ...]] = ("truth",)

    def measure(self, case: Case) -> Values:
        return {"psnr": np.minimum(frame_psnr(case.made, case.made_truth), MOST_DB)}


@register("metric", "ssim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ssim(Metric):
    """Structural similarity of each frame with the true one (Wang et al., 2004)."""

    needs: ClassVar[tuple[Need, ...]] = ("truth",)

    def measure(self, case: Case) -> Values:
        return {"ssim": frame_ssim(case.made, case.made_truth)}


@register("metric", "ms_ssim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MsSsim(Metric):
    """Multi-scale structural similarity with the true frames (Wang et al., 2003); frames of 176x176 or more."""

    needs: ClassVar[tuple[Need, ...]] = ("truth",)

    def measure(self, case: Case) -> Values:
        return {"ms_ssim": frame_ms_ssim(case.made, case.made_truth)}


@register("metric", "flicker")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flicker(Metric):
    """Mean absolute difference of neighbouring frames, in 0..255 (VBench's temporal flickering is 1 - it / 255)."""

    better: ClassVar[Better] = "real"

    def measure(self, case: Case) -> Values:
        if len(case.made) < 2:
            raise ShapeError(f"{case.name}: one frame does not flicker: give two frames or more")
        return {"flicker": flicker(case.made)}


@register("metric", "motion_smoothness")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionSmoothness(Metric):
    """How well steady motion predicts each frame from its neighbours; 1 is perfect (vdit.eval.motion)."""

    def measure(self, case: Case) -> Values:
        return {"motion_smoothness": motion_smoothness(case.flow)}


@register("metric", "dynamic_degree")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicDegree(Metric):
    """Whether anything moves.

    "speed": short sides a second of the fastest 5% of the pixels. "dynamic": share of videos that VBench's rule calls
    dynamic (with OpenCV's flow in the place of RAFT).
    """

    better: ClassVar[Mapping[str, Better]] = {"speed": "real", "dynamic": "real"}

    def measure(self, case: Case) -> Values:
        speed = moving_speed(case.flow)
        return {"speed": speed * case.fps, "dynamic": float(is_dynamic(speed))}


@register("metric", "warp_error")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WarpError(Metric):
    """Mean squared change of pixels along their own motion, x 1000 (Lai et al., 2018)."""

    better: ClassVar[Better] = "lower"

    def measure(self, case: Case) -> Values:
        return {"warp_error": 1000 * warp_error(case.flow)}


@register("metric", "seam")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Seam(Metric):
    """The step from the last frame to the first over the median step inside, in pixels' values; about 1 in a loop."""

    better: ClassVar[Better] = "real"

    def measure(self, case: Case) -> Values:
        if len(case.video) < 3:
            raise ShapeError(f"{case.name}: {len(case.video)} frames make no loop: give three or more")
        steps = flicker(np.concatenate([case.video, case.video[:1]]))
        return {"seam": float(steps[-1] / max(np.median(steps[:-1]), 1e-3))}


@register("metric", "join")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Join(Metric):
    """The step from the last given frame to the first made one over the median step of the video; about 1 is right."""

    better: ClassVar[Better] = "real"

    def measure(self, case: Case) -> Values:
        if not case.given or len(case.video) < 3:
            raise ShapeError(f"{case.name}: no frame was given, so there is no join")
        steps = flicker(case.video)
        return {"join": float(steps[case.given - 1] / max(np.median(steps), 1e-3))}


@register("metric", "sharpness")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharpness(Metric):
    """Standard deviation of the Laplacian of each frame's luma (of 0..255)."""

    better: ClassVar[Better] = "real"

    def measure(self, case: Case) -> Values:
        return {"sharpness": sharpness(case.made)}


@register("metric", "edge_sharpness")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeSharpness(Metric):
    """How steep the strongest edges of each frame are: 1 is a step from one pixel to the next."""

    better: ClassVar[Better] = "real"

    def measure(self, case: Case) -> Values:
        return {"edge_sharpness": edge_sharpness(case.made)}


@register("metric", "colour_drift")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourDrift(Metric):
    """How far the mean colour of each frame is from that of the first eight, in RGB of 0..255."""

    better: ClassVar[Better] = "real"

    def measure(self, case: Case) -> Values:
        return {"colour_drift": colour_drift(pixel_values(case.made).mean((1, 2), dtype=np.float64))}


@register("metric", "physics_iq")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PhysicsIQ(Metric):
    """Physics-IQ's four measures (Motamed et al., 2025); see vdit.eval.physics_iq for the score."""

    needs: ClassVar[tuple[Need, ...]] = ("truth",)
    better: ClassVar[Mapping[str, Better]] = {
        "spatial_iou": "higher", "spatiotemporal_iou": "higher", "weighted_spatial_iou": "higher", "mse": "lower",
    }  # fmt: skip

    def measure(self, case: Case) -> Values:
        found = compare_takes(case.made_truth, case.made)
        return {name: getattr(found, name) for name in self.better}


@register("metric", "physics_iq_takes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PhysicsIQTakes(Metric):
    """Physics-IQ's four measures between two real takes: what a perfect model reaches."""

    needs: ClassVar[tuple[Need, ...]] = ("truth", "take")
    better: ClassVar[Mapping[str, Better]] = {f"takes_{name}": better for name, better in PhysicsIQ.better.items()}

    def measure(self, case: Case) -> Values:
        found = compare_takes(case.made_truth, case.take[case.given :])
        return {f"takes_{name}": getattr(found, name) for name in PhysicsIQ.better}


def score_figure(found: Evaluation, *, resamples: int = 1000, seed: int = 0) -> Figure | None:
    """The Physics-IQ score of a set of videos, with a bootstrap over the scenes; None where takes are not known.

    Raises:
        ShapeError: the real takes have no motion in common.
    """
    columns = {name: found.figure(name) for name in (*PhysicsIQ.better, *PhysicsIQTakes.better)}
    if not all(columns.values()):
        return None
    scenes = [name for name in columns["mse"].by_video if name in columns["takes_mse"].by_video]
    table = {name: np.array([figure.by_video[scene] for scene in scenes]) for name, figure in columns.items()}

    def score(index: np.ndarray) -> float:
        means = {name: float(values[index].mean()) for name, values in table.items()}
        return physics_iq_score(means, {name: means[f"takes_{name}"] for name in PhysicsIQ.better})

    random, count = np.random.default_rng(seed), len(scenes)
    low, high = np.percentile([score(random.integers(count, size=count)) for _ in range(resamples)], (2.5, 97.5))
    interval = Interval(value=score(np.arange(count)), low=float(low), high=float(high), n=count)
    return Figure(metric="physics_iq", name="physics_iq_score", interval=interval, better="higher")


@register("metric", "retrieval")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(SetMetric):
    """Whether a video's features are nearest to those of its own true video, among all true videos: a share."""

    needs: ClassVar[tuple[Need, ...]] = ("features", "truth")
    better: ClassVar[Better] = "higher"
    shares: ClassVar[tuple[str, ...]] = ("retrieval",)

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        if len(made) < 2:
            raise ShapeError("one video has nothing to be confused with: give two or more")
        gap = np.square(made.videos[:, None].astype(np.float64) - made.truths[None]).sum(-1)
        return {"retrieval": float((gap.argmin(1) == np.arange(len(made))).mean())}


@register("metric", "best_of")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf(SetMetric):
    """Of the videos of one prompt: distance of features to the true video, of the best one and of all.

    "best_of_n" over "mean_of_n": how much choosing the best of the seeds would help.
    """

    needs: ClassVar[tuple[Need, ...]] = ("features", "truth", "group")

    better: ClassVar[Mapping[str, Better]] = {"best_of_n": "lower", "mean_of_n": "lower"}

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        gap = np.linalg.norm(made.videos.astype(np.float64) - made.truths, axis=-1)
        groups = [gap[index] for index in _groups(made)]
        best, usual = (np.mean([pick(group) for group in groups]) for pick in (np.min, np.mean))
        return {"best_of_n": float(best), "mean_of_n": float(usual)}


@register("metric", "diversity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity(SetMetric):
    """Mean distance of features between videos of one prompt with different seeds; 0 where all are the same."""

    needs: ClassVar[tuple[Need, ...]] = ("features", "group")
    better: ClassVar[Better] = "higher"

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        found = []
        for index in _groups(made):
            part = made.videos[index].astype(np.float64)
            gaps = np.linalg.norm(part[:, None] - part[None], axis=-1)
            found.append(gaps[np.triu_indices(len(part), 1)].mean())
        return {"diversity": float(np.mean(found))}


def _groups(made: Features) -> list[np.ndarray]:
    """Indices of each group of two videos or more."""
    names = np.array([group or "" for group in made.groups])
    found = [np.flatnonzero(names == name) for name in dict.fromkeys(names) if name]
    found = [index for index in found if len(index) > 1]
    if not found:
        raise ShapeError("no prompt has two videos: give several seeds")
    return found
